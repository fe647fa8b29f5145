"""Visual prompts: learned tokens in front of the patches, shallow or new in every block.

What it does
    Puts M learned tokens behind the class token (and registers) at the input of the first selected
    block. At each further selected block new ones replace what has become of them: `blocks[0]` is
    VPT-shallow, `blocks[*]` is VPT-deep.
    Readout `class`: the head reads class token and registers, as it is. `all`: its pooling sees the
    prompts too, as with MAE; the default for heads that pool, or that return all tokens.
    `patches`: the prompts are taken out behind the last block. `prompts`: all else is, and the head
    pools prompts alone.
    In Swin they go beside the map: in front of the tokens of each window, their mean over the
    windows of an image behind it, and four times side by side where patches merge.

Source
    Jia et al., "Visual Prompt Tuning", ECCV 2022. Masks: Han et al., E2VPT, ICCV 2023, section 3.3.

Attaches to
    Blocks of a model whose stream is a sequence of tokens. Prompts have no positions: rotary ones
    leave them alone like class and registers, a relative bias is 0 for them. Without a class token
    they stand in front. Blocks that work on a class token alone (CaiT's last) get none. Blocks of
    Swin (V2 too), of maps that are cut into whole windows.

Parameters
    prompt [M, C] per block, U(-v, v) with v = sqrt(6 / (patch numbers + C)), the numbers of one
    patch being 3 * P * P and C in v the width of the stem. With `masks`: token_mask [M] and
    segment_mask [M, R], ones, one of each for all blocks. With `project` prompts are [M, q], and
    each block has project.weight [C, q], Kaiming-normal by fan-out, and project.bias [C], zero. All
    trained.

Forward
    x = [class; P; patches], P[k, j] = prompt[k, j] * segment_mask[k, j mod R] * token_mask[k].
    Segments are strided as in the authors' code, or contiguous. Prompts have no position embedding.
    Dropout is on prompts only.
    In windows: softmax over [P; window], a relative bias and the mask of shifted windows being 0 on
    the rows and columns of P; P' = P + the mean over the windows of an image, P'' = P' + mlp(P'),
    norms as for the map; where patches merge, reduction(norm([P, P, P, P])). New prompts replace
    them as above. Masks are for the prompts of the first block alone. The head's mean is over map
    and prompts (`all`, the default), `prompts` or `patches`.

Exactness
    Deep prompts whose outputs nobody reads lower exactly to constant keys and values, k(norm1(P))
    and v(norm1(P)); rows that the masks made zero become one row with + log m on its score. On
    ViT-B/16 10 prompts cost 18.49 GMAC, lowered 17.60. Shallow ones evolve and stay, as do those in
    windows.

Example
    prepend prompt(count=10) to blocks[*]
    adds 9,216 parameters per prompt to ViT-B/16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BlockSite, Pass, Value, option

if TYPE_CHECKING:
    from .pruning import PruneAndRewind


class Prompt(nn.Module):
    """Puts learned tokens into [batch, tokens, C] at `start`, or in place of those there."""

    inserted_by = "prompt"
    changes = (0,)

    def __init__(
        self,
        count: int,
        dim: int,
        start: int,
        bound: float,
        replaced: int,
        dropout: float = 0.0,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.count, self.dim, self.start, self.bound = count, dim, start, bound
        self.replaced, self.dropout, self.width = replaced, dropout, width
        self.prompt = nn.Parameter(torch.empty(count, width or dim))
        self.project = None if width is None else nn.Linear(width, dim)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the prompts, and their projection."""
        nn.init.uniform_(self.prompt, -self.bound, self.bound, generator=generator)
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.weight, mode="fan_out", generator=generator)
            nn.init.zeros_(self.project.bias)

    def rows(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The prompts in the width of the stream, [count, C]."""
        rows = self.prompt if self.project is None else self.project(self.prompt)
        return rows if mask is None else rows * mask

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens with the prompts; mask is [count, C]."""
        rows = self.rows(mask).to(x.dtype).expand(x.shape[0], -1, -1)
        rows = F.dropout(rows, self.dropout, self.training)
        behind = self.start + self.replaced
        return torch.cat([x[:, : self.start], rows, x[:, behind:]], dim=1)


class PromptRows(nn.Module):
    """Learned rows, [batch, count, C], beside a map [batch, height, width, C]."""

    inserted_by = "prompt"

    def __init__(
        self, count: int, dim: int, bound: float, dropout: float = 0.0, width: int | None = None
    ) -> None:
        super().__init__()
        self.count, self.dim, self.bound = count, dim, bound
        self.dropout, self.width = dropout, width
        self.prompt = nn.Parameter(torch.empty(count, width or dim))
        self.project = None if width is None else nn.Linear(width, dim)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the prompts, and their projection."""
        nn.init.uniform_(self.prompt, -self.bound, self.bound, generator=generator)
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.weight, mode="fan_out", generator=generator)
            nn.init.zeros_(self.project.bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The prompts of each image; mask is [count, C]."""
        rows = self.prompt if self.project is None else self.project(self.prompt)
        rows = rows if mask is None else rows * mask
        return F.dropout(rows.to(x.dtype).expand(x.shape[0], -1, -1), self.dropout, self.training)


class PromptMasks(nn.Module):
    """One mask for the prompts of all blocks, [count, C]: of segments times of whole prompts."""

    inserted_by = "prompt"

    def __init__(self, count: int, segments: int, dim: int, strided: bool = True) -> None:
        super().__init__()
        self.count, self.segments, self.dim, self.strided = count, segments, dim, strided
        self.token_mask = nn.Parameter(torch.ones(count))
        self.segment_mask = nn.Parameter(torch.ones(count, segments))

    def forward(self) -> torch.Tensor:
        """The mask."""
        width = self.dim // self.segments
        if self.strided:
            segments = self.segment_mask.repeat(1, width)
        else:
            segments = self.segment_mask.repeat_interleave(width, dim=1)
        return segments * self.token_mask[:, None]


class ConstantRows(nn.Module):
    """What deep prompts are to an attention: constant keys and values before those of the tokens.

    With `weighted`, `bias` is added to the scores of the rows: one row can stand for several.
    """

    inserted_by = "prompt"
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor

    def __init__(self, heads: int, rows: int, widths: tuple[int, int], weighted: bool) -> None:
        super().__init__()
        self.heads, self.rows, self.widths, self.weighted = heads, rows, widths, weighted
        self.changes = (0, 1, None) if weighted else (0, 1)
        self.register_buffer("k", torch.zeros(heads, rows, widths[0]))
        self.register_buffer("v", torch.zeros(heads, rows, widths[1]))
        if weighted:
            self.register_buffer("bias", torch.zeros(rows))

    def forward(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values with the rows, and the bias of all keys if there is one."""
        rows = (r.to(k.dtype).expand(k.shape[0], -1, -1, -1) for r in (self.k, self.v))
        grown = tuple(torch.cat(pair, dim=2) for pair in zip(rows, (k, v), strict=True))
        if self.weighted:
            return *grown, F.pad(self.bias.to(k.dtype), (0, k.shape[2]))[None, None, None]
        return grown


class HeldRows(nn.Module):
    """The same for what puts rows of another clause beside the keys: [heads, rows, width] each."""

    inserted_by = "prompt"
    k: torch.Tensor
    v: torch.Tensor

    def __init__(self, heads: int, rows: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.rows, self.widths = heads, rows, widths
        self.register_buffer("k", torch.zeros(heads, rows, widths[0]))
        self.register_buffer("v", torch.zeros(heads, rows, widths[1]))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        return self.k, self.v


@dataclass(frozen=True)
class VisualPrompt(Pass):
    """Learned tokens in front of the patches."""

    verbs: ClassVar[tuple[str, ...]] = ("prepend",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Jia et al., ECCV 2022; Han et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    writes: ClassVar[tuple[str, ...]] = ("prefix",)

    count: int = option(10, minimum=1, help="prompts per block, M")
    dropout: float = option(0.0, minimum=0, below=1, help="on the prompts, in training only")
    project: int | None = option(
        None, minimum=1, maximum=65536, help="width of the prompts, projected to that of the stream"
    )
    masks: bool = option(False, help="trained masks of whole prompts and of segments (E2VPT)")
    segments: int = option(8, minimum=1, needs="masks", help="segments of a prompt, R")
    layout: str = option(
        "strided",
        choices=("strided", "contiguous"),
        needs="masks and segments > 1",
        help="which channels are one segment",
    )
    position: int | None = option(
        None,
        minimum=0,
        help="tokens in front of them; class and registers by default, if there are any",
    )
    readout: str | None = option(
        None,
        choices=("class", "patches", "all", "prompts"),
        help="what the head sees: no prompts as it is, none as they go, all, or prompts alone; "
        "class by default, all where the head pools",
    )

    prune_tokens: tuple[int, ...] = option(
        (), minimum=0, maximum=99, help="percents of prompts to try masked, when trained (E2VPT)"
    )
    prune_segments: tuple[int, ...] = option(
        (), minimum=0, maximum=99, help="percents of each prompt's segments to try masked"
    )
    importance: str = option(
        "signed",
        choices=("signed", "absolute"),
        needs="prune_tokens or prune_segments",
        help="gradient per batch, or its size per sample",
    )

    def procedure(self) -> PruneAndRewind | None:
        """Prunes and retrains, if any level is to be tried."""
        if not (self.prune_tokens or self.prune_segments):
            return None
        from .pruning import PruneAndRewind

        signed = self.importance == "signed"
        return PruneAndRewind(self.prune_tokens, self.prune_segments, signed)

    def rewrite(self, block: BlockSite) -> None:
        """x = [class; P; patches], and at every further block P anew."""
        if not (block.leads or block.has_patches):
            block.warn(f"no prompts for '{block.role}': its stream is the class token alone")
            return
        if block.in_windows:
            self.accompany(block)
            return
        start, masks = self.start(block), self.shared_masks(block)
        bound = math.sqrt(6 / (block.patch_features + block.stem_dim))
        old = 0 if block.leads else block.joined
        sizes = self.count, block.dim, start, bound, old, self.dropout, self.project
        block.input.join(Prompt(*sizes), *masks, start=start, count=self.count)
        last = (block, *block.following)[-1]
        if block.ends and self.reading(block) == "patches":
            last.output.leave(start, self.count)
        if block.ends and self.reading(block) == "prompts":
            last.output.leave_behind(start + self.count)
        if self.evolve(block):
            block.waive("lowers_exactly", "what becomes of its prompts is read later on")
        if block.leads:
            block.at_end(lambda: self.waive_observed(block))

    def accompany(self, block: BlockSite) -> None:
        """Prompts beside a map, in front of the tokens of each of its windows."""
        reading, help_ = self.readout or "all", "readout=all, prompts or patches"
        has_none = "the model has no class token"
        block.expect(reading != "class", "readout", has_none, suggestion=help_)
        block.expect(self.position is None, "position", "prompts stand in front in every window")
        masks = self.shared_masks(block) if block.leads else []
        bound = math.sqrt(6 / (block.patch_features + block.stem_dim))
        rows = PromptRows(self.count, block.dim, bound, self.dropout, self.project)
        pooled = {"prompts": "rows", "patches": "map"}.get(reading, "all")
        block.accompany(rows, *masks, pooled=pooled)
        block.waive("lowers_exactly", "prompts are in windows and in what the head reads")

    def lower(self, block: BlockSite, module: nn.Module) -> bool:
        """Deep prompts become k(norm1(P)), v(norm1(P)); m rows of zeros are one, with + log m."""
        if not isinstance(module, Prompt) or block.waives("lowers_exactly"):
            return False
        masks = block.sibling(PromptMasks)
        rows, same = _distinct(module.rows() if masks is None else module.rows(masks()))
        k, v = block.attn.keys_and_values(block.inserted_at, rows, module.start)
        block.take_back(module.start, module.count)
        heads, count, widths = *k.shape[:2], (k.shape[2], v.shape[2])
        if same <= 1 and block.attn.takes_rows:
            held = HeldRows(heads, count, widths)
            held.k, held.v = k, v
            block.attn.give_rows(held, count)
            return True
        constant = ConstantRows(heads, count, widths, same > 1)
        constant.k, constant.v = k, v
        if same > 1:
            constant.bias[-1] = math.log(same)
        block.attn.extend_kv(constant, count)
        return True

    def waive_observed(self, block: BlockSite) -> None:
        """Prompts stay tokens if another clause sees them as queries: rows beside keys are none."""
        blocks = [b for b in (block, *block.following) if b.role in block.siblings]
        if any(b.observed for b in blocks):
            for each in blocks:
                each.waive("lowers_exactly", "the weights of its attention are read")

    def evolve(self, block: BlockSite) -> bool:
        """Whether some prompts reach a block without new ones, or are pooled."""
        return not block.reaches_end or self.reading(block) in ("all", "prompts")

    def reading(self, block: BlockSite) -> str:
        """What the head reads: the card's readout for heads that pool, unless one is stated."""
        return self.readout or ("all" if block.pooled else "class")

    def start(self, block: BlockSite) -> int:
        """How many tokens stand in front of prompts; what the head reads has to stay there."""
        front, reading = block.own_prefix, self.reading(block)
        start, stated = (front, "readout") if self.position is None else (self.position, "position")
        take_out = "write readout=patches to take the prompts out behind the last block"
        block.expect(start <= front, "position", f"only {front} tokens stand before the patches")
        block.expect(
            reading == "patches" or block.told_apart <= start,
            stated,
            f"the head tells tokens 0..{block.told_apart - 1} by their position, and "
            "prompts in front would move them",
            suggestion=take_out,
        )
        block.expect(
            reading != "prompts" or block.pooled,
            "readout",
            "the head does not pool: it reads tokens in front of the prompts",
            suggestion="a model that pools, such as one built with global_pool='avg'",
        )
        block.expect(
            reading != "class" or not block.pooled,
            "readout",
            "the head reads more than the tokens in front of the prompts",
            suggestion=f"{take_out}, or readout=all to pool them too",
        )
        return start

    def shared_masks(self, block: BlockSite) -> list[Value]:
        """One mask for the prompts of all blocks, if any, which leaves something to prune."""
        pruning, help_ = self.prune_tokens or self.prune_segments, "write masks=true"
        block.expect(self.masks or not pruning, "masks", "pruning needs masks", suggestion=help_)
        if not self.masks:
            return []
        block.expect(
            block.leads or block.in_windows or block.joined == self.count,
            "count",
            f"one mask is for all blocks, and there are {block.joined} prompts before it",
            suggestion="one count for all blocks, or masks=false",
        )
        if self.prune_tokens:
            block.expect(self.count > 1, "prune_tokens", "a single prompt cannot be pruned")
            block.warn(
                "a mask of whole prompts acts on attention only through the eps of norm1: with "
                "prompts far above it their ranking is rounding noise, that of segments is not"
            )
        rest = f"4 of {self.segments} segments have to stay"
        block.expect(self.segments > 4 or not self.prune_segments, "prune_segments", rest)
        uneven = f"{block.dim} channels are not {self.segments} equal segments"
        valid = f"valid: {', '.join(str(n) for n in range(1, 33) if block.dim % n == 0)}"
        block.expect(block.dim % self.segments == 0, "segments", uneven, notes=[valid])
        options = self.count, self.segments, block.dim, self.layout == "strided"
        return [block.shared("masks", lambda: PromptMasks(*options))]

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """Constant keys and values too, once prompts are these."""
        return [{**dict(module.named_parameters()), **dict(module.named_buffers())}]


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows with those that are all zero as one at the end, and how many that one stands for."""
    if rows.is_meta:
        return rows, 0
    zero = (rows == 0).all(dim=1)
    same = int(zero.sum())
    return (torch.cat([rows[~zero], rows[zero][:1]]), same) if same else (rows, 0)
