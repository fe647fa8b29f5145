"""Verbs of attention: its keys and values, and the one summed bias of its scores."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.canonical import canonicalise_at
from ..anatomy.explicit import write_out
from ..anatomy.sites import Attention, Block, Place
from ..editing import wiring
from ..editing.editor import after
from ..editing.evaluate import Evaluation
from ..editing.facts import Facts
from ..editing.slices import ahead, erase_unread
from ..editing.value import Value
from ..tracing import inputs
from ..tracing.about import about
from ..tracing.leaves import changed_by
from ..tracing.nodes import is_size
from ..tracing.notes import HINT, ORIGIN, ROWS, VALUE
from .base import BoundSite
from .context import Context
from .core import bias_of, filled, of_tokens, operand_of, set_operand, settle
from .room import BiasWithRoom

if TYPE_CHECKING:
    from .block import BlockSite
    from .layer import LayerSite


@dataclass(frozen=True, eq=False)
class AttentionSite(BoundSite):
    """One softmax attention, softmax(q k^T * scale + bias) v over heads."""

    attention: Attention
    owner: Block | None = None

    @classmethod
    def bind(cls, context: Context, sites: Sequence[Any]) -> list[AttentionSite]:
        """Each with the block that it is in."""
        owners = {b.attn.role: b for b in context.anatomy.blocks if b.attn is not None}
        return [cls(context, site, owners.get(site.role)) for site in sites]

    @property
    def role(self) -> str:
        """The site in words."""
        return self.attention.role

    @property
    def path(self) -> str:
        """The module that the attention is."""
        return self.attention.path

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
    def windowed(self) -> bool:
        """Whether tokens attend within windows only."""
        return self.attention.windows is not None

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.attention.heads

    @property
    def over_tokens(self) -> bool:
        """Whether every head attends over tokens: keys of shape [batch, heads, tokens, width]."""
        return self.attention.over == "tokens" and len(self._shape(1)) == 4

    @property
    def head_dim(self) -> tuple[int, int]:
        """Width of the keys and of the values of one head."""
        return self._shape(1)[-1], self._shape(2)[-1]

    @property
    def position(self) -> int:
        """The position in the stream of what it attends to."""
        return 0 if self.owner is None else 2 * self.owner.index

    @property
    def tokens(self) -> Facts:
        """What is known of the tokens that it attends to."""
        return self.context.stream.at(self.position)

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
        if not self.block.mid.is_sequence or self.windowed or not self.over_tokens:
            raise self.unfit("it does not attend over one sequence of tokens")

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

    @property
    def masked(self) -> bool:
        """Whether its scores have a mask or bias."""
        return bias_of(self._core()) is not None

    @property
    def keys(self) -> Value:
        """The keys of the tokens, [batch, heads, tokens, width]; not those that passes added."""
        core = self._core()
        return Value(Place(self._unit, of_tokens(operand_of(core, 1)).name))

    @property
    def weights(self) -> Value:
        """The softmax of the scores averaged over heads, [batch, queries, keys]."""
        unit, core = self._unit, self.editor.node(self.attention.core)
        if self.attention.form == "inserted":
            raise self.unfit("its weights are not those of a softmax over keys")
        if core.target is F.scaled_dot_product_attention:
            core = write_out(core)
            self.editor.moved[self.editor.where(self.attention.core)] = Place(unit, core.name)
        probabilities = operand_of(core, 0)
        value = Value(Place(unit, probabilities.name))
        if len(VALUE.of(probabilities).shape) == 3:
            value = value.then("unflatten", 0, (-1, self.heads))
        mean = value.then("mean", 1).read(self.editor, unit)
        HINT.put(mean, "weights")
        return Value(Place(unit, mean.name))

    # -- verbs ----------------------------------------------------------------------------------

    def become(self, module: nn.Module, *values: Value) -> None:
        """`y = module(query, key, value, *values)` instead of `y = attention(...)`.

        Query, key and value are what the layers of q, k and v read.
        """
        unit, call = self._call
        inputs: list[Any] = [call.args[i] for i in self._inputs]
        inputs += [value.read(self.editor, unit) for value in values]
        hint = str(HINT.drop(call) or self.path.rpartition(".")[2])
        owner, _, name = self.path.rpartition(".")
        new = f"{name}_{self._stem}"
        made = self.put(module, unit, inputs, (hint,), owner=owner, name=new)
        call.replace_all_uses_with(made[0])
        call.graph.erase_node(call)
        self.editor.take_out(self.path, self.clause)
        wiring.release(self.editor, unit)

    @property
    def _call(self) -> tuple[str, fx.Node]:
        """The unit that calls the attention, and the call."""
        if self.path != self._unit:
            raise self.unfit("it is no module of its own")
        unit, calls = wiring.caller(self.editor, self.path)
        if len(calls) > 1:
            raise self.unfit(f"'{self.path}' runs {len(calls)} times")
        target = calls[0].target
        return unit, next(n for n in self.editor.graph(unit).nodes if n.target == target)

    @property
    def _inputs(self) -> list[int]:
        """Which inputs of its unit the layers of q, k and v read."""
        nodes = [n for n in self.editor.graph(self._unit).nodes if n.op == "placeholder"]
        found = []
        for layer in (self.attention.q, self.attention.k, self.attention.v):
            source = None if layer is None else self.editor.node(layer.call).args[0]
            if source not in nodes:
                raise self.unfit("its q, k and v are not made of its inputs as they are")
            found.append(nodes.index(source))
        return found

    def unmask(self) -> None:
        """Every query attends to every key."""
        core = self._core()
        mask = bias_of(core)
        core.args = core.args[:3]
        core.kwargs = {k: v for k, v in core.kwargs.items() if k != "attn_mask"}
        if mask is not None:
            erase_unread(mask)

    def extend_kv(self, module: nn.Module, rows: int, *, before: bool = True) -> None:
        """`k, v = module(k, v)`, which puts rows before or behind those of the tokens.

        The bias of the scores grows with them: zero on the new rows. A module with a third output
        gives the bias of the new keys, [batch or 1, 1, 1, keys], itself.

        Args:
            module: what makes the new keys and values.
            rows: how many it adds.
            before: on which side.
        """
        core = self._core()
        k, v = operand_of(core, 1), operand_of(core, 2)
        biased = len(changed_by(module)) == 3
        hints = ("keys", "values", "bias") if biased else ("keys", "values")
        results = self.put(module, self._unit, (k, v), hints, changed=(0, 1))
        settle(core, (k, v), results)
        set_operand(core, 1, results[0])
        set_operand(core, 2, results[1])
        pads = (rows, 0) if before else (0, rows)
        mask = bias_of(core)
        if mask is not None:
            set_operand(core, 3, self._padded(mask, pads))
        old = ROWS.get(core, (0, 0))
        ROWS.put(core, (old[0] + pads[0], old[1] + pads[1]))
        if biased:
            self._add_bias(core, results[2])

    def bias_keys(self, value: Value) -> None:
        """Adds a number per token to the scores of its key, on every head and query.

        Args:
            value: [batch, tokens].
        """
        core = self._core()
        numbers = value.read(self.editor, self._unit)
        with after(core.graph, [numbers]):
            index = (slice(None), None, None)
            bias = core.graph.call_function(operator.getitem, (numbers, index))
        if self.tokens.joined:
            bias = filled(bias, of_tokens(operand_of(core, 1)))
        if any(rows := ROWS.get(core, (0, 0))):
            bias = self._padded(bias, rows)
        self._add_bias(core, bias)
        origin = ORIGIN.get(core)
        ORIGIN.put(core, f"{origin}\n{self.clause.origin}" if origin else self.clause.origin)

    def make_room(self, start: int, count: int) -> None:
        """For `count` tokens more from `start` on, the bias of the scores is zero, a mask true.

        Without a bias, or with one that is made of the tokens themselves, nothing is done.
        """
        core = self._found()
        bias = None if core is None else bias_of(core)
        if core is None or bias is None or not (axes := _by_token(bias)):
            return
        tokens = ahead([operand_of(core, i) for i in range(3)])
        if any(n in tokens for n in ahead([bias]) if n.op == "placeholder" or is_size(n)):
            return
        module = BiasWithRoom(start, count, axes)
        made = self.help(module, self._unit, (bias,), f"{self._stem}_bias", "bias")
        settle(core, (bias,), (made,))
        set_operand(core, 3, made)

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

    # -- the node that attends ------------------------------------------------------------------

    @property
    def _unit(self) -> str:
        return self.editor.where(self.attention.core).unit

    def _core(self) -> fx.Node:
        """The call of scaled_dot_product_attention, in a graph that may be edited."""
        core = self._found()
        if core is None:
            raise self.unfit("its scores are not softmax(q k^T * scale + bias)")
        return core

    def _found(self) -> fx.Node | None:
        """That call, if the attention is of its form."""
        place = self.editor.where(self.attention.core)
        node = self.editor.node(place)
        if node.target is F.scaled_dot_product_attention:
            return node
        found = canonicalise_at(self.editor.unit(place.unit), node)
        if found is not None:
            self.editor.moved[place] = Place(place.unit, found.name)
        return found

    def _shape(self, operand: int) -> tuple[int, ...]:
        value = VALUE.get(of_tokens(operand_of(self._core(), operand)))
        return tuple(value.shape) if isinstance(value, torch.Tensor) else ()

    def _add_bias(self, core: fx.Node, bias: fx.Node) -> None:
        old = bias_of(core)
        if old is not None:
            with after(core.graph, [old, bias]):
                bias = core.graph.call_function(operator.add, (old, bias))
        set_operand(core, 3, bias)

    def _padded(self, bias: fx.Node, rows: tuple[int, int]) -> fx.Node:
        value = VALUE.get(bias)
        if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
            raise self.unfit("its mask is boolean, and more keys need a bias")
        known: Any = bias.args[1] if bias.target is F.pad else ()
        if known and all(isinstance(n, int) for n in known):  # by an earlier clause: once is enough
            bias.update_arg(1, tuple(a + b for a, b in zip(known, rows, strict=True)))
            return bias
        with after(bias.graph, [bias]):
            return bias.graph.call_function(F.pad, (bias, rows))


def _by_token(bias: fx.Node) -> tuple[int, ...]:
    """The axes, from the end, along which a mask or bias is one number per token."""
    value = VALUE.get(bias)
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(axis for axis in (-2, -1) if len(shape) >= -axis and shape[axis] > 1)
