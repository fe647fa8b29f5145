"""What `vitrewrite.capture` returns: a callable module that knows its graphs."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .template import Template
from .unit import Unit


class Captured(Unit):
    """Root of a captured tree: an `nn.Module` with the state-dict keys of the original.

    Its class, and that of every module in it, is printed from the graphs.
    """

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """Each distinct forward by class name; `Name (training)` where training differs."""
        found: dict[str, fx.Graph] = {}
        for name, template in self.__dict__["classes"].items():
            found[name] = template.graph
            if template.training is not None:
                found[f"{name} (training)"] = template.training
        return found

    def flat(self) -> fx.GraphModule:
        """One graph over the leaf layers, as `fx.symbolic_trace` would give.

        Modules that run another program in training stay calls.
        """
        graph = fx.Graph()
        _inline(self, "", graph, None)
        result = fx.GraphModule(self, graph, class_name=type(self).__name__)
        result.meta["example"] = self.__dict__["example"]
        return result.train(self.training)


def _inline(unit: Unit, path: str, out: fx.Graph, inputs: tuple[Any, ...] | None) -> Any:
    """Writes the program of `unit` into `out`, children inlined; returns its outputs."""
    assert isinstance(unit.template, Template)
    given = iter(inputs or ())
    values: dict[fx.Node, Any] = {}
    for node in unit.template.graph.nodes:
        if node.op == "placeholder" and inputs is not None:
            values[node] = next(given)
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], lambda n: values[n])
            return out.output(result) if inputs is None else result
        else:
            values[node] = _node(node, unit, path, out, values)
    return None


def _node(node: fx.Node, unit: Unit, path: str, out: fx.Graph, values: dict[fx.Node, Any]) -> Any:
    if node.op == "call_module":
        child = unit.get_submodule(str(node.target))
        template = child.template if isinstance(child, Unit) else None
        if template is not None and template.training is None:
            inputs = fx.node.map_arg(node.args, lambda n: values[n])
            return _inline(child, _join(path, node.target), out, inputs)  # type: ignore[arg-type]
    if node.target is operator.getitem:
        owner = node.args[0]
        assert isinstance(owner, fx.Node)
        if not isinstance(values[owner], fx.Node):  # outputs of an inlined child
            return values[owner][node.args[1]]
    new = out.node_copy(node, lambda n: values[n])
    new.meta = dict(node.meta)
    if node.op == "call_module" or (node.op == "get_attr" and node.target != "training"):
        new.target = _join(path, node.target)
    return new


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
