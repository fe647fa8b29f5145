"""A template: the graph shared by all equal modules, to become one class."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

from torch import fx, nn

from .nodes import marks_of
from .notes import HELD, ORIGIN, copied
from .operators import is_impure
from .portable import Row, packed, unpacked


class Template:
    """The forward of a kind of module.

    Attributes:
        name: class name in the emitted source.
        graph: the forward; in eval mode if `training` is given.
        training: the forward in train mode, where it is another program.
    """

    def __init__(self, name: str, graph: fx.Graph, training: fx.Graph | None = None) -> None:
        self.name = name
        self.graph = graph
        self.training = training

    @classmethod
    def of(cls, module: nn.Module, graph: fx.Graph) -> Template:
        """The template of a module that was just traced."""
        return cls(re.sub(r"\W", "", type(module).__name__), graph)

    def __reduce__(self) -> Any:
        training = None if self.training is None else packed(self.training)
        return _restored, (self.name, packed(self.graph), training)

    def __deepcopy__(self, memo: Any) -> Template:
        return self  # whoever edits one makes a copy first

    def same(self, other: Template) -> bool:
        """Whether both are the same program."""
        return self is other or self.signature() == other.signature()

    def signature(self) -> Hashable:
        """Equal for equal programs, whatever their nodes are called."""
        return self.name, *(g and signature(g) for g in (self.graph, self.training))

    def clone(self) -> Template:
        """A copy that can be edited."""
        training = None if self.training is None else copy_graph(self.training)
        return Template(self.name, copy_graph(self.graph), training)

    def clean(self) -> None:
        """Drops what nobody reads."""
        for graph in (self.graph, self.training):
            if graph is not None:
                eliminate_dead_code(graph)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The one or two programs."""
        return (self.graph,) if self.training is None else (self.graph, self.training)


def _restored(name: str, graph: list[Row], training: list[Row] | None) -> Template:
    return Template(name, unpacked(graph), None if training is None else unpacked(training))


def signature(graph: fx.Graph) -> Hashable:
    """A hashable for the program in `graph`, free of node names."""
    number = {node: i for i, node in enumerate(graph.nodes)}

    def frozen(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return ("node", number[value])
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, *map(frozen, value))
        if isinstance(value, dict):
            return ("dict", *((k, frozen(v)) for k, v in value.items()))
        if isinstance(value, slice):
            return ("slice", frozen(value.start), frozen(value.stop), frozen(value.step))
        if isinstance(value, float):
            return (type(value).__name__, value.hex())  # -0.0 is not 0.0, and NaN is NaN
        return (type(value).__name__, value)

    return tuple((n.op, *_target(n), frozen(n.args), frozen(n.kwargs)) for n in graph.nodes)


def _target(node: fx.Node) -> tuple[Hashable, ...]:
    """What is called, the clause that put it there, which the source will name, and its entry."""
    target = "" if node.op == "placeholder" else node.target
    return target, ORIGIN.get(node), *marks_of(node)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy with the nodes' meta."""
    result = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new = mapping[node] = result.create_node(
            node.op, node.target, name=node.name, type_expr=node.type
        )
        # Given to `create_node`, they are searched for symbols of torch's, which takes longer.
        new.args = fx.node.map_arg(node.args, mapping.__getitem__)
        if node.kwargs:
            new.kwargs = fx.node.map_arg(node.kwargs, mapping.__getitem__)
        copied(node, new)
    return result


def eliminate_dead_code(graph: fx.Graph) -> None:
    """Erases nodes without users, in-place, random and guarding ones excepted.

    One that is `held` is going to be read.
    """
    for node in reversed(list(graph.nodes)):
        if not node.users and not is_impure(node) and not HELD.on(node):
            graph.erase_node(node)
