"""Rows of an image that go along with its map: they pass what channels pass, and join windows.

A map is moved about: padded, rolled, cut into windows, put together again. Rows are beside all
that. At an attention they stand in front of the tokens of every window, and what becomes of them
is the mean over the windows of their image.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing import wiring
from ..editing.editor import Editor, after, join
from ..editing.slices import ahead
from ..editing.value import shape_of
from ..tracing.notes import ARITY, HINT, VALUE, copied_without
from ..tracing.unit import Unit
from .attention import AttentionSite
from .base import BoundSite
from .core import bias_of, operand_of
from .room import InFrontOfWindows, MeanOverWindows, MeanWithRows
from .windowed import MOVES

if TYPE_CHECKING:
    from .block import BlockSite


class CannotPassError(Exception):
    """Rows cannot go along there, and why."""


@dataclass
class Alongside:
    """Finds the rows beside a map, and makes them where they are asked for.

    Attributes:
        site: of the clause that the rows belong to.
        counts: how many rows there are, by path of the unit that an attention is.
        attentions: by such a path.
        made: names of the nodes of rows by what yields the map that they are beside, as its result
            of a number.
        entered: by path of an attention the rows that it takes, and all that it yields, as places.
    """

    site: BoundSite
    counts: dict[str, int]
    attentions: dict[str, AttentionSite]
    made: dict[tuple[str, str, int], str] = field(default_factory=dict)
    entered: dict[str, tuple[Place, Place]] = field(default_factory=dict)

    def start(self, at: Place, rows: Place) -> None:
        """New rows are beside the map at a place, in the same unit."""
        place = self.site.editor.where(at)
        self.made[_key(place.unit, self.site.editor.node(place))] = rows.node

    def beside(self, unit: str, node: fx.Node) -> fx.Node:
        """The rows beside a map, in its graph.

        Raises:
            CannotPassError: if what makes the map does more than move it and compute with channels.
        """
        key = _key(unit, node)
        if key not in self.made:
            self.made[key] = self._make(unit, node).name
        return self._named(unit, self.made[key])

    def _named(self, unit: str, name: str) -> fx.Node:
        return self.site.editor.node(Place(unit, name))

    def _make(self, unit: str, node: fx.Node) -> fx.Node:
        source: Any = node.args[0] if node.args else None
        if node.op == "placeholder":
            return self._from_above(unit, node)
        if node.target is operator.getitem and isinstance(source, fx.Node) and ARITY.on(source):
            index: Any = node.args[1]
            return self._of_call(unit, source, index)
        if node.op == "call_module":
            return self._of_call(unit, node)
        return (
            self._moved(unit, node)
            if node.target in (*MOVES, torch.cat)
            else self._again(unit, node)
        )

    def _from_above(self, unit: str, node: fx.Node) -> fx.Node:
        above, given = self._given(unit, node)
        rows = self.beside(above, given)
        return wiring.read(self.site.editor, Place(above, rows.name), unit)

    def _given(self, unit: str, node: fx.Node) -> tuple[str, fx.Node]:
        """The caller of a unit, and what it gives for an input."""
        if not unit:
            raise CannotPassError("the rows do not start in front of it")
        above, call = self._caller(unit)
        names = [n.name for n in node.graph.nodes if n.op == "placeholder"]
        given = call.args[names.index(node.name)]
        if not isinstance(given, fx.Node):
            raise CannotPassError(f"'{unit}' is given no map")
        return above, given

    def _caller(self, path: str) -> tuple[str, fx.Node]:
        """The unit that calls another, and the call, in a graph that may be edited."""
        above, calls = wiring.caller(self.site.editor, path)
        if len(calls) > 1:
            raise CannotPassError(f"'{path}' runs {len(calls)} times")
        return above, self._named(above, calls[0].name)

    def _of_call(self, unit: str, call: fx.Node, index: int = 0) -> fx.Node:
        """What a call of a module makes of rows, as its result of a number."""
        path = join(unit, str(call.target))
        if path in self.attentions:
            inner = self._of_attention(path)
        elif self._enters(path, call, index):
            inner = self.beside(path, self._result(path, index))
        else:
            return self._again(unit, call)
        HINT.put(inner, "rows")
        return wiring.give(self.site.editor, path, inner, self._caller(path)[1])

    def _result(self, path: str, index: int = 0) -> fx.Node:
        returned: Any = self.site.editor.graph(path).output_node().args[0]
        result = returned[index] if isinstance(returned, (tuple, list)) else returned
        if not isinstance(result, fx.Node):
            raise CannotPassError(f"what '{path}' yields is not known")
        return result

    def _enters(self, path: str, call: fx.Node, index: int) -> bool:
        """Whether a unit is entered: it has an attention, or changes the positions of the map."""
        if not isinstance(self.site.editor.root.get_submodule(path), Unit):
            return False
        if any(attention.startswith(f"{path}.") for attention in self.attentions):
            return True
        results = [n for n in call.users if n.target is operator.getitem and n.args[1] == index]
        result = results[0] if ARITY.on(call) else call
        source: Any = call.args[0]  # units that are equal share a program, but not shapes
        return shape_of(source)[:-1] != shape_of(result)[:-1]

    def _moved(self, unit: str, node: fx.Node) -> fx.Node:
        """Rows stay where they are; channels that are put side by side are the same for them."""
        source: Any = node.args[0]
        source = source[0] if isinstance(source, (tuple, list)) else source
        before, behind = shape_of(source), shape_of(node)
        if not before or not behind or behind[-1] % before[-1] or not _keeps_channels(node):
            raise CannotPassError("its map is laid out so that channels lie among positions")
        rows, times = self.beside(unit, source), behind[-1] // before[-1]
        if times == 1:
            return rows
        with after(rows.graph, [rows]):
            made = rows.graph.call_method("repeat", (rows, 1, 1, times))
        HINT.put(made, "rows")
        return made

    def _again(self, unit: str, node: fx.Node) -> fx.Node:
        """Computes the same of rows."""
        inputs = list(node.all_input_nodes)
        rows = [self.beside(unit, n) if self._is_map(unit, n) else None for n in inputs]
        # What a call yields may have become one of its results meanwhile.
        known = {n: r for n, r in zip(node.all_input_nodes, rows, strict=True) if r is not None}
        if not known:
            raise CannotPassError("the rows do not start in front of it")
        with after(node.graph, [node, *known.values()]):
            made = node.graph.node_copy(node, lambda n: known.get(n, n))
        copied_without(node, made, VALUE)
        HINT.put(made, "rows")
        if node.op == "call_module":
            again = self.site.editor.again.setdefault(Place(unit, node.name), [])
            again.append(Place(unit, made.name))
        return made

    def _is_map(self, unit: str, node: fx.Node) -> bool:
        """Whether a node is made of a map that rows are beside."""
        if _key(unit, node) in self.made:
            return True
        if node.op == "placeholder":
            return bool(unit) and self._is_map(*self._given(unit, node))
        if node.target == "size":
            return False
        _, name, index = _key(unit, node)
        call = self._named(unit, name)
        if call.op == "call_module":
            path = join(unit, str(call.target))
            if path not in self.attentions and self._enters(path, call, index):
                return self._is_map(path, self._result(path, index))
        return any(self._is_map(unit, n) for n in node.all_input_nodes)

    # -- attention ------------------------------------------------------------------------------

    def enter(self, path: str) -> None:
        """Puts the rows beside the map in front of the tokens of its windows."""
        if path in self.entered:
            return
        attention, windows = self.attentions[path], self._windows(path)
        rows = self._from_above(path, windows)
        own = self._lengths(path, windows)
        joined = self._help(path, InFrontOfWindows(), (windows, rows), "x")
        windows.replace_all_uses_with(joined, delete_user_cb=lambda n: n not in (joined, *own))
        attention.widen(self.counts[path])
        result = self._result(path)
        with after(result.graph, [result]):
            index = (slice(None), slice(self.counts[path], None))
            tokens = result.graph.call_function(operator.getitem, (result, index))
        HINT.put(tokens, HINT.get(result) or "x")
        VALUE.put(tokens, VALUE.get(result))
        result.replace_all_uses_with(tokens, delete_user_cb=lambda n: n is not tokens)
        self.entered[path] = Place(path, rows.name), Place(path, result.name)

    def _of_attention(self, path: str) -> fx.Node:
        self.enter(path)
        rows, result = (self.site.editor.node(place) for place in self.entered[path])
        return self._help(path, MeanOverWindows(), (result, rows), "rows")

    def _windows(self, path: str) -> fx.Node:
        """The input of an attention that its queries, keys and values are made of."""
        core = self.attentions[path]._core()
        inputs = [
            {n for n in ahead([operand_of(core, i)]) if n.op == "placeholder"} for i in range(3)
        ]
        found = [n for n in inputs[0] if all(n in each for each in inputs) and not _is_number(n)]
        if len(found) != 1:
            raise CannotPassError("its queries, keys and values are not made of one input")
        return found[0]

    def _lengths(self, path: str, windows: fx.Node) -> set[fx.Node]:
        """Sizes of the windows as they are, for the bias of the scores."""
        core = self.attentions[path]._core()
        bias = bias_of(core)
        needed = set() if bias is None else ahead([bias])
        needed -= ahead([operand_of(core, i) for i in range(3)]) - {windows}
        found = set()
        for size in [n for n in windows.users if n.target == "size"]:
            readers = [user for user in size.users if user in needed]
            if not readers:
                continue
            with after(size.graph, [windows]):
                own = size.graph.node_copy(size)
            own.meta = dict(size.meta)
            found.add(own)
            for user in readers:
                user.replace_input_with(size, own)
        return found

    # -- pooling --------------------------------------------------------------------------------

    def pool(self, unit: str, mean: fx.Node, alone: bool) -> None:
        """The mean that a head reads is over the rows too, or over them alone."""
        source = mean.all_input_nodes[0]
        rows = self.beside(unit, source)
        mean, source = self._named(unit, mean.name), self._named(unit, source.name)
        made = self._help(unit, MeanWithRows(alone), (source, rows), str(HINT.get(mean) or "x"))
        copied_without(mean, made, HINT)
        HINT.put(made, str(HINT.get(mean) or "x"))
        mean.replace_all_uses_with(made)
        mean.graph.erase_node(mean)

    def _help(self, unit: str, module: nn.Module, args: tuple[fx.Node, ...], hint: str) -> fx.Node:
        """Calls a module without state in a unit."""
        editor, site = self.site.editor, self.site
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(module).__name__)
        target, path = editor.adopt(unit, unit, name.lstrip("_"), module, site.like)
        editor.helpers.append(path)
        (made,) = editor.call(unit, target, args, origin=site.clause.origin, hints=(hint,))
        return made


def _key(unit: str, node: fx.Node) -> tuple[str, str, int]:
    """What yields a value, and as its result of which number."""
    source, index = (*node.args[:2], None, None)[:2]
    if node.target is operator.getitem and isinstance(source, fx.Node) and ARITY.on(source):
        assert isinstance(index, int)
        return unit, source.name, index
    return unit, node.name, 0


def _is_number(node: fx.Node) -> bool:
    return not isinstance(VALUE.get(node), torch.Tensor)


def _keeps_channels(node: fx.Node) -> bool:
    """Whether the last axis stays the last one."""
    args: Any = node.args[1:]
    if node.target == "permute":
        dims = args if isinstance(args[0], int) else args[0]
        return dims[-1] in (-1, len(dims) - 1)
    if node.target == "transpose":
        return not {-1, len(shape_of(node)) - 1} & {*args}
    if node.target is torch.cat:
        axis = args[0] if args else node.kwargs.get("dim", 0)
        return axis in (-1, len(shape_of(node)) - 1)
    return True


def check(block: BlockSite, count: int) -> None:
    """Whether rows can stand in the windows of a block.

    Raises:
        RewriteError: VR410 if it attends to no windows that fill its map.
    """
    new = {id(i.module) for i in block.editor.insertions}
    old = (m for m in block.editor.root.modules() if id(m) not in new)
    if any(getattr(m, "inserted_by", None) == block.pass_name for m in old):
        raise block.twice
    same = (i.site.clause for i in block.editor.insertions if i.pass_name == block.pass_name)
    if (other := next((c for c in same if c.number != block.clause.number), None)) is not None:
        note = f"the other clause: {other.origin}"
        raise block.unfit("rows of another clause go along with the map already", notes=[note])
    if block.attn.path != block.attn._unit or not block.attn.over_tokens:
        raise block.unfit("its stream is no sequence of tokens, and it attends to no windows")
    shape, tokens = shape_of(block.editor.node(block.input.place)), block.attn.length
    if len(shape) == 4 and block.attn.attention.windows is None and tokens != math.prod(shape[1:3]):
        raise block.unfit(
            f"a map of {shape[1]}x{shape[2]} is not cut into whole windows of {tokens} tokens",
            suggestion="give the model an img_size whose maps are",
        )
    if count > tokens:
        block.warn(f"{count} prompts are more than the {tokens} tokens of a window")


def go(block: BlockSite, kind: type[nn.Module], pooled: str) -> None:
    """Takes rows along, from the blocks where they start to what the head reads.

    Args:
        block: one of the blocks where new rows start.
        kind: of the modules of the clause that make rows; each has a `count`.
        pooled: whether the head's mean is over maps and rows (`all`), `rows` or the `map` alone.
    """
    editor = block.editor
    made = {
        i.site.role: i
        for i in editor.insertions
        if i.clause == block.clause.number and isinstance(i.module, kind)
    }
    roles = [each.role for each in block.all_blocks]
    found = block.all_blocks[min(roles.index(role) for role in made) :]
    wiring.common(editor, ("", *(b.path for b in found)))
    along, count = Alongside(block, {}, {b.attn.path: b.attn for b in found}), 0
    for each in found:
        if (start := made.get(each.role)) is not None:
            along.start(each.input.place, Place(start.unit, block.call_of(start).name))
            count = int(start.module.count)  # type: ignore[arg-type]
        along.counts[each.attn.path] = count
    try:
        for each in found:
            along.enter(each.attn.path)
        if pooled != "map":
            along.pool(*_mean(block), alone=pooled == "rows")
    except CannotPassError as error:
        raise block.unfit(str(error)) from None


def _mean(block: BlockSite) -> tuple[str, fx.Node]:
    """The mean over all positions that the head reads."""
    editor = block.editor
    for head in block.heads:
        place = editor.where(head.parts[0].call)
        unit, node = place.unit, editor.node(place).all_input_nodes[0]
        while node.target not in ("mean", torch.mean) and (found := _source(editor, unit, node)):
            unit, node = found
        if node.target in ("mean", torch.mean) and len(shape_of(node)) == 2:
            return unit, editor.node(Place(unit, node.name))
    raise CannotPassError("its head reads no mean over positions: write readout=patches")


def _source(editor: Editor, unit: str, node: fx.Node) -> tuple[str, fx.Node] | None:
    """What a value is made of, in whatever unit."""
    _, name, index = _key(unit, node)
    node = next(n for n in node.graph.nodes if n.name == name)
    found: Any = None
    if node.op == "placeholder" and unit:
        unit, calls = wiring.caller(editor, unit)
        names = [n.name for n in node.graph.nodes if n.op == "placeholder"]
        found = calls[0].args[names.index(name)]
    elif node.op == "call_module":
        inner = editor.root.get_submodule(join(unit, str(node.target)))
        if isinstance(inner, Unit) and inner.template is not None:
            unit, returned = (
                join(unit, str(node.target)),
                inner.template.graph.output_node().args[0],
            )
            found = returned[index] if isinstance(returned, (tuple, list)) else returned
    found = next(iter(node.all_input_nodes), None) if found is None else found
    return (unit, found) if isinstance(found, fx.Node) else None
