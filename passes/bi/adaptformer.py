"""Bi-AdaptFormer: AdaptFormer whose matrices have few bits a number, one by default.

What it does
    Adds `s * up(relu(down(x)))` to the output of a block, where x is the stream that its MLP half
    starts from, as AdaptFormer does, with `down` and `up` quantised while they are trained.

Source
    Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the Perspective of
    Precision Redundancy", ICCV 2023.

Attaches to
    The branches of a block: `mlp_branch` in the paper, `attn_branch` too. It reads the stream that
    the branch is added to, also where the norm stands behind the MLP.

Parameters
    down [h, d]: Kaiming-uniform with a = sqrt(5). up [d, h]: truncated normal of std 1e-3 within
    2e-3, or zero with 32 bits. Both latent, in float32, and trained; h = 32, no biases. The scale s
    is fixed: the paper takes one of 0.01, 0.1, 1 and 10 by task.

Forward
    Each matrix W is used as W' = (q + n - stop(n)) sg + mu, with n = (W - mu) / (sg + 1e-5) and q
    its nearest of 2^bits levels, +-0.6745 for one bit; mu and sg, mean and unbiased deviation of W,
    are differentiated.
    y = x + dp(mlp(norm(x))) + s * up'(drop(relu(down' x))), outside of the block's drop path and
    layer scale, for all tokens. In training numbers of the code are dropped.

Exactness
    With less than 32 bits the model is changed a little at initialisation. Not linear, so it does
    not fold: lowering makes two plain matrices of it, with s in `up`, and nothing for s = 0.

Example
    insert bi.adaptformer(hidden=32, bits=1) at blocks[*].mlp_branch
    adds 589,824 parameters to ViT-B/16, which `vitrewrite pack` writes as 73,920 bytes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BranchSite, Pass, Quantised, option


class QuantisedAdapter(nn.Module):
    """y + scale * up(relu(down(x))), beside what yields y from the stream x; few bits a number."""

    inserted_by = "bi.adaptformer"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        scale: float = 1.0,
        bits: int = 1,
        dropout: float = 0.0,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.scale = width, hidden, scale
        self.bits, self.dropout, self.axis = bits, dropout, axis
        self.down = Quantised(hidden, width, bits)
        self.up = Quantised(width, hidden, bits, small=True)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down`, and `up` next to zero."""
        self.down.reset_parameters(generator)
        self.up.reset_parameters(generator)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        code = F.relu(F.linear(x.movedim(self.axis, -1), self.down().to(x.dtype)))
        code = F.dropout(code, self.dropout, self.training)
        made = F.linear(code, self.up().to(code.dtype))
        return y + self.scale * made.movedim(-1, self.axis)


class PlainAdapter(nn.Module):
    """What such an adapter is once it is trained: y + up(relu(down(x)))."""

    inserted_by = "bi.adaptformer"
    changes = (1,)

    def __init__(self, width: int, hidden: int, axis: int = -1) -> None:
        super().__init__()
        self.width, self.hidden, self.axis = width, hidden, axis
        self.down = nn.Parameter(torch.zeros(hidden, width))
        self.up = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        code = F.relu(F.linear(x.movedim(self.axis, -1), self.down))
        return y + F.linear(code, self.up).movedim(-1, self.axis)


@dataclass(frozen=True)
class BiAdaptFormer(Pass):
    """A bottleneck of few bits parallel to a branch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    source: ClassVar[str] = "Jie et al., ICCV 2023"

    hidden: int = option(32, minimum=1, help="width of the bottleneck")
    bits: int = option(1, choices=(1, 2, 4, 8, 32), help="of a number; 32 are floats as they are")
    scale: float = option(1.0, help="fixed factor of the branch")
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")

    def rewrite(self, branch: BranchSite) -> None:
        """x + f(x) becomes x + f(x) + s * up'(relu(down'(x)))."""
        count, one = self.hidden * branch.dim, "a matrix of one number has no deviation"
        branch.expect(self.bits == 32 or count > 1, "hidden", one)
        if self.hidden >= branch.dim:
            branch.warn(f"hidden {self.hidden} is no bottleneck of {branch.dim} channels")
        options = self.hidden, self.scale, self.bits, self.dropout
        branch.beside(QuantisedAdapter(branch.dim, *options, axis=branch.axis))

    def lower(self, branch: BranchSite, adapter: QuantisedAdapter) -> bool:
        """The matrices as they are used, up = s * up; nothing is left of it for s = 0."""
        if adapter.scale == 0:
            branch.drop()
            return True
        plain = PlainAdapter(adapter.width, adapter.hidden, adapter.axis)
        plain.down = nn.Parameter(adapter.down(), requires_grad=False)
        plain.up = nn.Parameter(adapter.scale * adapter.up(), requires_grad=False)
        branch.swap(plain)
        return False

    def delta(self, adapter: QuantisedAdapter | PlainAdapter) -> list[dict[str, torch.Tensor]]:
        """The latent tensors as the method names them, or those in use once it is lowered."""
        if isinstance(adapter, PlainAdapter):
            return [{"down": adapter.down, "up": adapter.up}]
        return [{"down": adapter.down.weight, "up": adapter.up.weight}]
