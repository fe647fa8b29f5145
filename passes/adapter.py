"""Adapter: a trained residual bottleneck on the output of linear layers.

What it does
    Adds `up(gelu(down(y)))` to the output y of a frozen linear layer, or to the rows q, k, v of a
    fused one, each with an adapter of its own.

Source
    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019. The placement at
    single matrices is that of SPT-Adapter: He et al., ICCV 2023.

Attaches to
    Any linear layer; `q`, `k`, `v` are row ranges of a fused `qkv`.

Parameters
    down.weight [h, w], Kaiming-uniform with a = sqrt(5); down.bias [h], uniform as torch's linear
    layers; up.weight [w, h] and up.bias [w], zero. w is the width of the output. All trained.

Forward
    u = W x + b; u += up(gelu(down(drop(u)))), gelu in the erf form. At an attention's `proj` it is
    parallel and without dropout, as in the authors' code: u += up(gelu(down(x))). In training the
    branch is dropped per sample (`drop_path`).

Exactness
    The model is unchanged at initialisation. Not linear, so it does not fold.

Example
    insert adapter(hidden=8) at blocks[*].mlp.fc2
    adds 2 h w + h + w parameters per matrix.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import LinearSite, Pass, option


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


@dataclass(frozen=True)
class BottleneckAdapter(Pass):
    """A residual bottleneck on linear layers."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "Houlsby et al., ICML 2019; He et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    hidden: int = option(8, minimum=1, help="width of the bottleneck")
    bias: bool = option(True, help="whether its two layers have biases")
    dropout: float = option(0.1, minimum=0, below=1, help="of its input, in training only")
    drop_path: float = option(0.1, minimum=0, below=1, help="per sample, in training only")

    def rewrite(self, linear: LinearSite) -> None:
        """u += up(gelu(down(u))), part by part."""
        for (start, stop), part in zip(linear.rows, linear.parts, strict=True):
            if self.hidden >= stop - start:
                raise linear.reject(
                    "hidden", f"{self.hidden} is not below the width {stop - start}",
                    notes=[f"valid: 1..{stop - start - 1}"],
                )  # fmt: skip
            parallel = linear.projects_heads
            width = part.in_features if parallel else stop - start
            dropout = 0.0 if parallel else self.dropout
            if parallel:
                linear.idle("dropout", "at the proj of an attention, which has none")
            one = replace(linear, parts=(part,))
            branch = Adapter(width, self.hidden, ((start, stop),), parallel, self.bias, dropout)
            one.parallel(branch, drop_path=self.drop_path)

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix, as the authors count them: the width in is that of the output."""
        return 2 * self.hidden * out_features + self.hidden + out_features
