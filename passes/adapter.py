"""Adapter: a trained residual bottleneck on what a branch of a block or a linear layer yields.

What it does
    Adds `up(gelu(down(y)))` to the output y of attention or MLP, before it is added to the stream;
    or to that of a frozen linear layer, or of the rows q, k, v of a fused one, each with an adapter
    of its own.

Source
    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019: behind attention and
    MLP (the original trains the norms too, `train every norm`). Pfeiffer et al., "AdapterFusion",
    EACL 2021: behind the MLP alone, which the tables of vision papers call Adapter. At single
    matrices: SPT-Adapter, He et al., ICCV 2023.

Attaches to
    Branches of a block: `mlp_branch` is Pfeiffer's place, `every branch` Houlsby's. It stands
    behind layer scale and in front of the drop path, under what other passes put around the branch.
    Where a branch ends in its norm (Swin V2), `norm` says on which side of that.
    Any linear layer; `q`, `k`, `v` are row ranges of a fused `qkv`.

Parameters
    down.weight [h, w], Kaiming-uniform with a = sqrt(5); down.bias [h], uniform as torch's linear
    layers; up.weight [w, h] and up.bias [w], zero. w is the width of the output. All trained.
    Public codes zero both matrices, so that neither gets a gradient ever: here `up` alone is zero.

Forward
    u += up(gelu(down(drop(u)))), gelu in the erf form: of a branch x + dp(u), of a matrix
    u = W x + b. At an attention's `proj` it is parallel and without dropout, as in the authors'
    code: u += up(gelu(down(x))). At a matrix its part is dropped per sample in training
    (`drop_path`), at a branch with the branch.

Exactness
    The model is unchanged at initialisation. Not linear, so it does not fold.

Example
    insert adapter(hidden=8) at blocks[*].mlp_branch
    adds 2 h w + h + w parameters per site, 156,768 to ViT-B/16.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BranchSite, LinearSite, Pass, option


class Adapter(nn.Module):
    """A bottleneck on rows [start, stop) of a linear's output y, or `parallel` to it from x."""

    inserted_by = "adapter"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        rows: tuple[tuple[int, int]],
        parallel: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.rows, self.parallel = width, hidden, rows, parallel
        self.bias, self.dropout = bias, dropout
        self.down = nn.Linear(width, hidden, bias)
        self.up = nn.Linear(hidden, rows[0][1] - rows[0][0], bias)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` as torch's layers are and zeroes `up`: the branch starts at zero."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)
        if self.bias:
            bound = 1 / math.sqrt(self.width)
            nn.init.uniform_(self.down.bias, -bound, bound, generator=generator)
            nn.init.zeros_(self.up.bias)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output y of the linear, adapted; x is its input, `keep` a factor per sample."""
        start, stop = self.rows[0]
        z = x if self.parallel else y[..., start:stop]
        branch = self.up(F.gelu(self.down(F.dropout(z, self.dropout, self.training))))
        if keep is not None and self.training:
            branch = branch * keep.to(branch.dtype)
        return y + F.pad(branch, (start, y.shape[-1] - stop))


class BranchAdapter(nn.Module):
    """y + up(gelu(down(y))) for what a branch yields, with `width` channels on `axis`."""

    inserted_by = "adapter"
    changes = (0,)

    def __init__(
        self, width: int, hidden: int, bias: bool = True, dropout: float = 0.0, axis: int = -1
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.bias = width, hidden, bias
        self.dropout, self.axis = dropout, axis
        self.down = nn.Linear(width, hidden, bias)
        self.up = nn.Linear(hidden, width, bias)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` as torch's layers are and zeroes `up`: the adapter starts as nothing."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)
        if self.bias:
            bound = 1 / math.sqrt(self.width)
            nn.init.uniform_(self.down.bias, -bound, bound, generator=generator)
            nn.init.zeros_(self.up.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """What the branch yields, adapted."""
        z = F.dropout(y.movedim(self.axis, -1), self.dropout, self.training)
        added: torch.Tensor = self.up(F.gelu(self.down(z)))
        return y + added.movedim(-1, self.axis)


@dataclass(frozen=True)
class BottleneckAdapter(Pass):
    """A residual bottleneck on branches or linear layers."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch", "linear")
    source: ClassVar[str] = "Houlsby et al., ICML 2019; Pfeiffer et al., EACL 2021"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    hidden: int = option(8, minimum=1, help="width of the bottleneck")
    bias: bool = option(True, help="whether its two layers have biases")
    dropout: float | None = option(
        None,
        minimum=0,
        below=1,
        help="of its input, in training only; 0.1 at matrices, none at branches",
    )
    drop_path: float = option(
        0.1, minimum=0, below=1, help="per sample, in training only, at matrices"
    )
    norm: str | None = option(
        None, choices=("front", "behind"), help="its side of the norm that a branch ends in"
    )

    def rewrite(self, site: BranchSite | LinearSite) -> None:
        """u += up(gelu(down(u)))."""
        if isinstance(site, BranchSite):
            self.at_branch(site)
        else:
            self.at_matrices(site)

    def at_branch(self, branch: BranchSite) -> None:
        """x + drop(f(x)) becomes x + drop(adapter(f(x)))."""
        self.check(branch, branch.dim)
        branch.idle("drop_path", "at a branch, which has its own")
        if not branch.ends_in_norm:
            branch.idle("norm", "at a branch that does not end in its norm")
        branch.expect(
            self.norm is not None or not branch.ends_in_norm,
            "norm",
            "the branch ends in its norm",
            suggestion="write norm=front or norm=behind, for the adapter's side of it",
        )
        made = BranchAdapter(branch.dim, self.hidden, self.bias, self.dropout or 0.0, branch.axis)
        branch.wrap(made, inside=True, before_norm=self.norm == "front")

    def at_matrices(self, linear: LinearSite) -> None:
        """u += up(gelu(down(u))), part by part."""
        linear.idle("norm", "at a matrix")
        for (start, stop), part in zip(linear.rows, linear.parts, strict=True):
            self.check(linear, stop - start)
            parallel = linear.projects_heads
            width = part.in_features if parallel else stop - start
            dropout = 0.1 if self.dropout is None else self.dropout
            if parallel:
                dropout = 0.0
                linear.idle("dropout", "at the proj of an attention, which has none")
            one = replace(linear, parts=(part,))
            branch = Adapter(width, self.hidden, ((start, stop),), parallel, self.bias, dropout)
            one.parallel(branch, drop_path=self.drop_path)

    def check(self, site: BranchSite | LinearSite, width: int) -> None:
        """The bottleneck must be one."""
        site.expect(
            self.hidden < width,
            "hidden",
            f"{self.hidden} is not below the width {width}",
            notes=[f"valid: 1..{width - 1}"],
        )

    def lower(self, site: BranchSite | LinearSite, adapter: Adapter | BranchAdapter) -> bool:
        """One that adds exactly nothing is taken out."""
        if adapter.up.weight.is_meta or any(p.any() for p in adapter.up.parameters()):
            return False
        site.drop()
        return True

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix, as the authors count them: the width in is that of the output."""
        return 2 * self.hidden * out_features + self.hidden + out_features
