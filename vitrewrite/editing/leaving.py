"""Takes a residual block out of the tree: what follows reads the stream as it enters the block."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..anatomy.rows import RESHAPES
from ..anatomy.sites import Block, Place
from ..tracing.notes import ARITY, HINT, VALUE
from ..tracing.template import eliminate_dead_code
from .clause import ClauseRef
from .editor import Editor
from .wiring import calls, listed


def cannot_leave_out(editor: Editor, block: Block) -> str | None:
    """Why a block cannot be taken out, or None if it can."""
    if block.unit is None:
        return "the model is one flat graph, so that the block is no module"
    found = [call for _, several in calls(editor, block.path) for call in several]
    if len(found) != 1:
        return f"its module runs {len(found)} times"
    inner = _program(editor, block)
    named = {n.name: n for n in inner.nodes}
    start, output = named.get(block.input.node), named.get(block.output.node)
    if block.input.unit != block.path or start is None or output is None:
        return "its module is not where its stream is"
    entry = _unshaped(start)
    if entry.op != "placeholder":
        return "its module does more than add to the stream: it changes the stream before"
    left = [_shape(n) for n in _results(inner) if _unshaped(n) is output]
    return _changes(_shape(entry), left) or _unpassed(inner, found[0], output)


def leave_out(editor: Editor, block: Block, clause: ClauseRef) -> None:
    """Takes a block out, for a clause, for which `cannot_leave_out` finds no reason."""
    unit, (found,) = next(calls(editor, block.path))
    call = next(n for n in editor.graph(unit).nodes if n.name == found.name)
    inner = _program(editor, block)
    names = [n.name for n in inner.nodes if n.op == "placeholder"]
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    start = next(n for n in inner.nodes if n.name == block.input.node)
    given[block.output.node] = given[_unshaped(start).name]
    returned: Any = inner.output_node().args[0]
    for item in [call] if isinstance(returned, fx.Node) else list(call.users):
        value = _unshaped(returned if item is call else returned[item.args[1]])
        _pass(editor, unit, item, given[value.name])
    eliminate_dead_code(call.graph)
    _remove(editor, block.path, clause)


def _program(editor: Editor, block: Block) -> fx.Graph:
    template = editor.unit(block.path).template
    assert template is not None
    return template.graph


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = VALUE.get(node)
    return tuple(map(int, value.shape)) if isinstance(value, torch.Tensor) else None


def _unshaped(node: fx.Node) -> fx.Node:
    """The node whose numbers, in the same order, a node only gives another shape."""
    while node.op == "call_method" and node.target in RESHAPES:
        before = node.args[0]
        assert isinstance(before, fx.Node)
        node = before
    return node


def _results(inner: fx.Graph) -> list[fx.Node]:
    """What a program returns, one or several, without what is no tensor."""
    returned = inner.output_node().args[0]
    several = returned if isinstance(returned, (tuple, list)) else (returned,)
    return [value for value in several if isinstance(value, fx.Node)]


def _changes(before: tuple[int, ...] | None, after: list[tuple[int, ...] | None]) -> str | None:
    """In words, how the stream leaves a block in another shape than it entered it."""
    for shape in after:
        if before is None or shape is None:
            return "the shape of its stream is not known"
        if before != shape:
            show = " x ".join
            return f"it turns a stream of {show(map(str, before))} into {show(map(str, shape))}"
    return None


def _unpassed(inner: fx.Graph, call: fx.Node, output: fx.Node) -> str | None:
    """What of a block's results is read that is not its stream, nor what it was given."""
    returned: Any = inner.output_node().args[0]
    if isinstance(returned, fx.Node):
        if _unshaped(returned) is output:
            return None
        return "its module does more than add to the stream: it changes the stream afterwards"
    for item in call.users:
        value = returned[item.args[1]] if ARITY.on(call) else None
        if not isinstance(value, fx.Node):
            return "what it yields besides the stream is read"
        if _unshaped(value) is not output and value.op != "placeholder":
            return "what it yields besides the stream is read"
    return None


def _pass(editor: Editor, unit: str, old: fx.Node, new: fx.Node) -> None:
    HINT.put(new, HINT.get(new) or HINT.get(old))
    old.replace_all_uses_with(new)
    editor.moved[Place(unit, old.name)] = Place(unit, new.name)


def _remove(editor: Editor, path: str, clause: ClauseRef) -> None:
    """Takes a module out of the tree; the names of the others stay."""
    editor.take_out(path, clause)
    owner = path.rpartition(".")[0]
    parent = editor.root.get_submodule(owner)
    if isinstance(parent, torch.nn.ModuleList):
        above, _, own = owner.rpartition(".")
        editor.root.get_submodule(above)._modules[own] = listed(parent._modules, like=parent)
