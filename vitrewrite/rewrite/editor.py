"""Edits a captured tree: templates are copied when an instance starts to differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..errors import RewriteError
from ..tracing.template import Template
from ..tracing.unit import Unit


@dataclass
class Insertion:
    """A module that a pass put into the tree.

    Attributes:
        pass_name: which pass.
        clause: position of the clause in the spec.
        path: module path of the new module.
        sites: the sites it serves, in the order of its parts.
    """

    pass_name: str
    clause: int
    path: str
    sites: tuple[Linear, ...]
    module: nn.Module


@dataclass
class Editor:
    """The tree verbs: what site verbs are made of.

    Attributes:
        root: the tree of units, changed in place.
        insertions: what passes put in, in order.
        warnings: what is odd but not wrong.
    """

    root: nn.Module
    insertions: list[Insertion] = field(default_factory=list)
    edited: set[int] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def own(self, path: str) -> Unit:
        """The unit at `path`, with a template that no other unit uses."""
        unit = self.root.get_submodule(path)
        assert isinstance(unit, Unit)
        if id(unit) not in self.edited:
            template = unit.template
            assert template is not None
            if template.training is not None:
                raise RewriteError(
                    "VR404", f"'{path}' runs another program in training and cannot be rewritten"
                )
            unit.__dict__["template"] = template.clone()
            self.edited.add(id(unit))
        return unit

    def graph(self, path: str) -> fx.Graph:
        """The graph of the unit at `path`, to be edited."""
        template = self.own(path).template
        assert isinstance(template, Template)
        return template.graph

    def node(self, place: Place) -> fx.Node:
        """The node at a place, in a graph that may be edited."""
        graph = self.graph(place.unit)
        node: fx.Node = next(n for n in graph.nodes if n.name == place.node)
        return node

    def adopt(self, unit: str, near: str, name: str, module: nn.Module) -> tuple[str, str]:
        """Puts `module` beside the layer `near` of a unit.

        Returns:
            Its path relative to the unit, and its full path.
        """
        parent = near.rpartition(".")[0]
        relative = f"{parent}.{name}" if parent else name
        owner = self.root.get_submodule(".".join(p for p in (unit, parent) if p))
        stem, number = relative, 2
        while relative.rpartition(".")[2] in owner._modules:
            relative, number = f"{stem}{number}", number + 1
        owner.add_module(relative.rpartition(".")[2], module)
        return relative, ".".join(p for p in (unit, relative) if p)

    def clean(self) -> None:
        """Drops dead code, checks that the rest is sound, and lets equal units share again."""
        known: dict[Hashable, Template] = {}
        for path, unit in units(self.root):
            if id(unit) not in self.edited or unit.template is None:
                continue
            unit.template.clean()
            for graph in unit.template.graphs:
                _lint(graph, unit, path)
            shared = known.setdefault(unit.template.signature(), unit.template)
            unit.__dict__["template"] = shared
        self.edited.clear()


def units(root: nn.Module) -> Iterator[tuple[str, Unit]]:
    """All units of a tree with their paths."""
    for path, module in root.named_modules():
        if isinstance(module, Unit):
            yield path, module


def _lint(graph: fx.Graph, unit: Unit, path: str) -> None:
    """Every name that a graph uses is there, and nodes stand in order.

    Raises:
        RewriteError: VR405, a bug of the pass that was applied last.
    """
    try:
        graph.lint()
        for node in graph.nodes:
            if node.op == "call_module":
                unit.get_submodule(str(node.target))
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                getattr(unit.get_submodule(owner), name)
    except (AttributeError, RuntimeError) as error:
        raise RewriteError(
            "VR405", f"the graph of '{path or 'the root'}' broke: {error}"
        ) from error
