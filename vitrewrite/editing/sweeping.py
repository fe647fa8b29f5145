"""What nobody reads any more: nodes, inputs of units on the way up, and modules nobody calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from ..anatomy.sites import Place
from ..tracing.notes import ARITY, HINT, VALUE, WIRED, copied, shared
from ..tracing.unit import Unit
from .clause import ClauseRef
from .editor import Editor, Insertion, join, units
from .slices import ahead, erase_unread
from .wiring import caller, prune, release


def forget(editor: Editor, unit: str, node: fx.Node, clause: ClauseRef) -> Insertion | None:
    """Takes out a value that nobody reads, what only it was made of, and the modules that made it.

    Args:
        editor: of the tree.
        unit: path of the unit whose graph has the value.
        node: the value.
        clause: what it is done for.

    Returns:
        What another clause put where nobody reads it now; the tree is half done then.
    """
    before = _called(editor)
    _erase(editor, unit, node)
    now = _called(editor)
    for path in sorted(before - now):
        if editor.taken(path) or any(p.startswith(f"{path}.") for p in now):
            continue
        inside = (i for i in editor.insertions if f"{i.path}.".startswith(f"{path}."))
        if (found := next(inside, None)) is not None:
            return found
        editor.take_out(path, clause)
    return None


def sweep(editor: Editor) -> None:
    """Takes out wired inputs, and results of units, that nobody reads any more."""
    found, before = list[tuple[str, str, int]](), None
    while before != found:
        prune(editor)
        editor.clean()
        before, found = found, []
        for path, unit in list(units(editor.root)):
            found += [(path, n.name, ARITY.of(n)) for n in _too_many(unit)]
        for path, name, _ in found:
            call = next((n for n in editor.graph(path).nodes if n.name == name), None)
            if call is not None:
                _yield_less(editor, path, call)


def _too_many(unit: Unit) -> list[fx.Node]:
    """The calls of units that yield something, and more than is read."""
    nodes = () if unit.template is None else unit.template.graph.nodes
    calls = (n for n in nodes if n.op == "call_module" and ARITY.on(n))
    return [
        call
        for call in calls
        if 0 < len(call.users) < ARITY.of(call)
        and isinstance(unit.get_submodule(str(call.target)), Unit)
        and all(user.target is operator.getitem for user in call.users)
    ]


def _called(editor: Editor) -> set[str]:
    """Paths of all modules that run when the model does."""
    found, waiting = set[str](), [""]
    while waiting:
        path = waiting.pop()
        unit = editor.root.get_submodule(path)
        template = unit.template if isinstance(unit, Unit) and path not in found else None
        found.add(path)
        for graph in () if template is None else template.graphs:
            calls = (n for n in graph.nodes if n.op == "call_module")
            waiting += [join(path, str(n.target)) for n in calls]
    return found


def _erase(editor: Editor, unit: str, node: fx.Node) -> None:
    """Erases a value, and what its unit was given, or yields, for it alone."""
    graph = editor.graph(unit)
    made = [n for n in ahead([node]) if ARITY.on(n) and n.op == "call_module"]
    erase_unread(node)
    left = set(graph.nodes)
    for call in made:
        if call in left:
            _yield_less(editor, unit, call)
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    dead = [i for i, n in enumerate(inputs) if not n.users]
    if not unit or not dead:
        return
    above, _ = caller(editor, unit)
    editor.graph(above)
    given = [call.args[i] for call in caller(editor, unit)[1] for i in dead]
    for i in dead:
        WIRED.put(inputs[i], True)
    release(editor, unit)
    for source in dict.fromkeys(n for n in given if isinstance(n, fx.Node)):
        if source in set(editor.graph(above).nodes) and not source.users:
            _erase(editor, above, source)


def _yield_less(editor: Editor, unit: str, call: fx.Node) -> None:
    """Has a unit yield only what its one call reads of its results."""
    path = join(unit, str(call.target))
    items = {u.args[1]: u for u in call.users if u.target is operator.getitem}
    child = editor.root.get_submodule(path)
    alone = len(caller(editor, path)[1]) == 1 and editor.holders(child) == 1
    if not (isinstance(child, Unit) and alone) or len(items) in (0, ARITY.of(call)):
        return
    output = editor.graph(path).output_node()
    results = _results(output, items)
    before = output.all_input_nodes
    kept = [i for i in range(len(results)) if i in items]
    output.args = (tuple(results[i] for i in kept) if len(kept) > 1 else results[kept[0]],)
    for number, index in enumerate(kept):
        items[index].update_arg(1, number)
    ARITY.put(call, len(kept))
    if len(kept) == 1:
        _take_alone(editor, unit, call, items[kept[0]])
    for value in before:
        if value in set(editor.graph(path).nodes) and not value.users:
            _erase(editor, path, value)


def _results(output: fx.Node, read: Mapping[Any, fx.Node]) -> tuple[Any, ...]:
    """What a unit returns, item by item, also where it returns what a call yields as a whole.

    Args:
        output: of its graph.
        read: what is read of it where it is called, by number.
    """
    whole: Any = output.args[0]
    if not isinstance(whole, fx.Node):
        return tuple(whole)
    with output.graph.inserting_before(output):
        count = range(ARITY.of(whole))
        items = tuple(output.graph.call_function(operator.getitem, (whole, i)) for i in count)
    for number, item in read.items():
        copied(item, items[number], VALUE, HINT, ARITY)
    return items


def _take_alone(editor: Editor, unit: str, call: fx.Node, item: fx.Node) -> None:
    """A call yields one value, which was an item of its result."""
    ARITY.drop(call)
    shared(item, call, VALUE, HINT)
    item.replace_all_uses_with(call)
    editor.moved[Place(unit, item.name)] = Place(unit, call.name)
    call.graph.erase_node(item)
