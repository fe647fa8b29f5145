"""Verbs of the scores of an attention, and of the keys and values that they weigh."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.attended import (
    STAND_INS,
    scores_of,
    softmax_of,
    stand,
    stand_row,
    standing,
    weights_of,
)
from ..editing.editor import after
from ..editing.slices import ahead, erase_unread
from ..editing.value import Value
from ..tracing.leaves import run_leaf
from ..tracing.nodes import is_size
from ..tracing.notes import HELD, HINT, ORIGIN, PAIRS, ROWS, SOFTMAX, VALUE, WRITTEN
from .beside_keys import RowsBesideSite
from .core import add_bias, before_rows, bias_of, filled, of_tokens, operand_of, set_operand, settle
from .growing import GrownScores
from .room import BiasWithRoom

_PASSING = (F.dropout, "to", "type_as", "float")
_SOFTMAX = ("softmax", torch.softmax, F.softmax)


@dataclass(frozen=True, eq=False)
class ScoresSite(RowsBesideSite):
    """An attention whose scores, softmax, keys and values a pass changes or reads."""

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
        """The weights averaged over heads, [batch, queries, keys]; see `weights_per_head`."""
        mean = self.weights_per_head.then("mean", 1).read(self.editor, self._unit)
        HINT.put(mean, "weights")
        return Value(Place(self._unit, mean.name))

    @property
    def weights_per_head(self) -> Value:
        """What the softmax makes of the scores, [batch, heads, queries, keys], before dropout.

        Of the keys of all tokens that are there when all clauses are through, and of what another
        clause has in place of the softmax; not of rows that passes put beside keys. In windows the
        batch is that of all windows.
        """
        if self.attention.form == "inserted":
            raise self.unfit("its weights are not those of a softmax over keys")
        core = self._found()
        if core is None:
            weights = self._written
        else:
            core = self._scored()
            weights = stand(core, weights_of, of_tokens(operand_of(core, 1)), "weights")
        value = Value(Place(self._unit, weights.name))
        if len(VALUE.of(weights).shape) == 3:
            value = value.then("unflatten", 0, (-1, self.heads))
        return value

    def weights_of(self, token: int) -> Value:
        """The weights of one query on the tokens, averaged over heads: [batch, keys].

        As `weights` has them, and the attention stays one fused call, unless something else makes
        or reads its weights as a whole: one row of scores is computed beside it.

        Args:
            token: which query, such as 0 for the class token.

        Raises:
            RewriteError: VR410 if the attention is of another form, or not over one sequence.
        """
        if self._found() is None:
            return self.weights_per_head.then("select", 2, token).then("mean", 1)
        core = self._scored()
        if not self.over_tokens or self.windowed:
            raise self.unfit("its queries and keys are not those of one sequence of tokens")
        row = stand_row(core, of_tokens(operand_of(core, 1)), token)
        return Value(Place(self._unit, row.name))

    @property
    def received(self) -> Value:
        """The weights that tokens get, averaged over heads and queries: [batch, keys].

        Of all queries, and of keys as `weights_per_head` has them.
        """
        mean = self.weights_per_head.then("mean", (1, 2)).read(self.editor, self._unit)
        HINT.put(mean, "received")
        return Value(Place(self._unit, mean.name))

    @property
    def observed(self) -> bool:
        """Whether a clause reads its weights, or makes them: rows of queries are seen."""
        place = self.editor.where(self.attention.core)
        template = self.editor.unit(place.unit).template
        nodes = () if template is None else template.graph.nodes
        core = next((n for n in nodes if n.name == place.node), None)
        known = core is not None and any(standing(core, t) is not None for t in STAND_INS)
        return known or (core is not None and WRITTEN.on(core))

    @property
    def _written(self) -> fx.Node:
        """The softmax of an attention that is no call of SDPA."""
        node: Any = self.editor.node(self.attention.core).args[0]
        while isinstance(node, fx.Node) and node.target in _PASSING:
            node = node.args[0]
        if not isinstance(node, fx.Node) or node.target not in _SOFTMAX:
            raise self.unfit("its weights are not those of a softmax over keys")
        return node

    def unmask(self) -> None:
        """Every query attends to every key."""
        core = self._core()
        mask = bias_of(core)
        core.args = core.args[:3]
        core.kwargs = {k: v for k, v in core.kwargs.items() if k != "attn_mask"}
        if mask is not None:
            erase_unread(mask)

    def bias_keys(self, value: Value, *, cast: bool = False) -> None:
        """Adds a number per token to the scores of its key, on every head and query.

        Args:
            value: [batch, tokens].
            cast: whether its dtype may be another than that of the queries.
        """
        core = self._alone()
        numbers, query = value.read(self.editor, self._unit), operand_of(core, 0)
        with after(core.graph, [numbers, query] if cast else [numbers]):
            index = (slice(None), None, None)
            bias = core.graph.call_function(operator.getitem, (numbers, index))
            if cast:
                bias = core.graph.call_method("type_as", (bias, query))
        if self.tokens.joined:
            bias = filled(bias, of_tokens(operand_of(core, 1)))
        if any(rows := ROWS.get(core, (0, 0))):
            bias = self._padded(bias, rows)
        add_bias(core, bias)
        self._note(core)

    def bias_scores(self, value: Value) -> None:
        """Adds a number to the score of every pair of a query and a key.

        It is added once all clauses are through. Tokens that joined the prefix since it was made,
        and rows that passes put beside keys, get zeros.

        Args:
            value: [batch or 1, heads or 1, queries, keys].

        Raises:
            RewriteError: VR410 if the scores have no one number for a pair, or not that shape.
        """
        core = self._alone()
        if not self.over_tokens or self.windowed:
            raise self.unfit("its queries and keys are not those of one sequence of tokens")
        node = value.read(self.editor, self._unit)
        self._expect_pairs(node, core)
        HELD.put(node, True)
        place = Place(self._unit, node.name)
        self.at_end(lambda: self._bias_scores(self.editor.node(place)))

    def _bias_scores(self, bias: fx.Node) -> None:
        core = self._core()
        HELD.drop(bias)
        joined = {start for i, start, _ in self.context.stream.joins if 2 * i == self.position}
        if len(joined) > 1:
            raise self.unfit("tokens joined the prefix at several places")
        for start in joined:
            args = bias, *(operand_of(core, 0), of_tokens(operand_of(core, 1)))
            name = f"{self._stem}_grown"
            bias = self.help(GrownScores(start), self._unit, args, name, "bias")
        if any(rows := ROWS.get(core, (0, 0))):
            bias = self._padded(bias, rows)
        PAIRS.put(bias, True)
        add_bias(core, bias)
        self._note(core)

    def _expect_pairs(self, node: fx.Node, core: fx.Node) -> None:
        """Raises VR410 if what is added to scores is known not to be of their shape."""
        found, known = self._yields(node), self.context.stream.known(self.position)
        pairs = [VALUE.get(of_tokens(operand_of(core, i))) for i in (0, 1)]
        if found is None or known.size is not None:
            return
        joined = known.prefix - self.context.stream.start.prefix
        own = (self.heads, *(v.shape[2] for v in pairs if isinstance(v, torch.Tensor)))
        allowed = [{1, own[0]}, *({1, n, n + joined} for n in own[1:])]
        fits = zip(found.shape[1:], allowed, strict=False)
        if found.dim() != 4 or not all(length in lengths for length, lengths in fits):
            shown, wanted = ("x".join(map(str, s)) for s in (found.shape, own))
            raise self.unfit(f"{shown} is no bias of its scores, {wanted} in each image")

    def _yields(self, node: fx.Node) -> torch.Tensor | None:
        """What a node holds, on meta, if that is known."""
        known = VALUE.get(node)
        if isinstance(known, torch.Tensor) or node.op != "call_module":
            return known if isinstance(known, torch.Tensor) else None
        args = [self._yields(a) if isinstance(a, fx.Node) else a for a in node.args]
        module = self.editor.unit(self._unit).get_submodule(str(node.target))
        return None if any(a is None for a in args) else _on_meta(module, args)

    def softmax(self, module: nn.Module, *values: Value) -> None:
        """`weights = module(scores, *values)` instead of `softmax(scores, -1)`.

        The scores are [batch, heads, queries, keys], with everything that is added to them; keys
        are those of all tokens, and rows that passes put beside them. Dropout follows.

        Args:
            module: yields weights of the shape and dtype of the scores: `changes = (0,)`.
            values: what it is given besides.

        Raises:
            RewriteError: VR412 if another clause has a softmax of its own there, VR410 if the
                attention is of another form or the values are made of what it yields.
        """
        core = self._alone()
        if not self.over_tokens or (self.windowed and values):
            raise self.unfit("its scores are not those of one sequence of tokens")
        self._expect_own(core)
        given = [value.read(self.editor, self._unit) for value in values]
        if core in ahead(given):
            raise self.unfit("its softmax is given what is made of what it yields")
        scores = stand(core, scores_of, operand_of(core, 1), "scores")
        (made,) = self.put(module, self._unit, (scores, *given), ("weights",), changed=(0,))
        self._expect_weights(module, [scores, *given])
        SOFTMAX.put(made, True)
        HELD.put(made, True)

    def _expect_weights(self, module: nn.Module, given: list[fx.Node]) -> None:
        """Raises VR426 if a softmax is known to yield something else than one weight per score."""
        known = [self._yields(node) for node in given]
        found = None if any(v is None for v in known) else _on_meta(module, known)
        if found is not None and known[0] is not None and found.shape != known[0].shape:
            shown, wanted = ("x".join(map(str, v.shape)) for v in (found, known[0]))
            raise self.clause.error(
                "VR426",
                f"pass {self.pass_name} at '{self.role}': {type(module).__name__} yields {shown} "
                f"for scores {wanted}",
            )

    def drop(self) -> None:
        """At lowering, takes the module out; where it makes the weights, a softmax does again."""
        self._found()  # of what is written out, scores would stand for the weights
        super().drop()

    def _expect_own(self, core: fx.Node) -> None:
        """Raises VR412 if a clause has a softmax of its own there already."""
        other = softmax_of(core)
        if other is None:
            return
        path = f"{self._unit}.{other.target}".lstrip(".")
        name = str(self.editor.root.get_submodule(path).inserted_by)
        clauses = (i.site.clause.origin for i in self.editor.insertions if i.path == path)
        raise self.clause.error(
            "VR412",
            f"{self.pass_name} and {name} exclude each other at '{self.role}': each has a softmax "
            "of its own",
            notes=["the other clause: " + next(clauses, f"'{path}' of the model")],
            suggestion=f"take '{self.role}' out of one of the clauses",
        )

    def _note(self, core: fx.Node) -> None:
        """The clause is named where the attention is."""
        origin = ORIGIN.get(core)
        ORIGIN.put(core, f"{origin}\n{self.clause.origin}" if origin else self.clause.origin)

    def make_room(self, start: int, count: int) -> None:
        """For `count` tokens more from `start` on, the bias of the scores is zero, a mask true.

        Without a bias, or with one that is made of the tokens themselves, nothing is done.
        """
        core = self._found()
        bias = None if core is None else bias_of(core)
        if core is None or bias is None or not (axes := _by_token(before_rows(bias))):
            return
        tokens = ahead([operand_of(core, i) for i in range(3)])
        if any(n in tokens for n in ahead([bias]) if n.op == "placeholder" or is_size(n)):
            return
        self._give_room(core, bias, BiasWithRoom(start, count, axes))

    def widen(self, count: int) -> None:
        """For `count` tokens more in front, whoever they are, the bias of the scores is zero."""
        core = self._scored()
        bias = bias_of(core)
        if bias is not None:
            axes = _by_token(before_rows(bias)) or (-2, -1)
            self._give_room(core, bias, BiasWithRoom(0, count, axes))

    def _give_room(self, core: fx.Node, bias: fx.Node, module: BiasWithRoom) -> None:
        """The bias of the tokens gets room; rows that passes put beside keys come on top."""
        own = before_rows(bias)
        made = self.help(module, self._unit, (own,), f"{self._stem}_bias", "bias")
        settle(core, (own,), (made,))
        if own is bias:
            set_operand(core, 3, made)
        else:
            own.replace_all_uses_with(made, delete_user_cb=lambda n: n.target is F.pad)


def _on_meta(module: nn.Module, args: Sequence[Any]) -> torch.Tensor | None:
    """What a module yields on meta; None if it does not run, which is told when the model does."""
    try:
        found = run_leaf(module, type(module), args, {}, lambda t: t.detach().to("meta"))
    except Exception:
        return None
    return found if isinstance(found, torch.Tensor) else None


def _by_token(bias: fx.Node) -> tuple[int, ...]:
    """The axes, from the end, along which a mask or bias is one number per token."""
    value = VALUE.get(bias)
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(axis for axis in (-2, -1) if len(shape) >= -axis and shape[axis] > 1)
