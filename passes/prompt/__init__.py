"""Visual prompts: learned tokens in front of the patches, shallow or new in every block.

What it does
    Puts M learned tokens behind the class token (and registers) at the input of the first selected
    block. At each further selected block new ones replace what has become of them: `blocks[0]` is
    VPT-shallow, `blocks[*]` is VPT-deep.
    Readout `class`: the head reads class token and registers, as it is. `all`: its pooling sees the
    prompts too, as with MAE; the default for heads that pool, or that return all tokens.
    `patches`: the prompts are taken out behind the last block.

Source
    Jia et al., "Visual Prompt Tuning", ECCV 2022. Masks: Han et al., E2VPT, ICCV 2023, section 3.3.

Attaches to
    Blocks of a model whose stream is a sequence of tokens. Prompts have no positions: rotary ones
    leave them alone like class and registers, a relative bias is 0 for them. Without a class token
    they stand in front. Blocks that work on a class token alone (CaiT's last) get none.

Parameters
    prompt [M, C] per block, U(-v, v) with v = sqrt(6 / (patch numbers + C)), the numbers of one
    patch being 3 * P * P and C in v the width of the stem. With `masks`: token_mask [M] and
    segment_mask [M, R], ones, one of each for all blocks. All trained.

Forward
    x = [class; P; patches], P[k, j] = prompt[k, j] * segment_mask[k, j mod R] * token_mask[k].
    Segments are strided as in the authors' code, or contiguous. Prompts have no position embedding.
    Dropout is on prompts only.

Exactness
    Deep prompts whose outputs nobody reads lower exactly to constant keys and values, k(norm1(P))
    and v(norm1(P)); rows that the masks made zero become one row with + log m on its score. On
    ViT-B/16 10 prompts cost 18.49 GMAC, lowered 17.60. Shallow prompts evolve and stay.

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

from vitrewrite.authoring import AttentionSite, BlockSite, Pass, option

if TYPE_CHECKING:
    from .pruning import PruneAndRewind


class Prompt(nn.Module):
    """Puts learned tokens into [batch, tokens, C] at `start`, or in place of those there."""

    inserted_by = "prompt"
    changes = (0,)

    def __init__(
        self, count: int, dim: int, start: int, bound: float, replace: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.count, self.dim, self.start, self.bound = count, dim, start, bound
        self.replace, self.dropout = replace, dropout
        self.prompt = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the prompts."""
        nn.init.uniform_(self.prompt, -self.bound, self.bound, generator=generator)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens with the prompts; mask is [count, C]."""
        rows = self.prompt if mask is None else self.prompt * mask
        rows = F.dropout(rows.to(x.dtype).expand(x.shape[0], -1, -1), self.dropout, self.training)
        behind = self.start + self.count if self.replace else self.start
        return torch.cat([x[:, : self.start], rows, x[:, behind:]], dim=1)


class PromptMasks(nn.Module):
    """One mask for the prompts of all blocks, [count, C]: of segments times of whole prompts."""

    inserted_by = "prompt"

    def __init__(self, count: int, segments: int, dim: int, strided: bool = True) -> None:
        super().__init__()
        self.count, self.segments, self.dim, self.strided = count, segments, dim, strided
        self.token_mask = nn.Parameter(torch.ones(count))
        self.segment_mask = nn.Parameter(torch.ones(count, segments))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Ones, so that nothing is masked."""
        nn.init.ones_(self.token_mask)
        nn.init.ones_(self.segment_mask)

    def forward(self) -> torch.Tensor:
        """The mask."""
        width = self.dim // self.segments
        if self.strided:
            segments = self.segment_mask.repeat(1, width)
        else:
            segments = self.segment_mask.repeat_interleave(width, dim=1)
        return segments * self.token_mask[:, None]


class WithoutPrompts(nn.Module):
    """Takes the prompts out of [batch, tokens, C]."""

    inserted_by = "prompt"
    changes = (0,)

    def __init__(self, count: int, start: int) -> None:
        super().__init__()
        self.count, self.start = count, start

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """It has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The other tokens."""
        return torch.cat([x[:, : self.start], x[:, self.start + self.count :]], dim=1)


class WithPromptBias(nn.Module):
    """Zeros in a bias of scores, [.., queries, keys], where prompts are; True in a mask."""

    inserted_by = "prompt"
    changes = (0,)

    def __init__(self, count: int, start: int, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.count, self.start, self.axes = count, start, axes

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """It has none."""

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """The bias with rows and columns for the prompts."""
        for axis in self.axes:
            front = bias.narrow(axis, 0, self.start)
            behind = bias.narrow(axis, self.start, bias.shape[axis] - self.start)
            shape = list(bias.shape)
            shape[axis] = self.count
            new = bias.new_full(shape, bias.dtype == torch.bool)
            bias = torch.cat([front, new, behind], dim=axis)
        return bias


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
        choices=("class", "patches", "all"),
        help="what the head sees: no prompts as it is, none as they go, or all; "
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
        tokens, start = block.input.tokens, self.start(block)
        if (self.prune_tokens or self.prune_segments) and not self.masks:
            raise block.reject("masks", "pruning needs masks", suggestion="write masks=true")
        if self.prune_tokens:
            block.warn(
                "a mask of whole prompts acts on attention only through the eps of norm1: with "
                "prompts far above it their ranking is rounding noise, that of segments is not"
            )
        bound = math.sqrt(6 / (block.patch_features + block.stem_dim))
        deep = block.role != block.siblings[0]
        if deep and self.other_stream(block):
            block.warn(f"no prompts for '{block.role}': its stream is the class token alone")
            return
        prompt = Prompt(self.count, block.dim, start, bound, deep, self.dropout)
        masks = [block.shared("masks", lambda: self.new_masks(block))] if self.masks else []
        block.input.insert(prompt, *masks)
        if self.evolve(block):
            block.waive("lowers_exactly", "what becomes of its prompts is read later on")
        if deep:
            return
        block.at_end(lambda: self.waive_observed(block))
        block.input.become(prefix=tokens.prefix + self.count)
        for one in [block, *block.following]:
            self.make_room(one, start)
        if self.reading(block) == "patches":
            last = [block, *block.following][-1]
            last.output.insert(WithoutPrompts(self.count, start))
            last.output.become(prefix=tokens.prefix)
            if self.evolve(block):
                last.waive("lowers_exactly", "prompts that stayed are taken out there")

    def make_room(self, block: BlockSite, start: int) -> None:
        """The prompts belong to the tokens in front, which have no positions."""
        if self.other_stream(block):
            return
        block.lengthen_prefix(start, self.count)
        if block.has_attention and (axes := block.attn.bias_axes):
            block.attn.pad_bias(WithPromptBias(self.count, start, axes))

    def lower(self, site: BlockSite | AttentionSite, module: nn.Module) -> bool:
        """Deep prompts become k(norm1(P)) and v(norm1(P))."""
        block = site if isinstance(site, BlockSite) else site.block
        if self.evolve(block) or block.waives("lowers_exactly"):
            return False
        if isinstance(module, Prompt):
            masks = block.sibling(PromptMasks)
            rows, same = _distinct(module.prompt if masks is None else module.prompt * masks())
            k, v = block.attn.keys_and_values(block.inserted_at, rows, module.start)
            block.drop()
            block.lengthen_prefix(module.start, -self.count)
            heads, count, width = k.shape
            constant = ConstantRows(heads, count, (width, v.shape[-1]), same > 1)
            constant.k, constant.v = k, v
            if same > 1:
                constant.bias[-1] = math.log(same)
            block.attn.extend_kv(constant, count)
        elif isinstance(module, (WithoutPrompts, WithPromptBias)):
            block.drop()
        return not isinstance(module, PromptMasks)

    def waive_observed(self, block: BlockSite) -> None:
        """Prompts stay tokens if another clause sees them as queries: rows beside keys are none."""
        known = block.context.anatomy.blocks
        blocks = [BlockSite(block.context, b) for b in known if b.role in block.siblings]
        if any(b.has_attention and b.attn.observed for b in blocks):
            for each in blocks:
                each.waive("lowers_exactly", "the weights of its attention are read")

    def evolve(self, block: BlockSite) -> bool:
        """Whether some prompts reach a block without new ones, or are pooled."""
        behind = block.context.anatomy.blocks[-len(block.siblings) :]
        late = any(self.other_stream(b) for b in block.following)
        return (
            late or self.reading(block) == "all" or tuple(b.role for b in behind) != block.siblings
        )

    def other_stream(self, block: BlockSite) -> bool:
        """Whether it works on the class token alone, as CaiT's last blocks do."""
        return block.tokens == 1 < (block.context.anatomy.blocks[0].tokens or 1)

    def reading(self, block: BlockSite) -> str:
        """What the head reads: the card's readout for heads that pool, unless one is stated."""
        if self.readout is not None:
            return self.readout
        read = block.context.anatomy.stream.readout
        return "all" if read is None else "class"

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """The tensors as the method names them."""
        return [{**dict(module.named_parameters()), **dict(module.named_buffers())}]

    def new_masks(self, block: BlockSite) -> PromptMasks:
        """The masks, which must divide the channels evenly and leave something to prune."""
        if self.prune_tokens and self.count < 2:
            raise block.reject("prune_tokens", "a single prompt cannot be pruned")
        if self.prune_segments and self.segments < 5:
            raise block.reject("prune_segments", f"4 of {self.segments} segments have to stay")
        if block.dim % self.segments:
            valid = ", ".join(str(n) for n in range(1, 33) if block.dim % n == 0)
            raise block.reject(
                "segments", f"{block.dim} channels are not {self.segments} equal segments",
                notes=[f"valid: {valid}"],
            )  # fmt: skip
        return PromptMasks(self.count, self.segments, block.dim, self.layout == "strided")

    def start(self, block: BlockSite) -> int:
        """How many tokens stand in front of the prompts."""
        known = block.input.tokens.prefix
        first = known - (self.count if block.role != block.siblings[0] else 0)
        if not block.input.is_sequence:
            raise block.unfit("its stream is no sequence of tokens")
        if other := block.cause("prefix"):
            raise block.unfit("there are prompts already", notes=[f"put there by: {other}"])
        start = first if self.position is None else self.position
        if start > first:
            raise block.reject("position", f"only {first} tokens stand before the patches")
        self.check_readout(block, start)
        return start

    def check_readout(self, block: BlockSite, start: int) -> None:
        """What the head reads must stay where it is."""
        stream, reading = block.context.anatomy.stream, self.reading(block)
        if reading != "patches" and max(stream.bounds, default=0) > start:
            raise block.reject(
                "readout" if self.position is None else "position",
                f"the head tells tokens 0..{max(stream.bounds) - 1} by their position, and prompts "
                f"in front would move them",
                suggestion="write readout=patches to take the prompts out behind the last block",
            )
        if reading == "class" and stream.readout is None:
            raise block.reject(
                "readout", "the head reads more than the tokens in front of the prompts",
                suggestion="write readout=patches to take the prompts out behind the last block, "
                "or readout=all to pool them too",
            )  # fmt: skip


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows with those that are all zero as one at the end, and how many that one stands for."""
    if rows.is_meta:
        return rows, 0
    zero = (rows == 0).all(dim=1)
    same = int(zero.sum())
    return (torch.cat([rows[~zero], rows[zero][:1]]), same) if same else (rows, 0)
