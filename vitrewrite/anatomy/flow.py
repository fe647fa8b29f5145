"""The dataflow of a whole captured model, flattened across the boundaries of its units.

One `Op` per tensor-valued node of each unit instance. Calls of units vanish: their arguments and
results (also inside tuples) are followed to the operation that makes them. Only tensors flow
here; sizes are read off `Op.shape`, so that a path of edges is always a path of activations or
parameters.

A set of ops is an integer with a bit for each, so that what lies between two ops is one `&`, and
anatomy can ask for it thousands of times. It relies on ops being numbered as they run, and for
good.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..tracing.leaves import changed_by
from ..tracing.notes import ARITY, VALUE
from ..tracing.operators import is_inplace
from ..tracing.unit import Unit

# Calls that take tensors and yield none: what they make is not part of the flow.
_NO_TENSOR = {
    "getattr", "size", "dim", "numel", "is_floating_point", "check_input", "check_size",
    "check_grid", "check_dtype", "by_mode",
    "lt", "le", "gt", "ge", "eq", "ne", "_set_grad_enabled",
}  # fmt: skip


class FlowFrame:
    """One call of a unit: which value each node of its graph has.

    Attributes:
        path: module path of the unit.
        env: node -> `Op`, a container of such, or None for what is not a tensor.
    """

    __slots__ = ("depth", "env", "graph", "module", "parent", "path")

    def __init__(
        self, module: nn.Module, graph: fx.Graph, path: str, parent: FlowFrame | None
    ) -> None:
        self.module = module
        self.graph = graph
        self.path = path
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.env: dict[fx.Node, Any] = {}

    def inputs(self) -> list[tuple[fx.Node, Op]]:
        """The placeholders that are given tensors, with these."""
        nodes = [n for n in self.graph.nodes if n.op == "placeholder"]
        return [(n, v) for n in nodes if isinstance(v := self.env.get(n), Op)]

    def lineage(self) -> Iterator[FlowFrame]:
        """This frame and those it is called from, inside out."""
        frame: FlowFrame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent


class Op:
    """A tensor in the model: a node of one unit instance.

    Attributes:
        index: position in order of execution.
        bit: `1 << index`, its member in the sets `before` and `after`.
        name: of the function, method or torch layer ("add", "reshape", "Linear").
        module: the torch leaf layer that is called, or None.
        path: module path of that layer, or the full path of a parameter that is read.
        inputs: the tensors it is made of, in order of the arguments.
        before: set (as bits) of the ops it depends on, itself included.
        after: set of the ops that depend on it, itself included.
    """

    __slots__ = (
        "_shape", "after", "arguments", "before", "bit", "frame", "index", "inputs", "module",
        "name", "node", "path", "users",
    )  # fmt: skip

    def __init__(self, node: fx.Node, frame: FlowFrame, name: str, index: int) -> None:
        self.node = node
        self.frame = frame
        self.name = name
        self.index = index
        self.bit = 1 << index
        self.module: nn.Module | None = None
        self.path = ""
        self.inputs: tuple[Op, ...] = ()
        self.arguments: tuple[fx.Node, ...] = ()
        self.users: list[Op] = []
        self.before = self.bit
        self.after = self.bit
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths in the primary trace; empty if unknown or if several tensors are yielded."""
        if self._shape is None:
            value = VALUE.get(self.node)
            if isinstance(value, torch.Tensor):
                self._shape = tuple(value.shape)
            else:
                overwrites = self.inputs and is_inplace(self.node.target)
                self._shape = self.inputs[0].shape if overwrites else ()
        return self._shape

    def operand(self, position: int, keyword: str) -> Op | None:
        """The tensor given as an argument, by position or keyword."""
        args = self.node.args
        value = args[position] if position < len(args) else self.node.kwargs.get(keyword)
        for node, op in zip(self.arguments, self.inputs, strict=True):
            if node is value:
                return op
        return None

    def __repr__(self) -> str:
        return f"<{self.name} {self.frame.path or '.'}:{self.node.name}>"


class Flow:
    """All ops of a model, in order of execution.

    Attributes:
        images: the tensors the model is called with.
        outputs: the tensors it returns.
        frames: every call of a unit, in order; the first is the root's.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.images: list[Op] = []
        self.outputs: list[Op] = []
        self.frames: list[FlowFrame] = []

    def members(self, bits: int) -> Iterator[Op]:
        """The ops of a set, in order."""
        while bits:
            low = bits & -bits
            yield self.ops[low.bit_length() - 1]
            bits ^= low

    def release(self) -> None:
        """Breaks the cycles between ops, so that they go now and not at a collection."""
        for op in self.ops:
            op.users, op.inputs = [], ()
        for frame in self.frames:
            frame.env.clear()


def union(ops: Iterable[Op]) -> int:
    """The set of `ops`."""
    bits = 0
    for op in ops:
        bits |= op.bit
    return bits


def flatten(root: nn.Module, path: str = "") -> Flow:
    """The dataflow of a captured tree, or of the model at a path of it that holds several.

    Raises:
        TypeError: if `root` was not captured.
    """
    unit = root.get_submodule(path) if isinstance(root, Unit) else root
    if not isinstance(unit, Unit) or unit.template is None:
        raise TypeError(f"{type(root).__name__} is not a captured model")
    builder = _Builder()
    builder.call(unit, path, None, ())
    flow = builder.flow
    _link(flow)
    return flow


def _link(flow: Flow) -> None:
    """Fills the transitive sets; both directions are one pass in topological order."""
    for op in flow.ops:
        before = op.bit
        for source in op.inputs:
            before |= source.before
        op.before = before
    for op in reversed(flow.ops):
        after = op.bit
        for user in op.users:
            after |= user.after
        op.after = after


class _Step(NamedTuple):
    """What is the same for every instance of a template's node."""

    node: fx.Node
    name: str
    inputs: tuple[fx.Node, ...]
    inplace: bool


class _Builder:
    def __init__(self) -> None:
        self.flow = Flow()
        self.steps: dict[int, list[_Step]] = {}

    def call(self, unit: Unit, path: str, parent: FlowFrame | None, args: tuple[Any, ...]) -> Any:
        assert unit.template is not None, "a container is never called"
        frame = FlowFrame(unit, unit.template.graph, path, parent)  # what a place is, is so in eval
        self.flow.frames.append(frame)
        supplied = iter(args)
        for step in self._steps(frame.graph):
            kind = step.node.op
            if kind == "output":
                return self._return(frame, step.node)
            if kind == "call_module":
                frame.env[step.node] = self._call_module(frame, step)
            elif kind == "placeholder" and parent is not None:
                frame.env[step.node] = next(supplied, None)
            else:
                frame.env[step.node] = self._compute(frame, step)
        return None

    def _steps(self, graph: fx.Graph) -> list[_Step]:
        if id(graph) not in self.steps:
            steps = [_step(node) for node in graph.nodes]
            self.steps[id(graph)] = [s for s in steps if s is not None]
        return self.steps[id(graph)]

    def _return(self, frame: FlowFrame, node: fx.Node) -> Any:
        value = _resolve(frame.env, node.args[0])
        if frame.parent is None:
            self.flow.outputs = list(dict.fromkeys(_leaves(value)))
        return value

    def _call_module(self, frame: FlowFrame, step: _Step) -> Any:
        target = str(step.node.target)
        module = frame.module._modules.get(target) or frame.module.get_submodule(target)
        path = f"{frame.path}.{target}" if frame.path else target
        if isinstance(module, Unit):
            args = tuple(_resolve(frame.env, a) for a in step.node.args)
            return self.call(module, path, frame, args)
        changes = changed_by(module)
        if len(changes) > 1:  # one that tells where tokens go yields more than it says
            changes += (None,) * (ARITY.get(step.node, 0) - len(changes))
        nodes = [step.node] if len(changes) < 2 else _items(step.node, len(changes))
        found = []
        for node, changed in zip(nodes, changes or (None,), strict=True):
            sources = step.inputs
            if known := getattr(module, "made_of", None):  # the others only choose of it
                sources = tuple(step.node.args[i] for i in known)
            if changed is not None:
                original = _resolve(frame.env, step.node.args[changed])
                # A changed form of an argument stands for it: what a pass put in hides no sum, norm
                # or layer of the model from the next clause, or the next rewrite.
                if isinstance(original, Op) and _same_shape(node, original):
                    found.append(original)
                    continue
                sources = (step.node.args[changed],)  # type: ignore[assignment]
            op = self._add(frame, step._replace(node=node, inputs=sources), type(module).__name__)
            op.module, op.path = module, path
            found.append(op)
        return found[0] if len(changes) < 2 else tuple(found)

    def _compute(self, frame: FlowFrame, step: _Step) -> Any:
        node, env = step.node, frame.env
        if step.name == "getitem":  # an element of what a unit returned is not an operation
            container = env.get(step.inputs[0]) if step.inputs else None
            if isinstance(container, (tuple, list, dict)):
                index: Any = node.args[1]
                return container[index]
        if step.name == "by_mode" and isinstance(node.args[2], fx.Node):
            return env.get(node.args[2])  # what it is outside of training
        if node.op in ("placeholder", "get_attr"):
            op = self._add(frame, step, step.name)
            op.path = f"{frame.path}.{node.target}" if frame.path else str(node.target)
            if node.op == "placeholder":
                self.flow.images.append(op)
            return op
        if VALUE.get(node) is None and not any(isinstance(env.get(n), Op) for n in step.inputs):
            return None
        op = self._add(frame, step, step.name)
        if step.inplace and isinstance(node.args[0], fx.Node):
            env[node.args[0]] = op  # later readers of the changed tensor read the change
        return op

    def _add(self, frame: FlowFrame, step: _Step, name: str) -> Op:
        op = Op(step.node, frame, name, len(self.flow.ops))
        pairs = [(n, v) for n in step.inputs if isinstance(v := frame.env.get(n), Op)]
        op.arguments, op.inputs = tuple(n for n, _ in pairs), tuple(v for _, v in pairs)
        for source in op.inputs:
            source.users.append(op)
        self.flow.ops.append(op)
        return op


def _items(call: fx.Node, count: int) -> list[fx.Node]:
    """The nodes that take the results of a call apart; the call itself if nobody reads one."""
    users = {u.args[1]: u for u in call.users if u.target is operator.getitem}
    return [users.get(i, call) for i in range(count)]


def _same_shape(node: fx.Node, original: Op) -> bool:
    """Whether a node is as long as what it is a changed form of; unknown lengths count as such."""
    value = VALUE.get(node)
    return not isinstance(value, torch.Tensor) or tuple(value.shape) == original.shape


def _step(node: fx.Node) -> _Step | None:
    """The step of a node, or None if it cannot yield a tensor."""
    if node.op in ("output", "call_module"):
        return _Step(node, "", tuple(node.all_input_nodes), False)
    value = VALUE.get(node)
    if value is not None and not isinstance(value, torch.Tensor):
        return _Step(node, "", (), False) if node.op == "placeholder" else None
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if node.op == "placeholder" or node.op == "get_attr":
        return _Step(node, node.op, (), False)
    if value is None and name in _NO_TENSOR:
        return None
    sources = tuple(node.all_input_nodes)
    if name == "type_as":  # reads its second argument for the type only
        sources = sources[:1]
    return _Step(node, name, sources, is_inplace(target))


def _resolve(env: dict[fx.Node, Any], value: Any) -> Any:
    if isinstance(value, fx.Node):
        return env.get(value)
    if isinstance(value, (tuple, list)):
        return tuple(_resolve(env, v) for v in value)
    if isinstance(value, dict):
        return {k: _resolve(env, v) for k, v in value.items()}
    return None


def _leaves(value: Any) -> Iterator[Op]:
    if isinstance(value, Op):
        yield value
    elif isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
