"""Drops what no forward reads of its inputs, and what no caller reads of its outputs.

A library hands lists of levels, masks and dictionaries of everything through its modules. What is
left is what the program is about: an inner module takes tensors and returns one, or a tuple. What
the root takes and returns stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .nodes import operand
from .notes import ARGUMENT, ARITY, HINT, KEY, VALUE, shared
from .template import Template

Path = tuple[Any, ...]
"""Keys and positions that lead into a nested output."""


@dataclass(eq=False)
class _Group:
    """Templates that some call may mean alike, and all calls of them."""

    templates: list[Template]
    calls: list[fx.Node] = field(default_factory=list)

    @property
    def graphs(self) -> list[fx.Graph]:
        return [g for t in self.templates for g in t.graphs]


def prune(assigned: dict[str, Any]) -> None:
    """Simplifies the boundaries of the programs in a tree, in place.

    Args:
        assigned: the template (or torch layer) of each module by path; "" is the root.
    """
    templates = {id(t): t for t in assigned.values() if isinstance(t, Template)}
    groups = _groups(assigned)
    changed = True
    while changed:
        changed = False
        for group in groups:
            changed = _prune_inputs(group) | _prune_outputs(group) | changed
        for template in templates.values():
            template.clean()


def _groups(assigned: dict[str, Any]) -> list[_Group]:
    """Templates by the calls that they share; without the root, and what it shares calls with."""
    of: dict[int, _Group] = {}
    for path, template in assigned.items():
        if isinstance(template, Template):
            of.setdefault(id(template), _Group([template]))
            for node in _calls(template):
                child = assigned.get(f"{path}.{node.target}" if path else str(node.target))
                if isinstance(child, Template):
                    of.setdefault(id(child), _Group([child]))
                    _add_call(of, of[id(child)], node)
    root = of.get(id(assigned.get("")))
    return [g for g in dict.fromkeys(of.values()) if g is not root]


def _calls(template: Template) -> Iterator[fx.Node]:
    for graph in template.graphs:
        yield from (n for n in graph.nodes if n.op == "call_module")


def _add_call(of: dict[int, _Group], group: _Group, node: fx.Node) -> None:
    """Notes that a call may mean a group; a call that means two makes them one."""
    for other in {id(g): g for g in of.values()}.values():
        if other is not group and node in other.calls:
            group.templates += other.templates
            group.calls += [c for c in other.calls if c not in group.calls]
            for template in other.templates:
                of[id(template)] = group
    if node not in group.calls:
        group.calls.append(node)


# -- inputs ---------------------------------------------------------------------------------------


def _prune_inputs(group: _Group) -> bool:
    inputs = [[n for n in g.nodes if n.op == "placeholder"] for g in group.graphs]
    counts = {len(nodes) for nodes in inputs} | {len(c.args) for c in group.calls}
    if len(counts) != 1 or any(c.kwargs for c in group.calls):
        return False
    dead = {i for i in range(counts.pop()) if not any(nodes[i].users for nodes in inputs)}
    if not dead:
        return False
    for call in group.calls:
        call.args = tuple(a for i, a in enumerate(call.args) if i not in dead)
    for nodes in inputs:
        for i in dead:
            nodes[i].graph.erase_node(nodes[i])
        _rename([n for i, n in enumerate(nodes) if i not in dead])
    return True


def _rename(nodes: list[fx.Node]) -> None:
    """An argument of which one part is left has its plain name."""
    names = [ARGUMENT.get(n) for n in nodes]
    for node, name in zip(nodes, names, strict=True):
        if name and names.count(name) == 1:
            HINT.put(node, name)


# -- outputs --------------------------------------------------------------------------------------


def _prune_outputs(group: _Group) -> bool:
    outputs = [g.output_node() for g in group.graphs]
    shapes = {_paths(o.args[0]) for o in outputs}
    if len(shapes) != 1 or not group.calls:
        return False
    paths = shapes.pop()
    if () in paths:
        return False
    reads = [_reads(call) for call in group.calls]
    if any(() in found for found in reads):
        return False
    used = {p for p in paths if any(p in found for found in reads)}
    shapes_ = [_kept(o.args[0], used) for o in outputs]
    if not used or all(s == o.args[0] for s, o in zip(shapes_, outputs, strict=True)):
        return False
    for output, kept in zip(outputs, shapes_, strict=True):
        places = dict(zip(_in_order(output.args[0], used), _paths(kept), strict=True))
        output.args = (kept,)
    for call, found in zip(group.calls, reads, strict=True):
        _reread(call, found, kept, places)
    return True


def _kept(value: Any, used: set[Path], path: Path = ()) -> Any:
    """What is left of an output: a node, or a tuple of what is left of its parts."""
    if isinstance(value, fx.Node):
        return value if path in used else None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    nested = (dict, tuple, list, fx.Node)
    parts = [_kept(v, used, (*path, k)) for k, v in items if isinstance(v, nested)]
    parts = [p for p in parts if p is not None]
    return tuple(parts) if len(parts) > 1 else next(iter(parts), None)


def _in_order(value: Any, used: set[Path]) -> list[Path]:
    return [p for p in _paths(value) if p in used]


def _paths(value: Any, path: Path = ()) -> tuple[Path, ...]:
    """Where the nodes in an output are."""
    if isinstance(value, fx.Node):
        return (path,)
    if isinstance(value, dict):
        return tuple(p for k, v in value.items() for p in _paths(v, (*path, k)))
    if isinstance(value, (tuple, list)):
        return tuple(p for i, v in enumerate(value) for p in _paths(v, (*path, i)))
    return ()


def _reads(node: fx.Node, path: Path = ()) -> dict[Path, fx.Node]:
    """The items that are read of a call; () is what is read as a whole."""
    found: dict[Path, fx.Node] = {}
    for user in node.users:
        if user.target is not operator.getitem or user.args[0] is not node:
            return {path: node}
    for user in node.users:
        if VALUE.on(user) or not user.users:
            found[(*path, user.args[1])] = user
        else:
            found |= _reads(user, (*path, user.args[1]))
    return found


def _reread(call: fx.Node, found: dict[Path, fx.Node], kept: Any, places: dict[Path, Path]) -> None:
    """Reads the items of a call where they are now."""
    ARITY.drop(call)
    before = list(call.users)
    made: dict[Path, fx.Node] = {(): call}
    if not isinstance(kept, fx.Node):
        ARITY.put(call, len(kept))
    for path, item in found.items():
        new = _item(call, kept, places[path], made)
        shared(item, new, VALUE, HINT, KEY)
        _named_by_key(new, path)
        item.replace_all_uses_with(new)
    for item in before:
        _erase(item)


def _named_by_key(item: fx.Node, path: Path) -> None:
    """Notes the key that the source read an item of a tuple with: that of a dataclass."""
    for key in reversed(path):
        if item.target is not operator.getitem:
            return
        if isinstance(key, str):
            KEY.put(item, key)
            return
        item = operand(item)


def _item(call: fx.Node, kept: Any, place: Path, made: dict[Path, fx.Node]) -> fx.Node:
    if place not in made:
        owner = _item(call, kept, place[:-1], made)
        with call.graph.inserting_after(max(made.values())):
            made[place] = call.graph.call_function(operator.getitem, (owner, place[-1]))
        value = kept
        for key in place:
            value = value[key]
        if not isinstance(value, fx.Node):
            ARITY.put(made[place], len(value))
    return made[place]


def _erase(item: fx.Node) -> None:
    for user in list(item.users):
        _erase(user)
    item.graph.erase_node(item)


# -- whole tuples ---------------------------------------------------------------------------------


def pass_on(assigned: dict[str, Any]) -> None:
    """A tuple that is put together from all items of another is that other one."""
    for template in {id(t): t for t in assigned.values() if isinstance(t, Template)}.values():
        for graph in template.graphs:
            output = graph.output_node()
            output.args = (_whole(output.args[0]),)
        template.clean()


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    parts = [_whole(v) for v in value]
    owners = [p.args[0] if _is_item(p) else None for p in parts]
    first = owners[0] if owners else None
    if isinstance(value, tuple) and isinstance(first, fx.Node) and len(parts) > 1:
        keys = [p.args[1] for p in parts if _is_item(p)]
        if owners == [first] * len(parts) and keys == list(range(ARITY.get(first, 0))):
            return first
    return type(value)(parts)


def _is_item(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is operator.getitem
