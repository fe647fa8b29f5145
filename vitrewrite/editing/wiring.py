"""Takes a value from the place that makes it to other places, as explicit inputs and outputs.

The way leads through the lowest common ancestor: every unit up to there returns the value besides
its result, every unit down from there takes it as another argument. No hooks, no globals.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from ..anatomy.sites import Place
from ..emission.access import is_listed, is_numbered
from ..errors import RewriteError
from ..tracing.nodes import take_entry
from ..tracing.notes import ARITY, HINT, VALUE, WIRED, copied, noted
from ..tracing.template import eliminate_dead_code
from ..tracing.unit import Unit
from .editor import Editor, after, relative, units


def read(editor: Editor, place: Place, unit: str) -> fx.Node:
    """The node that holds the value of a place in the graph of `unit`, wired there if needed.

    Raises:
        RewriteError: VR411 if the value is made after it is needed.
    """
    place = editor.where(place)
    top = common(editor, (place.unit, unit))
    node, at = editor.node(place), place.unit
    while at != top:
        at, node = _give(editor, at, node)
    for below in reversed(list(_up(editor, unit, top))):
        node = _take(editor, below, node)
    return node


def common(editor: Editor, paths: tuple[str, ...]) -> str:
    """The lowest unit that all of `paths` are or are called in; containers on the way are opened.

    A container such as the `Sequential` of blocks has no line of its own for a value to cross.
    """
    chains = [list(callers(editor, path)) for path in paths]
    shared = [c for c in chains[0] if all(c in other for other in chains)]
    for path in {p for chain in chains for p in chain[: chain.index(shared[0]) + 1]}:
        if path not in paths and is_container(editor.unit(path)):
            open_container(editor, path)
            return common(editor, paths)
    return shared[0]


def callers(editor: Editor, path: str) -> Iterator[str]:
    """The unit itself, the unit that calls it, and so on up to the root."""
    yield path
    while path:
        path = caller(editor, path)[0]
        yield path


def caller(editor: Editor, path: str) -> tuple[str, list[fx.Node]]:
    """The lowest unit whose graph calls the module at `path`, and the calls."""
    found = next(calls(editor, path), None)
    if found is None:
        raise RewriteError("VR405", f"nothing calls '{path}'")
    return found


def calls(editor: Editor, path: str) -> Iterator[tuple[str, list[fx.Node]]]:
    """All units whose graphs call the module at `path`, each with its calls, lowest first."""
    parts = path.split(".")
    for length in range(len(parts) - 1, -1, -1):
        above = ".".join(parts[:length])
        unit = editor.root.get_submodule(above)
        if isinstance(unit, Unit) and unit.template is not None:
            found = calls_of(unit.template.graph, relative(path, above))
            if found:
                yield above, found


def calls_of(graph: fx.Graph, target: str) -> list[fx.Node]:
    """The calls of a child in a graph, in which inputs and the output may have its name, too."""
    return [n for n in graph.nodes if n.op == "call_module" and n.target == target]


def is_container(unit: Unit) -> bool:
    """Whether a unit only calls numbered children."""
    return bool(unit._modules) and is_listed(unit)


def open_container(editor: Editor, path: str) -> None:
    """Writes the program of a container into its caller; names and keys stay."""
    above, _ = caller(editor, path)
    graph, unit = editor.graph(above), editor.unit(path)
    assert unit.template is not None
    for call in calls_of(graph, relative(path, above)):
        with graph.inserting_before(call):
            result = _inline(graph, unit.template.graph, call)
        call.replace_all_uses_with(result)
        graph.erase_node(call)
    children = listed(unit._modules, like=unit)
    for child in children.children():
        if isinstance(child, Unit):
            child.__dict__["checkpointing"] |= unit.checkpointing
    owner, _, name = path.rpartition(".")
    editor.root.get_submodule(owner)._modules[name] = children
    editor.rearranged()


def listed(children: Mapping[str, nn.Module | None], like: nn.Module) -> nn.Module:
    """A list of modules under their names, in the mode of `like`.

    Where numbers are left out it is a `Sequential`, as a `ModuleList` counts its children anew.
    """
    made: nn.Module = nn.Sequential(
        OrderedDict((k, m) for k, m in children.items() if m is not None)
    )
    if is_numbered(made):
        made = nn.ModuleList(made.children())
    made.training = like.training
    return made


def _inline(graph: fx.Graph, program: fx.Graph, call: fx.Node) -> fx.Node:
    values: dict[fx.Node, Any] = {}
    given = iter(call.args)
    for node in program.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "output":
            result = values[node.args[0]]
            assert isinstance(result, fx.Node)
            return result
        else:
            values[node] = new = graph.node_copy(node, lambda n: values[n])
            copied(node, new)
            HINT.put(new, HINT.get(call))
            take_entry(new, call)
            if node.op in ("call_module", "get_attr"):
                new.target = f"{call.target}.{node.target}"
    raise AssertionError("a program ends with its output")


def _up(editor: Editor, path: str, top: str) -> Iterator[str]:
    """The units from `path` up to, without, `top`."""
    while path != top:
        yield path
        path = caller(editor, path)[0]


def _give(editor: Editor, unit: str, node: fx.Node) -> tuple[str, fx.Node]:
    """The caller of a unit, and the node there that holds what `node` is inside."""
    above, _ = caller(editor, unit)
    calls = calls_of(editor.graph(above), relative(unit, above))
    if len(calls) > 1:
        raise RewriteError("VR411", f"'{unit}' runs {len(calls)} times, so it has no one value")
    inputs = [n for n in editor.graph(unit).nodes if n.op == "placeholder"]
    given = calls[0].args[inputs.index(node)] if node in inputs else None
    if isinstance(given, fx.Node):
        return above, given  # the caller has it already
    return above, give(editor, unit, node, calls[0])


def give(editor: Editor, unit: str, node: fx.Node, call: fx.Node) -> fx.Node:
    """The node that holds, after one call of a unit, what `node` is inside."""
    output = next(n for n in editor.graph(unit).nodes if n.op == "output")
    graph, results = call.graph, output.args[0]
    if results is node:
        return call
    calls = calls_of(graph, str(call.target))
    if not isinstance(results, tuple):
        results = (results,)
        for each in calls:
            _return_tuple(graph, each)
    if node not in results:
        output.args = ((*results, node),)
        for each in calls:
            ARITY.put(each, len(results) + 1)
    index = (*results, node).index(node)
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    with after(graph, [call, *(u for u in call.users if u.target is operator.getitem)]):
        item = graph.call_function(operator.getitem, (call, index))
    copied(node, item, VALUE, HINT)
    HINT.keep(item, node.name)
    return item


def _return_tuple(graph: fx.Graph, call: fx.Node) -> None:
    """What read the result of a call now reads its first item."""
    with graph.inserting_before(call.next):
        first = graph.call_function(operator.getitem, (call, 0))
    call.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    copied(call, first, VALUE, HINT, ARITY)
    VALUE.drop(call)
    HINT.drop(call)


def _take(editor: Editor, unit: str, node: fx.Node) -> fx.Node:
    """The input of a unit that is given `node` by its caller."""
    graph = editor.graph(unit)
    inputs: list[fx.Node] = [n for n in graph.nodes if n.op == "placeholder"]
    above, _ = caller(editor, unit)
    calls = calls_of(editor.graph(above), relative(unit, above))
    for i, placeholder in enumerate(inputs):
        if all(len(c.args) > i and c.args[i] is node for c in calls):
            return placeholder
    order = {n: i for i, n in enumerate(calls[0].graph.nodes)}
    if any(order[c] < order[node] for c in calls):
        raise RewriteError("VR411", f"'{unit}' needs a value that is made behind it")
    hint = str(HINT.get(node) or node.name)
    with graph.inserting_before(inputs[-1].next):
        placeholder = graph.placeholder(hint)
    known = VALUE.get(node)
    noted(placeholder, {**({} if known is None else {VALUE: known}), HINT: hint, WIRED: True})
    for call in calls:
        call.args = (*call.args, node)
    return placeholder


def size_of(editor: Editor, unit: str, node: fx.Node, axis: int) -> fx.Node:
    """The node that reads a length of a tensor."""
    for user in node.users:
        if user.target == "size" and user.args == (node, axis):
            return user
    graph = editor.graph(unit)
    with after(graph, [node]):
        size = graph.call_method("size", (node, axis))
    VALUE.put(size, 1)
    HINT.put(size, "batch")
    return size


def release(editor: Editor, unit: str) -> None:
    """Takes out the inputs of a unit, and of those in it, that nobody reads any more."""
    inside = [p for p, _ in units(editor.root) if p == unit or p.startswith(f"{unit}.")]
    for path in reversed(inside):
        if id(editor.unit(path)) in editor.edited:
            graph = editor.graph(path)
            eliminate_dead_code(graph)
            for node in graph.nodes:
                if node.op == "placeholder" and not node.users:
                    WIRED.put(node, True)
            if _unread(graph):
                _drop_inputs(editor, path)


def prune(editor: Editor) -> None:
    """Takes out wired inputs that nobody reads any more."""
    changed = True
    while changed:
        changed = False
        for path, unit in list(units(editor.root)):
            if path and unit.template is not None and _unread(unit.template.graph):
                _drop_inputs(editor, path)
                changed = True


def _unread(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder" and WIRED.get(n) and not n.users]


def _drop_inputs(editor: Editor, path: str) -> None:
    graph = editor.graph(path)
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    dead = [inputs.index(n) for n in _unread(graph)]
    above, _ = caller(editor, path)
    for call in calls_of(editor.graph(above), relative(path, above)):
        call.args = tuple(a for i, a in enumerate(call.args) if i not in dead)
    for i in dead:
        graph.erase_node(inputs[i])
