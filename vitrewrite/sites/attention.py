"""An attention as a pass gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.attended import is_per_query, softmax_of
from ..editing.editor import after
from ..editing.evaluate import Evaluation
from ..editing.passing import Passage, PlacedError, passed_of
from ..editing.queries import FusedLayer
from ..editing.value import Value
from ..tracing import inputs
from ..tracing.about import about
from ..tracing.leaves import is_inserted
from ..tracing.notes import HINT
from .context import Context
from .core import bias_of, of_tokens, operand_of
from .handing import Handing
from .replaced import ReplacedAttention

if TYPE_CHECKING:
    from .block import BlockSite
    from .layer import LayerSite


@dataclass(frozen=True, eq=False)
class AttentionSite(ReplacedAttention, Handing):
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

    def extend_q(self, module: nn.Module) -> Value:
        """`rows = module(x)` go through the block beside its tokens, x, and are not seen by them.

        They pass all that tokens pass, in the order of the block, and ask its attention; its keys
        and values are those of the tokens alone. What draws in training draws for them anew. What
        changes tokens in number is for tokens only, and weights that are read are the tokens'.

        Args:
            module: yields [batch, rows, channels] from the stream as it enters the block.

        Returns:
            The rows as they leave the block, [batch, rows, channels].

        Raises:
            RewriteError: VR410 if the block tells its tokens by where they stand, or by window.
        """
        block = self.block
        if not block.input.is_sequence or self.windowed or not self.over_tokens:
            raise self.unfit("it does not attend over one sequence of tokens")
        if block.block.cuts:
            raise self.unfit("the block tells its tokens by where they stand")
        if _convolves(self.editor.root.get_submodule(block.path)):
            raise self.unfit("the block puts its tokens on their grid")
        place = self.editor.where(block.input.place)
        if place.unit != block.output.place.unit:
            raise self.unfit("the block is not one module")
        name = self._stem
        (rows,) = self.put(
            module, place.unit, [self.editor.node(place)], ("rows",), owner=block.path, name=name
        )
        last = self._last(block)
        with after(rows.graph, [rows, last]):
            passed = rows.graph.call_function(passed_of, (rows,))
        HINT.put(passed, "asked")
        made = Place(place.unit, passed.name)
        # Behind what other clauses leave for the end: they may change what the rows pass.
        self.at_end(lambda: self.at_end(lambda: self._pass(made)))
        return Value(made)

    def _last(self, block: BlockSite) -> fx.Node:
        """What the block itself yields, whatever was put behind it."""
        place = block.output.place
        known = (n for n in self.editor.graph(place.unit).nodes if n.name == place.node)
        return next(known, None) or self.editor.node(place)

    def _pass(self, made: Place) -> None:
        """Takes rows through the block as all clauses have left it."""
        block, core = self.block, self._core()
        nodes = {n.name: n for n in self.editor.graph(made.unit).nodes}
        passed = nodes.get(made.node)
        if passed is None:  # nobody reads them
            return
        if softmax_of(core) is not None:
            raise self.unfit("another clause makes its weights, for tokens that ask only")
        bias = bias_of(core)
        if bias is not None and is_per_query(bias):
            raise self.unfit("its scores have a bias or mask that differs between queries")
        sizes = [self.editor.where(size.place) for _, size, _ in self.context.stream.sizes()]
        skipped = {self.editor.node(p).args[0] for p in sizes if p.unit == made.unit}
        passage = Passage(self.editor, core, self._unit, skipped, self._fused)  # type: ignore[arg-type]
        rows, source = passed.args[0], self.editor.node(block.input.place)
        assert isinstance(rows, fx.Node)
        try:
            result = passage.through(made.unit, {source: rows}, self._last(block))
        except PlacedError as why:
            raise self.unfit(f"its rows cannot pass the block: {why}") from None
        HINT.put(result, "asked")
        passed.replace_all_uses_with(result)
        passed.graph.erase_node(passed)
        self.editor.moved[made] = Place(made.unit, result.name)

    @property
    def _fused(self) -> FusedLayer | None:
        """The layer that makes its queries, if it makes keys and values too."""
        layer, query = self.attention.qkv, self.attention.q
        if layer is None or query is None or query.rows is None or query.call.unit != self._unit:
            return None
        call = self.editor.node(query.call)
        unit = self.editor.unit(self._unit)
        module = unit.get_submodule(str(call.target)) if call.op == "call_module" else None
        if not isinstance(module, nn.Linear):
            return None
        return FusedLayer(call, query.rows, self.heads, module.bias is not None)

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


def _convolves(module: nn.Module) -> bool:
    """Whether a part of the model, but for what passes put in, mixes tokens by where they are."""
    if is_inserted(module):
        return False
    found = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return found or any(map(_convolves, module.children()))
