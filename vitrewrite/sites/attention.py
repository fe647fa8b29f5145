"""An attention as a pass gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..anatomy.sites import Place
from ..editing.evaluate import Evaluation
from ..tracing import inputs
from ..tracing.about import about
from .asked import AskedAttention
from .context import Context
from .core import of_tokens, operand_of
from .handing import Handing

if TYPE_CHECKING:
    from .block import BlockSite
    from .layer import LayerSite


@dataclass(frozen=True, eq=False)
class AttentionSite(AskedAttention, Handing):
    """One softmax attention, softmax(q k^T * scale + bias) v over heads."""

    @classmethod
    def bind(cls, context: Context, sites: Sequence[Any]) -> list[AttentionSite]:
        """Each with the block that it is in."""
        owners = {b.attn.role: b for b in context.anatomy.blocks if b.attn is not None}
        return [cls(context, site, owners.get(site.role)) for site in sites]

    @property
    def block(self) -> BlockSite:
        """The block that it is in."""
        from .block import BlockSite

        if self.owner is None:
            raise self.unfit("it is in no block")
        return BlockSite(self.context, self.owner)

    @property
    def layer(self) -> LayerSite:
        """The layer of a decoder whose cross-attention it is."""
        from .decoder import DecoderSite

        found = self.context.anatomy.decoder
        site = None if found is None else DecoderSite(self.context, found)
        for layer in () if site is None else site.layers:
            if layer.layer.cross_attn.role == self.role:
                return layer
        raise self.unfit("it attends to no feature map of a decoder")

    @property
    def dim(self) -> int:
        """Channels of what it yields."""
        if self.attention.proj is None:
            raise self.unfit("no linear layer follows it")
        return self.attention.proj.out_features

    @property
    def full_grid(self) -> tuple[int, int]:
        """Height and width in patches of what it attends to and what is behind it in the block.

        Raises:
            RewriteError: VR410 if that is not a whole grid, or if later parts need it.
        """
        self.expect_sequence()
        grid = self.block.mid.tokens.grid
        if grid is None:
            by = self.block.cause("grid")
            notes = [f"merged by: {by}"] if by else []
            raise self.unfit("no full grid of patches is left there", notes=notes)
        self.expect_free()
        return grid

    def expect_sequence(self) -> None:
        """Raises VR410 unless all attend to one sequence of tokens."""
        windows, why = self.attention.windows, ""
        if windows is not None:
            why = f", but within windows of {windows[0]}x{windows[1]}, which need the whole grid"
        elif not self.block.mid.is_sequence:
            why = ", but to a map of the patches, which other blocks need whole"
        elif self.over_tokens:
            return
        raise self.unfit(f"it does not attend over one sequence of tokens{why}")

    def expect_free(self) -> None:
        """Raises VR410 if later parts need the tokens where they are, those in front excepted."""
        self.block.mid.expect_sizes()
        stream = self.context.anatomy.stream
        if len(self.context.anatomy.stages) > 1:
            raise self.unfit("later stages of the model need the grid of patches")
        if stream.suffix_tokens:
            raise self.unfit("there are other tokens behind the patches")
        if max(stream.bounds, default=0) > stream.prefix_tokens:
            raise self.unfit("the head tells tokens by their position that are no prefix")

    def expect_class(self) -> None:
        """Raises VR410 unless the head reads the token in front, a class token."""
        stream = self.context.anatomy.stream
        if not stream.prefix_tokens or 0 not in (stream.readout or ()):
            raise self.unfit("the head reads no class token in front of the patches")

    # -- verbs ----------------------------------------------------------------------------------

    def keys_and_values(
        self, at: Place, rows: torch.Tensor, start: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At lowering: the keys and values that tokens at a place of the stream have.

        Args:
            at: a place in the block, before the attention.
            rows: [tokens, channels].
            start: how many other tokens stand in front of them.

        Returns:
            Keys and values, each [heads, tokens, width].

        Raises:
            RewriteError: VR410 if they hang on the other tokens, or on the image.
        """
        fills = (0.0,) if rows.is_meta else (0.0, 1.0)
        found = [self._seen(at, rows, start, fill) for fill in fills]
        if any(not torch.equal(*pair) for pair in zip(*found, strict=True) if len(pair) > 1):
            raise self.unfit("the keys of the tokens in front hang on the image")
        return found[0]

    def _seen(
        self, at: Place, rows: torch.Tensor, start: int, fill: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of rows among as many tokens as there are, all filled with one number.

        Rows alone would be another model's: positions are given to tokens by where they stand.
        """
        core, count = self._core(), self.owner.tokens if self.owner else None
        stream = self.context.stream
        left = stream.known(self.position)
        if count and left.size is not None and left.patches is not None:
            count += left.patches - (stream.start.patches or 0)
        others = rows.new_full((count or start, rows.shape[1]), fill)
        given = {at: torch.cat([others[:start], rows, others[start:]])[None]}
        run = Evaluation(self.editor, given | self._image(rows, fill))
        k, v = (run.value(self._unit, of_tokens(operand_of(core, i)))[0] for i in (1, 2))
        return k[:, start : start + len(rows)], v[:, start : start + len(rows)]

    def _image(self, like: torch.Tensor, fill: float) -> dict[Place, torch.Tensor]:
        """The inputs of the model, all filled with one number: what is made of their size runs."""
        args, kwargs = inputs.as_arguments(about(self.editor.root).example)
        nodes = [n for n in self.editor.graph("").nodes if n.op == "placeholder"]
        return {
            Place("", node.name): torch.full_like(value, fill, device=like.device)
            for node, value in zip(nodes, (*args, *kwargs.values()), strict=False)
        }
