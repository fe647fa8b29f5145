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
    2e-3, or zero with 32 bits. Both latent, in float32, and trained; h = 32. With `bias` also
    down_bias [h] and up_bias [d], zero, which the code has not and the tables count. The scale s is
    fixed: the paper takes one of 0.01, 0.1, 1 and 10 by task.

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
        bias: bool = False,
        dropout: float = 0.0,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.scale, self.bits = width, hidden, scale, bits
        self.bias, self.dropout, self.axis = bias, dropout, axis
        self.down = Quantised(hidden, width, bits)
        self.up = Quantised(width, hidden, bits, small=True)
        self.down_bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down`, and `up` next to zero; biases are zero."""
        self.down.reset_parameters(generator)
        self.up.reset_parameters(generator)
        if self.down_bias is not None and self.up_bias is not None:
            nn.init.zeros_(self.down_bias)
            nn.init.zeros_(self.up_bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        x = x.movedim(self.axis, -1)
        code = F.relu(F.linear(x, self.down().to(x.dtype), self.down_bias))
        code = F.dropout(code, self.dropout, self.training)
        made = F.linear(code, self.up().to(code.dtype), self.up_bias)
        return y + self.scale * made.movedim(-1, self.axis)


class PlainAdapter(nn.Module):
    """What such an adapter is once it is trained: y + up(relu(down(x)))."""

    inserted_by = "bi.adaptformer"
    changes = (1,)

    def __init__(self, width: int, hidden: int, bias: bool = False, axis: int = -1) -> None:
        super().__init__()
        self.width, self.hidden, self.bias, self.axis = width, hidden, bias, axis
        self.down = nn.Parameter(torch.zeros(hidden, width))
        self.up = nn.Parameter(torch.zeros(width, hidden))
        self.down_bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y with the branch of x added, both with `width` channels on `axis`."""
        code = F.relu(F.linear(x.movedim(self.axis, -1), self.down, self.down_bias))
        return y + F.linear(code, self.up, self.up_bias).movedim(-1, self.axis)


@dataclass(frozen=True)
class BiAdaptFormer(Pass):
    """A bottleneck of few bits parallel to a branch."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    source: ClassVar[str] = "Jie et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ()

    hidden: int = option(32, minimum=1, help="width of the bottleneck")
    bits: int = option(1, choices=(1, 2, 4, 8, 32), help="of a number; 32 are floats as they are")
    scale: float = option(1.0, help="fixed factor of the branch")
    bias: bool = option(False, help="whether its two layers have biases, of 32 bits")
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")

    def rewrite(self, branch: BranchSite) -> None:
        """x + f(x) becomes x + f(x) + s * up'(relu(down'(x)))."""
        count, one = self.hidden * branch.dim, "a matrix of one number has no deviation"
        branch.expect(self.bits == 32 or count > 1, "hidden", one)
        if self.hidden >= branch.dim:
            branch.warn(f"hidden {self.hidden} is no bottleneck of {branch.dim} channels")
        options = self.hidden, self.scale, self.bits, self.bias, self.dropout
        branch.beside(QuantisedAdapter(branch.dim, *options, axis=branch.axis))

    def lower(self, branch: BranchSite, adapter: QuantisedAdapter) -> bool:
        """The matrices as they are used, up = s * up; nothing is left of it for s = 0."""
        if adapter.scale == 0:
            branch.drop()
            return True
        plain = PlainAdapter(adapter.width, adapter.hidden, adapter.bias, adapter.axis)
        plain.down = nn.Parameter(adapter.down(), requires_grad=False)
        plain.up = nn.Parameter(adapter.scale * adapter.up(), requires_grad=False)
        plain.down_bias = adapter.down_bias
        if adapter.up_bias is not None:
            plain.up_bias = nn.Parameter(adapter.scale * adapter.up_bias, requires_grad=False)
        branch.swap(plain)
        return False

    def delta(self, adapter: QuantisedAdapter | PlainAdapter) -> list[dict[str, torch.Tensor]]:
        """The latent tensors as the method names them, or those in use once it is lowered."""
        pair = [m if isinstance(m, nn.Parameter) else m.weight for m in (adapter.down, adapter.up)]
        found: dict[str, torch.Tensor | None] = {"down": pair[0], "up": pair[1]}
        found |= {"down_bias": adapter.down_bias, "up_bias": adapter.up_bias}
        return [{name: tensor for name, tensor in found.items() if tensor is not None}]
