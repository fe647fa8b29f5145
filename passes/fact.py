"""FacT: updates of all matrices of a model as one tensor in factors that they share.

What it does
    Adds `s * V S U x` to the output of every frozen matrix: U and V are the same for the whole
    model, S is small and each matrix's own.

Source
    Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI
    2023, equations 5 and 6. The Tucker form as in the authors' code, which deals the slices of fc1
    and fc2 out in turn.

Attaches to
    Linear layers of blocks whose matrices are d x d or rows or columns of such: q, k, v and proj,
    and fc1 and fc2 where the hidden units are m d. Every linear of every block in the paper. Not
    gated feed-forward parts, grouped keys, or blocks of several widths d, which are no one tensor.

Parameters
    Shared, held once, by the lowest module above all sites: U [r, d], Kaiming-uniform with
    a = sqrt(5), V [d, r], zero. Form `tt` (tensor train): S [r, r] of each matrix, of fc1 [m r, r],
    of fc2 [r, m r], drawn as U. Form `tk` (Tucker): C [r, r, r] and P [r, (4 + 2 m) L], both
    Xavier-uniform, L the number of blocks; a block that is not there any more keeps its columns.
    All trained, no biases; the scale s is fixed.

Forward
    y = W x + b + s * V drop(S U x), U and V with each d channels by themselves. In training numbers
    of the code S U x are dropped. U x is computed once for all matrices that read x. In `tk`, S of
    the columns p of P is the sum over k of C[:, k]^T p[k], and that of fc1 and fc2 has its m
    columns' entries in turn.

Exactness
    The model is unchanged at initialisation. Folds exactly: W += s V S U, chunk by chunk.

Example
    insert fact(rank=16) at every linear in blocks
    adds 61,440 parameters to ViT-B/16, with form=tk and rank=32 86,528; folded, they cost nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import LinearSite, Pass, Value, option


class SharedFactors(nn.Module):
    """What all matrices share: U and V, and C and P of `columns` columns, if there are any."""

    inserted_by = "fact"

    def __init__(self, dim: int, rank: int, columns: int = 0) -> None:
        super().__init__()
        self.dim, self.rank, self.columns = dim, rank, columns
        self.U = nn.Parameter(torch.empty(rank, dim))
        self.V = nn.Parameter(torch.empty(dim, rank))
        self.C = nn.Parameter(torch.empty(rank, rank, rank)) if columns else None
        self.P = nn.Parameter(torch.empty(rank, columns)) if columns else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all but V, which is zero, so that no update is there at first."""
        nn.init.kaiming_uniform_(self.U, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.V)
        for drawn in (self.C, self.P):
            if drawn is not None:
                nn.init.xavier_uniform_(drawn, generator=generator)

    def forward(self) -> tuple[torch.Tensor | None, ...]:
        """The factors."""
        return (self.U, self.V, self.C, self.P) if self.columns else (self.U, self.V)


class FactUpdate(nn.Module):
    """y + scale * V S code on `rows` of y, each `dim` of them by themselves.

    The code is U x, [..., inputs * rank], of `inputs` pieces of x. `parts` names the matrices of
    each range of rows: q, k, v, proj, fc1 or fc2. S is a parameter, or, if the columns of the
    block in P are known to begin at `first`, made of C and P.
    """

    inserted_by = "fact"
    changes = (1,)
    S: nn.Parameter

    def __init__(
        self,
        dim: int,
        rank: int,
        rows: tuple[tuple[int, int], ...],
        parts: tuple[tuple[str, ...], ...],
        inputs: int,
        scale: float,
        dropout: float = 0.0,
        first: int | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.rank, self.rows, self.parts, self.inputs = dim, rank, rows, parts, inputs
        self.scale, self.dropout, self.first = scale, dropout, first
        self.sizes = [(b - a) // dim * rank for a, b in rows]
        shape = sum(self.sizes), inputs * rank
        self.register_parameter("S", nn.Parameter(torch.empty(shape)) if first is None else None)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws S as torch draws the weight of a linear layer."""
        if self.first is None:
            nn.init.kaiming_uniform_(self.S, a=math.sqrt(5), generator=generator)

    def forward(
        self,
        code: torch.Tensor,
        y: torch.Tensor,
        v: torch.Tensor,
        c: torch.Tensor | None = None,
        p: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output y of the linear, updated; v, c and p are V, C and P."""
        core = self.spread(self.core(c, p), y.shape[-1])
        code = F.dropout(F.linear(code, core), self.dropout, self.training)
        pieces = y.reshape(-1, self.dim)
        return torch.addmm(pieces, code.reshape(-1, self.rank), v.T, alpha=self.scale).view(y.shape)

    def core(self, c: torch.Tensor | None = None, p: torch.Tensor | None = None) -> torch.Tensor:
        """S of all pieces, [pieces of y * rank, inputs * rank]."""
        if c is None or p is None:
            return self.S
        name, own = self.parts[0][0], p[:, self.first :]
        pieces = max(self.sizes[0] // self.rank, self.inputs)
        if name in ("fc1", "fc2"):  # its columns take turns
            start = 4 if name == "fc1" else 4 + pieces
            dealt = (c @ own[:, start : start + pieces]).flatten(1)
            return dealt.T if name == "fc1" else dealt
        slices = c @ own[:, :4]
        places = {"q": 0, "k": 1, "v": 2, "proj": 3}
        return torch.cat([slices[:, :, places[n]].T for part in self.parts for n in part])

    def spread(self, core: torch.Tensor, width: int) -> torch.Tensor:
        """S with zeros for the pieces of y that are not updated."""
        if core.shape[0] * self.dim == width * self.rank:
            return core
        made, end = [], 0
        for (start, stop), part in zip(self.rows, torch.split(core, self.sizes), strict=True):
            gap = (start - end) // self.dim * self.rank
            made += [part.new_zeros(gap, part.shape[1]), part]
            end = stop
        rest = (width - end) // self.dim * self.rank
        return torch.cat([*made, core.new_zeros(rest, core.shape[1])])


@dataclass(frozen=True)
class FactorTuning(Pass):
    """Factor tuning."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    source: ClassVar[str] = "Jie and Deng, AAAI 2023"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    rank: int = option(16, minimum=1, help="of the factors; 4, 8 or 16, 16 or 32 with form=tk")
    form: str = option("tt", choices=("tt", "tk"), help="tensor train, or Tucker")
    scale: float = option(1.0, help="factor of the updates: 0.01, 0.1, 1, 10 or 100")
    dropout: float = option(0.1, minimum=0, below=1, help="of the code, in training only")

    def rewrite(self, linear: LinearSite) -> None:
        """y = W x + b becomes y = W x + b + s * V S U x."""
        dim = self.check(linear)
        columns = self.columns(linear) if self.form == "tk" else 0
        parts = tuple(("q", "k", "v") if n == "qkv" else (n,) for n in linear.names)
        first = columns * linear.block.index if columns else None
        update = FactUpdate(
            dim,
            self.rank,
            linear.rows,
            parts,
            linear.in_features // dim,
            self.scale,
            self.dropout,
            first,
        )
        u, v, *rest = self.factors(linear, dim, columns)
        linear.parallel(update, v, *rest, through=u)

    def lower(self, linear: LinearSite, module: nn.Module) -> bool:
        """W += s * V S U, piece by piece."""
        if not isinstance(module, FactUpdate):
            return False  # the factors go with the last update
        factors = linear.factors
        wide = torch.promote_types(factors[0].dtype, torch.float32)
        u, v, *rest = (factor.to(wide) for factor in factors)
        core = module.core(*rest).to(wide)
        pieces = core.view(-1, module.rank, module.inputs, module.rank)
        full = torch.einsum("dr,krmj,ji->kdmi", v, pieces, u).flatten(0, 1).flatten(1)
        sizes = [b - a for a, b in module.rows]
        return linear.fold([module.scale * part for part in torch.split(full, sizes)])

    def cost(self, out_features: int, in_features: int) -> int:
        """Parameters at a matrix, without what all share; of `tk` its columns of P."""
        pieces = max(out_features, in_features) // min(out_features, in_features)
        return pieces * self.rank * (self.rank if self.form == "tt" else 1)

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """The factors of all, and S of each matrix."""
        if not isinstance(module, FactUpdate):
            return [dict(module.named_parameters())]
        if module.first is not None:
            return [{} for _ in module.rows]
        cores = torch.split(module.S, module.sizes)
        return [
            {f"S_{n}": s for n, s in zip(names, core.chunk(len(names)), strict=True)}
            for names, core in zip(module.parts, cores, strict=True)
        ]

    def factors(self, linear: LinearSite, dim: int, columns: int) -> tuple[Value, ...]:
        """U and V, and C and P of the Tucker form, which all sites of the clause share."""
        columns *= linear.block.depth
        names = ("U", "V", "C", "P") if columns else ("U", "V")
        return linear.tied("factors", lambda: SharedFactors(dim, self.rank, columns), *names)

    def columns(self, linear: LinearSite) -> int:
        """Those of P for a block: q, k, v and proj, then m of fc1 and m of fc2."""
        found = sorted({block.hidden for block in linear.blocks})
        if len(found) > 1 or found[0] % linear.block.dim:
            raise linear.unfit(
                f"feed-forward parts of {', '.join(map(str, found))} hidden units are not the same "
                f"number of times {linear.block.dim} everywhere, which P has columns for",
                suggestion="write form=tt, or a clause for the blocks of each number",
            )
        return 4 + 2 * (found[0] // linear.block.dim)

    def check(self, linear: LinearSite) -> int:
        """The width d: every matrix has to be d x d, or a row or column of such.

        Raises:
            RewriteError: VR410 for others, VR403 for a rank above d.
        """
        dim, widths = linear.block.dim, sorted({block.dim for block in linear.blocks})
        if len(widths) > 1:
            raise linear.unfit(
                f"matrices of blocks of widths {', '.join(map(str, widths))} are no one tensor",
                suggestion="write a clause for the blocks of each width",
            )
        linear.expect(
            self.rank <= dim,
            "rank",
            f"rank {self.rank} is above the width {dim}",
            notes=[f"valid: 1..{dim}"],
        )
        for name, part in zip(linear.names, linear.parts, strict=True):
            if why := misfit(name, (part.out_features, part.in_features), dim, linear.block.gated):
                raise linear.unfit(why, suggestion="leave it out of the clause")
        return dim


def misfit(name: str, shape: tuple[int, int], dim: int, gated: bool) -> str:
    """Why a matrix has no place in the tensor, or nothing."""
    wanted = {"qkv": (3 * dim, dim), **dict.fromkeys(("q", "k", "v", "proj"), (dim, dim))}
    size = f"{shape[0]}x{shape[1]}"
    if name in ("fc1", "fc2", "gate"):
        if gated:
            return "the tensor has no place for the gate of a feed-forward part"
        hidden, width = shape if name == "fc1" else shape[::-1]
        if width != dim or hidden % dim:
            return f"its matrix is {size}, and no whole number of {dim}x{dim} ones"
    elif name not in wanted:
        return "the tensor has places for q, k, v, proj, fc1 and fc2 alone"
    elif shape != wanted[name]:
        grouped = ", as where heads share keys" if name in ("k", "v", "qkv") else ""
        return f"its matrix is {size} instead of {wanted[name][0]}x{wanted[name][1]}{grouped}"
    return ""
