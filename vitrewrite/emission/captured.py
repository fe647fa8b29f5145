"""What `vitrewrite.capture` returns: a callable module that knows its graphs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from ..anatomy.sites import Place
from ..text import Pictured, brief, plural
from ..tracing.about import about, is_root, tell
from ..tracing.helpers import ELSEWHERE, NUMBERS, repeated_units
from ..tracing.notes import copied
from ..tracing.template import Template
from ..tracing.unit import Unit, checkpoint, checkpointed


class Captured(Pictured, Unit):
    """Root of a captured tree: an `nn.Module` with the state-dict keys of the original.

    Its class, and that of every module in it, is printed from the graphs.
    """

    def __repr__(self) -> str:
        """A line for each child; `str` is the tree of all modules, as torch prints it."""
        count = sum(each.numel() for each in self.parameters())
        lines = [
            f"{type(self).__name__}: {count:,} parameters, {plural(len(self.graphs), 'graph')}"
        ]
        return brief(
            "\n".join([*lines, *(f"  {n}: {_about(m)}" for n, m in self.named_children())])
        )

    def __str__(self) -> str:
        return nn.Module.__repr__(self)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """Each distinct forward by class name; `Name (training)` where training differs."""
        found: dict[str, fx.Graph] = {}
        for name, template in about(self).classes.items():
            found[name] = template.graph
            if template.training is not None:
                found[f"{name} (training)"] = template.training
        return found

    def __getattr__(self, name: str) -> Any:
        """Also what the model told of itself as timm's do: `num_features`, `group_matcher` ...

        Raises:
            AttributeError: for anything else; for what a captured model cannot have, with what to
                use in its place.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in NUMBERS and name in self._told:
                return self._told[name]
            if name in _RECORDS and is_root(self):
                return getattr(about(self), _RECORDS[name])
            if name in _METHODS and name in self._told:
                return functools.partial(_METHODS[name], self)
            if name in ELSEWHERE:
                told = f"'{type(self).__name__}' has no '{name}': {ELSEWHERE[name]}"
                raise AttributeError(told) from None
            raise

    @property
    def _told(self) -> Mapping[str, Any]:
        return about(self).helpers if is_root(self) else {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes blocks again in backward, or keeps what they need in memory.

        The blocks that the model itself checkpointed, or else the innermost units that stand in
        numbered lists. To be done before a module is compiled, sharded or written.
        """
        from .realise import realise

        known = checkpointed(self) or self._told.get("checkpointed") or repeated_units(self)
        tell(self, helpers={**self._told, "checkpointed": list(known)})
        checkpoint(self, known if enable else ())
        realise(self)

    def flat(self) -> fx.GraphModule:
        """One graph over the leaf layers, as `fx.symbolic_trace` would give.

        Modules that run another program in training stay calls.
        """
        graph = inlined(self)[0]
        result = FlatGraph(self, graph, class_name=type(self).__name__)
        result.meta["example"] = about(self).example
        return result.train(self.training)


class FlatGraph(fx.GraphModule):
    """A model as one graph, which a prompt shows shortly; `print` shows it whole, with its code."""

    def __repr__(self) -> str:
        kind = f"{type(self).__name__}: {plural(len(self.graph.nodes), 'node')} in one graph"
        return brief("\n".join([kind, *(f"  {n}: {_about(m)}" for n, m in self.named_children())]))

    def __str__(self) -> str:
        return f"{nn.Module.__repr__(self)}\n{self.code}"


def _about(module: nn.Module) -> str:
    """What a child is, in a few words: several of a kind are counted, a layer as torch has it."""
    children = list(module.children())
    kind = type(module).__name__
    if not children:
        return brief(repr(module).partition("\n")[0], 100)
    kinds = {type(child).__name__ for child in children}
    if len(children) > 1 and len(kinds) == 1:
        return f"{len(children)} {kinds.pop()}"
    return f"{kind} of {plural(len(children), 'module')}"


_RECORDS = {"pretrained_cfg": "pretrained_cfg", "default_cfg": "pretrained_cfg", "config": "config"}


def _group_matcher(root: Captured, coarse: bool = False) -> Any:
    return root._told["group_matcher"][coarse]


def _no_weight_decay(root: Captured) -> Any:
    return root._told["no_weight_decay"][0]


def _get_classifier(root: Captured) -> nn.Module | tuple[nn.Module, ...]:
    found = tuple(root.get_submodule(path) for path in root._told["get_classifier"])
    return found if len(found) > 1 else found[0]


_METHODS: dict[str, Callable[..., Any]] = {
    "group_matcher": _group_matcher, "no_weight_decay": _no_weight_decay,
    "get_classifier": _get_classifier,
}  # fmt: skip


def inlined(root: Unit, *, evaluation: bool = False) -> tuple[fx.Graph, dict[fx.Node, Place]]:
    """One graph over the leaf layers of a tree, and where in the tree its nodes come from.

    Args:
        root: of a captured tree.
        evaluation: whether it is for evaluation alone; else modules that run another program in
            training stay calls.
    """
    made = _Inlined(evaluation)
    made.unit(root, "", None)
    return made.graph, made.places


class _Inlined:
    """Writes the programs of a tree into one graph, children in the place of their calls."""

    def __init__(self, evaluation: bool) -> None:
        self.evaluation = evaluation
        self.graph = fx.Graph()
        self.places: dict[fx.Node, Place] = {}

    def unit(self, unit: Unit, path: str, inputs: tuple[Any, ...] | None) -> Any:
        """Writes the program of a unit; returns its outputs."""
        assert isinstance(unit.template, Template)
        given = iter(inputs or ())
        values: dict[fx.Node, Any] = {}
        for node in unit.template.graph.nodes:
            if node.op == "placeholder" and inputs is not None:
                values[node] = next(given)
            elif node.op == "output":
                result = fx.node.map_arg(node.args[0], lambda n: values[n])
                return self.graph.output(result) if inputs is None else result
            else:
                values[node] = made = self.node(node, unit, path, values)
                if isinstance(made, fx.Node):
                    self.places.setdefault(made, Place(path, node.name))
        return None

    def node(self, node: fx.Node, unit: Unit, path: str, values: dict[fx.Node, Any]) -> Any:
        """Writes a node, or the program that it calls."""
        if node.op == "call_module":
            child = unit.get_submodule(str(node.target))
            template = child.template if isinstance(child, Unit) else None
            if template is not None and (self.evaluation or template.training is None):
                inputs: Any = fx.node.map_arg(node.args, lambda n: values[n])
                assert isinstance(child, Unit)
                return self.unit(child, _join(path, node.target), inputs)
        if node.target is operator.getitem:
            owner = node.args[0]
            assert isinstance(owner, fx.Node)
            if not isinstance(values[owner], fx.Node):  # outputs of an inlined child
                return values[owner][node.args[1]]
        new = self.graph.node_copy(node, lambda n: values[n])
        copied(node, new)
        if node.op == "call_module" or (node.op == "get_attr" and node.target != "training"):
            new.target = _join(path, node.target)
        return new


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
