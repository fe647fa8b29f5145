"""VQT: learned queries summarise what every block sees, and a new head reads all summaries.

What it does
    Gives the attention of each selected block q learned rows that ask, and are neither keys nor
    values, so that tokens are what they are without them. What the rows become in a block is a
    summary of it; a new head reads what the old one read and every summary.

Source
    Tu et al., "Visual Query Tuning: Towards Effective Usage of Intermediate Representations for
    Parameter and Memory Efficient Transfer Learning", CVPR 2023.

Attaches to
    Blocks over one sequence of tokens that do not tell them by where they stand. The head is
    replaced, so no other clause may be about it. With heads that pool, as with MAE, the first piece
    is fc_norm(mean of patches), or what else the head reads.

Parameters
    query [q, C] per block, U(-v, v) with v = sqrt(6 / (patch numbers + C)). The head: weight
    [classes, F] and bias [classes], drawn as torch's linear layers are, with F = C + L q C, or
    C + L C with `combine` pool and weighted; weighted has combine [L, q], ones. All trained. With
    `keep` below 1 the head has kept [F], one for a feature that is read and zero for another.

Forward
    Z = [query; x], of which x alone makes keys and values; O = the q rows of what the block makes
    of Z, without a final norm. Features = [what the head read; O_1; ..; O_L]: each O row by row
    (concat), its mean over queries (pool), or sum_j combine[l, j] O[j] (weighted). With `normalise`
    each of the L + 1 pieces is divided by its length, 1e-12 at least. Dropout is on queries, in
    training only. `keep` trains, trains again with 1e-4 times the sum over features of the lengths
    of the head's columns, keeps that share of features with the longest ones, and trains a new head
    on them.

Exactness
    A new head, as any before it is trained; the tokens are bit for bit those of the model. Lowering
    takes out the features that are not kept, and queries that nothing needs any more: with concat
    and without `normalise`, those with no feature that is kept.

Example
    prepend vqt(count=1) to blocks[*]
    train head
    adds 9,216 q parameters to ViT-B/16, and a head of 9,984 columns for q = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import AttentionSite, BlockSite, HeadSite, Pass, option

if TYPE_CHECKING:
    from .selection import SelectFeatures


class SummaryQueries(nn.Module):
    """Learned rows, [batch, count, C], for a stream [batch, tokens, C]."""

    inserted_by = "vqt"

    def __init__(self, count: int, dim: int, bound: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.count, self.dim, self.bound, self.dropout = count, dim, bound, dropout
        self.query = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the queries."""
        nn.init.uniform_(self.query, -self.bound, self.bound, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The rows for each image."""
        rows = self.query.to(x.dtype).expand(x.shape[0], -1, -1)
        return F.dropout(rows, self.dropout, self.training)


class SummaryHead(nn.Module):
    """A linear layer over [x; O_1; ..; O_L], with x [batch, width] and O_l [batch, counts[l], C].

    With `selecting`, features whose `kept` is zero do not count. With `selected`, so many of the
    features are read, those in `chosen`.
    """

    inserted_by = "vqt"
    kept: torch.Tensor
    chosen: torch.Tensor

    def __init__(
        self,
        width: int,
        dim: int,
        counts: tuple[int, ...],
        classes: int,
        form: str = "concat",
        normalise: bool = True,
        selecting: bool = False,
        selected: int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.dim, self.counts, self.classes = width, dim, counts, classes
        self.form, self.normalise = form, normalise
        self.selecting, self.selected = selecting, selected
        pieces = sum(counts) if form == "concat" else len(counts)
        features = width + pieces * dim
        self.weight = nn.Parameter(torch.empty(classes, selected or features))
        self.bias = nn.Parameter(torch.empty(classes))
        if form == "weighted":
            self.combine = nn.Parameter(torch.empty(len(counts), max(counts)))
        if selecting:
            self.register_buffer("kept", torch.ones(features))
        if selected is not None:
            self.register_buffer("chosen", torch.zeros(selected, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the linear layer; queries count alike."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)
        if self.form == "weighted":
            nn.init.ones_(self.combine)

    def forward(self, x: torch.Tensor, *summaries: torch.Tensor) -> torch.Tensor:
        """The scores [batch, classes]."""
        pieces = [x, *(self.piece(i, rows) for i, rows in enumerate(summaries))]
        if self.normalise:
            pieces = [F.normalize(piece, dim=-1, eps=1e-12) for piece in pieces]
        features = torch.cat(pieces, dim=-1)
        if self.selecting:
            features = features * self.kept.to(features.dtype)
        if self.selected is not None:
            features = features[:, self.chosen]
        return F.linear(features, self.weight, self.bias)

    def piece(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """What the head reads of one block, of [batch, q, C]."""
        if self.form == "concat":
            return rows.flatten(1)
        if self.form == "pool":
            return rows.mean(1)
        return (rows * self.combine[index, :, None]).sum(1)


@dataclass(frozen=True)
class Vqt(Pass):
    """Learned queries in blocks, and a head that reads what becomes of them."""

    verbs: ClassVar[tuple[str, ...]] = ("prepend",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Tu et al., CVPR 2023"
    claims: ClassVar[tuple[str, ...]] = ()
    sole: ClassVar[str] = "readout"

    count: int = option(1, minimum=1, maximum=4096, help="queries per block, q")
    combine: str = option(
        "concat",
        choices=("concat", "pool", "weighted"),
        help="what the head reads of the queries of a block",
    )
    normalise: bool = option(True, help="whether each piece gets length one")
    dropout: float = option(0.1, minimum=0, below=1, help="on the queries, in training only")
    readout: str | None = option(
        None,
        choices=("class", "pooled"),
        help="what the head has to read besides, if that is to be stated: a class token, or what "
        "it pools",
    )
    keep: float = option(1.0, above=0, maximum=1, help="share of the features that stay")

    def procedure(self) -> SelectFeatures | None:
        """Selects features, unless all stay."""
        if self.keep == 1:
            return None
        from .selection import SelectFeatures

        return SelectFeatures(self.keep)

    def rewrite(self, block: BlockSite) -> None:
        """O = the rows behind the block; at the last one, logits = W [x; O_1; ..; O_L] + b."""
        block.expect(
            self.readout != "class" or not block.pooled,
            "readout",
            "the head reads no class token alone",
            suggestion="write readout=pooled: the first piece is what it pools",
        )
        block.expect(
            self.readout != "pooled" or block.pooled,
            "readout",
            "the head does not pool: it reads tokens in front",
            suggestion="write readout=class",
        )
        bound = math.sqrt(6 / (block.patch_features + block.dim))
        queries = SummaryQueries(self.count, block.dim, bound, self.dropout)
        block.collect(block.attn.extend_q(queries))
        if block.ends:
            for head in block.heads:
                head.replace(self.head(head, block), *block.collected)
                head.reads("head", *block.siblings)

    def head(self, head: HeadSite, block: BlockSite) -> SummaryHead:
        """The layer that stands for a head."""
        counts = (self.count,) * len(block.siblings)
        sizes = head.in_features, block.dim, counts, head.out_features
        return SummaryHead(*sizes, self.combine, self.normalise, self.keep < 1)

    def weights(self, module: nn.Module, given: Sequence[object]) -> dict[str, torch.Tensor]:
        """How long the columns are of what the old head read, and of the queries of each block."""
        if not isinstance(module, SummaryHead):
            return {}
        squares = module.weight.detach().float().square().sum(0)
        pieces = [n if module.form == "concat" else 1 for n in module.counts]
        sizes = [module.width, *(n * module.dim for n in pieces)]
        if module.selected is not None:
            squares = squares.new_zeros(sum(sizes)).scatter(0, module.chosen, squares)
        elif module.selecting:
            squares = squares * module.kept
        return {
            "norm of columns": torch.stack([p.sum().sqrt() for p in torch.split(squares, sizes)])
        }

    def lower(self, site: AttentionSite | HeadSite, module: nn.Module) -> bool:
        """Features that are not kept go, and queries of which no feature is."""
        head = site.sibling(SummaryHead)
        if head is None or not head.selecting or head.kept.is_meta:
            return False
        read = _read(head)
        if isinstance(module, SummaryHead):
            site.swap(_selected(module, read))
        elif isinstance(module, SummaryQueries):
            index = site.inserted(SummaryQueries).index(module)
            rows = read[index].nonzero()[:, 0]
            fewer = SummaryQueries(len(rows), module.dim, module.bound, module.dropout)
            fewer.query = nn.Parameter(module.query[rows], requires_grad=False)
            site.swap(fewer)
        return False


def _read(head: SummaryHead) -> list[torch.Tensor]:
    """By block, which queries are needed; one of them stays in any case.

    A mean, a sum and a length are made of all of them.
    """
    if head.form != "concat" or head.normalise:
        return [torch.ones(count, dtype=torch.bool) for count in head.counts]
    rows = head.kept[head.width :].view(-1, head.dim).any(dim=1).cpu()
    found = [part.clone() for part in torch.split(rows, list(head.counts))]
    for part in found:
        part[0] |= not part.any()
    return found


def _selected(head: SummaryHead, read: list[torch.Tensor]) -> SummaryHead:
    """The head over the features that are kept, of the queries that are there."""
    kept = head.kept.bool().cpu()
    counts = tuple(int(part.sum()) for part in read)
    there = torch.ones_like(kept)
    if head.form == "concat":
        there[head.width :] = torch.cat(read).repeat_interleave(head.dim)
    sizes = head.width, head.dim, counts, head.classes
    new = SummaryHead(*sizes, head.form, head.normalise, selected=int(kept.sum()))
    new.chosen = kept[there].nonzero()[:, 0].to(head.weight.device)
    new.weight = nn.Parameter(head.weight[:, kept.to(head.weight.device)])
    new.bias = head.bias
    if head.form == "weighted":
        new.combine = head.combine
    return new
