"""One path through several models, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ..tracing.about import About, about, write
from ..tracing.notes import HINT, copied
from ..tracing.paths import Way, Ways, beginning, checks, ending, told
from ..tracing.template import Template
from ..tracing.unit import Unit, duplicate
from .editor import join
from .wiring import listed


def extracted(root: nn.Module, number: int) -> nn.Module:
    """The model of one path: what runs on it under the names that it has, and nothing else.

    It shares modules with the tree, which stays as it is.

    Raises:
        IndexError: if there is no such path.
    """
    known = about(root)
    paths = known.paths
    assert paths is not None
    if not 0 <= number < len(paths.table):
        raise IndexError(number)
    path = paths.table[number]
    made = Unit(Template("Stitch", _program(root, paths, path)), "Stitch")
    used = _used(made)
    for name, child in root._modules.items():
        if child is not None and _is_under(name, used):
            made._modules[name] = _settled(_pruned(child, name, used), number)
    made.training = root.training
    write(
        made,
        About(
            example=known.example,
            notes=known.notes,
            pretrained_cfg=known.pretrained_cfg,
            config=known.config,
        ),
    )
    return made


def _program(root: nn.Module, paths: Ways, path: Way) -> fx.Graph:
    """Beginning of the front, its blocks, the layer, blocks of the end, its end: one graph."""
    whole = fx.Graph()
    checked = checks(_graph(root, ""))
    values: dict[fx.Node, fx.Node] = {}
    for node in checked.nodes:
        if node.op != "output":
            values[node] = _copied(node, whole, values, "")
    image = values[next(iter(checked.nodes))]
    front = beginning(_graph(root, path.front), paths.pieces[path.front])
    x = _inlined(whole, front, image, path.front)
    for name in paths.modules(path):
        x = whole.call_module(name, (x,))
        HINT.put(x, "x")
    bare = None if path.layer is None else paths.left_out.get(path.end)
    end = ending(_graph(root, path.end), paths.pieces[path.end], bare)
    whole.output(_inlined(whole, end, x, path.end))
    return whole


def _graph(root: nn.Module, path: str) -> fx.Graph:
    unit = root.get_submodule(path)
    assert isinstance(unit, Unit)
    assert unit.template is not None
    return unit.template.graph


def _inlined(whole: fx.Graph, program: fx.Graph, given: fx.Node, owner: str) -> fx.Node:
    """What a program of one of the models yields, in a graph of the root."""
    values: dict[fx.Node, fx.Node] = {}
    for node in program.nodes:
        if node.op == "placeholder":
            values[node] = given
        elif node.op == "output":
            made: Any = fx.node.map_arg(node.args[0], values.__getitem__)
            return made  # type: ignore[no-any-return]
        else:
            values[node] = _copied(node, whole, values, owner)
    raise AssertionError("a program ends with its output")


def _copied(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node], owner: str) -> fx.Node:
    new = graph.node_copy(node, values.__getitem__)
    copied(node, new)
    if node.op in ("call_module", "get_attr"):
        new.target = join(owner, str(node.target))
    return new


def _used(made: Unit) -> set[str]:
    """What the program calls or reads."""
    assert made.template is not None
    nodes = made.template.graph.nodes
    return {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}


def _is_under(path: str, used: set[str]) -> bool:
    """Whether something that is used is at a path or below it."""
    return any(f"{name}.".startswith(f"{path}.") for name in used)


def _pruned(module: nn.Module, path: str, used: set[str]) -> nn.Module:
    """A module without what is not used; of what is called itself everything stays."""
    if path in used:
        return module
    kept = {
        name: _pruned(child, f"{path}.{name}", used)
        for name, child in module._modules.items()
        if child is not None and _is_under(f"{path}.{name}", used)
    }
    if _numbers(tuple(module._modules)):
        return listed(kept, like=module)
    kind = module.kind if isinstance(module, Unit) else type(module).__name__
    shell = Unit(None, kind if "." in path else "".join(map(str.capitalize, path.split("_"))))
    shell.training = module.training
    shell._modules.update(kept)
    for table in ("_parameters", "_buffers"):
        own = getattr(module, table)
        getattr(shell, table).update({k: v for k, v in own.items() if f"{path}.{k}" in used})
    shell._non_persistent_buffers_set = module._non_persistent_buffers_set & {*shell._buffers}
    return shell


def _settled(module: nn.Module, number: int) -> nn.Module:
    """A module in which all that hangs on the path that runs is as on one, on the same memory."""
    if not any(told(module)):
        return module
    made = duplicate(module, lambda p: p, lambda b: b)
    for each in told(made):
        own: Any = each
        if number in own.stitches:
            row = own.stitches.index(number)
            rows = own.table.detach()[row : row + 1]
            own.table = nn.Parameter(rows, requires_grad=own.table.requires_grad)
            own.stitches = (number,)
    return made


def _numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(name.isdecimal() for name in names)
