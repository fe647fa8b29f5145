"""Takes out of a unit what its program does not read: modules, tensors, and rows of tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from ..tracing.template import eliminate_dead_code
from .clause import ClauseRef
from .editor import Editor, join
from .narrowing import Remaining, Slices, narrow, take_out


def strip(editor: Editor, unit: str, clause: ClauseRef) -> None:
    """Leaves a unit only what it reads; what passes put into a module that goes is gone too.

    A tensor of which it reads the same rows wherever it reads it has only these from now on.
    """
    graph = editor.graph(unit)
    eliminate_dead_code(graph)
    for name, nodes in _reads(graph).items():
        if (rows := _rows(nodes)) is not None:
            _narrow(editor, join(unit, name), rows, nodes)
    names, module = read(graph), editor.unit(unit)
    _forget(editor, unit, {*module._parameters, *module._buffers, *module._modules} - names, clause)


def forget(editor: Editor, unit: str, before: set[str], clause: ClauseRef) -> None:
    """Takes out of a unit what it read before, and reads no more."""
    graph = editor.graph(unit)
    eliminate_dead_code(graph)
    _forget(editor, unit, before - read(graph), clause)


def _forget(editor: Editor, unit: str, names: set[str], clause: ClauseRef) -> None:
    """Takes tensors and modules of a unit out, where nothing in them is read."""
    module, kept = editor.unit(unit), read(editor.graph(unit))
    for name in sorted(names):
        if name in module._modules and not any(k.startswith(f"{name}.") for k in kept):
            take_out(editor, join(unit, name), clause)
        elif name in module._parameters or name in module._buffers:
            editor.take_out_tensor(join(unit, name), clause)


def read(graph: fx.Graph) -> set[str]:
    """The names of modules and tensors that a program reads."""
    return {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}


def _reads(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).append(node)
    return found


def _rows(nodes: list[fx.Node]) -> slice | None:
    """The rows that all who read a tensor take of it, if they are the same."""
    found = list(_taken(nodes))
    alike = all(rows is not None and rows == found[0] for rows in found)
    return found[0] if found and alike else None


def _taken(nodes: list[fx.Node]) -> Iterator[slice | None]:
    for user in (user for node in nodes for user in node.users):
        index = user.args[1] if user.target is operator.getitem else None
        yield index if isinstance(index, slice) and index.step is None else None


def _narrow(editor: Editor, name: str, rows: slice, nodes: list[fx.Node]) -> None:
    """Puts some rows in the place of a tensor, and has its readers take all there are."""
    owner, _, last = name.rpartition(".")
    tensor = getattr(editor.root.get_submodule(owner), last)
    first, stop, _ = rows.indices(len(tensor))
    of = torch.arange(first, stop, device="cpu")[:, None]
    narrow(editor, Slices(name, 0, of), Remaining(len(of), torch.arange(len(of), device="cpu")))
    for node in nodes:
        for user in list(node.users):
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)
