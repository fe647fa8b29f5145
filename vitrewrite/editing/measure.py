"""Counts: parameters, multiply-accumulates, tokens. On meta tensors, equal units once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..anatomy.sites import Place
from ..text import Told
from ..tracing import kernels, tree
from ..tracing.configuration import freeze
from ..tracing.leaves import is_inserted
from ..tracing.notes import VALUE
from ..tracing.numbers import plain
from ..tracing.operators import is_repeatable
from ..tracing.recipes import remembered
from ..tracing.unit import Unit, on_meta, run_node
from . import costs
from .costs import Costs
from .inserted import run_inserted


@dataclass
class _Entry(Told):
    outputs: Any
    costs: Costs
    shapes: dict[str, tuple[int, ...]]  # node -> shape
    values: tuple[Any, ...] = ()  # node by node; equal graphs have them in the same order
    children: dict[str, Hashable] = field(default_factory=dict)
    seen_in_children: Costs = field(
        default_factory=Costs
    )  # what the counter moved by while children ran


Shape: TypeAlias = tuple[int, ...]


class BrokenError(Exception):
    """A unit cannot run on what it is given.

    What torch says of it is the error's cause.

    Attributes:
        path: of the unit, as far as it is known yet.
        operation: what failed in it, such as `add`.
        shapes: of the tensors that it got.
        numbers: the other numbers, in their order.
    """

    def __init__(
        self,
        path: str,
        operation: str,
        shapes: tuple[Shape, ...] = (),
        numbers: tuple[int, ...] = (),
    ) -> None:
        super().__init__(f"{operation} in '{path}'")
        self.path, self.operation, self.shapes, self.numbers = path, operation, shapes, numbers

    @classmethod
    def at(cls, operation: str, given: Any) -> BrokenError:
        """Of an operation on arguments."""
        leaves = torch.utils._pytree.tree_leaves(given)
        shapes = tuple(tuple(v.shape) for v in leaves if isinstance(v, torch.Tensor))
        return cls("", operation, shapes, tuple(int(v) for v in leaves if type(v) is int))

    def below(self, name: str) -> BrokenError:
        """The same of the unit that calls this one by a name."""
        path = f"{name}.{self.path}" if self.path else name
        return BrokenError(path, self.operation, self.shapes, self.numbers)


class _Untracked:
    """In place of what tells a counter which module runs, by hooks that all threads would run."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *_: object) -> None:
        """Nothing to undo."""


class Propagation:
    """Runs a tree of units on meta tensors.

    Attributes:
        costs: what it computes, by kind.
        macs: multiply-accumulates of every convolution and matrix product, SDPA's two included;
            no norms, softmax, elementwise operations or sampling.

    Args:
        root: a tree on meta.
        inputs: what it is called with.
        known: a run of a similar tree; what both have in common is not run again.
        note: whether nodes are given the value that they have here, in a first call.
    """

    def __init__(
        self,
        root: nn.Module,
        inputs: tuple[Any, ...],
        known: Propagation | None = None,
        *,
        note: bool = False,
    ) -> None:
        self.note, self.noted = note, set[int]()
        self.spared = Costs()  # of operations that were not run again
        self.entries: dict[Hashable, _Entry] = known.entries if known else {}
        self.programs: dict[int, Hashable] = {}
        self.fingerprints: dict[int, Hashable] = {}
        counter = FlopCounterMode(display=False, custom_mapping={**costs.MORE})
        tracker: Any = _Untracked()
        counter.mod_tracker = tracker
        with counter as self.counter, torch.no_grad(), torch.device("meta"):
            # The tree computes in float32, whatever the model it stands for does.
            floats = tuple(v.float() if _is_floating(v) else v for v in inputs)
            self.top = self._run(root, floats)
        del self.counter  # it cannot be pickled, and has counted
        self.costs = self.entries[self.top].costs

    @property
    def macs(self) -> int:
        """Multiply-accumulates, as the class tells."""
        return self.costs.macs

    @property
    def outputs(self) -> Any:
        """What the whole yields, on meta."""
        return self.entries[self.top].outputs

    def shape(self, place: Place) -> tuple[int, ...] | None:
        """The shape of the value at a place, or None if nothing ran there."""
        entry = self._entry(place.unit)
        return entry.shapes.get(place.node) if entry else None

    def given(self, path: str, count: int) -> tuple[Any, ...] | None:
        """What a unit is called with, or None if it was not run."""
        entry = self._entry(path)
        return entry.values[:count] if entry and len(entry.values) >= count else None

    def within(self, unit: Unit, given: tuple[Any, ...]) -> dict[fx.Node, Any]:
        """What each node of a unit yields, as it is by now; of equal units only one is run.

        Args:
            unit: in any tree.
            given: what it is called with, as `given` has it.
        """
        assert unit.template is not None
        run = Propagation(on_meta(unit), given, self)
        return dict(zip(unit.template.graph.nodes, run.entries[run.top].values, strict=True))

    def costs_of(self, path: str) -> Costs | None:
        """What a module computes, or None if it was not run."""
        entry = self._entry(path)
        return entry.costs if entry else None

    def outputs_of(self, path: str) -> Any:
        """What a module yields, on meta, or None if it was not run."""
        entry = self._entry(path)
        return entry.outputs if entry else None

    def _entry(self, path: str) -> _Entry | None:
        key, left = self.top, path
        while left:
            entry = self.entries[key]
            names = [n for n in entry.children if left == n or left.startswith(f"{n}.")]
            if not names:
                return None
            name = max(names, key=len)
            key, left = entry.children[name], left[len(name) + 1 :]
        return self.entries[key]

    def _run(self, module: nn.Module, args: tuple[Any, ...]) -> Hashable:
        shapes = tuple(_shape(v) for v in tree.leaves(args))
        constants = freeze(tuple(a for a in args if isinstance(a, (int, float))))
        key = (self._fingerprint(module), shapes, constants)
        if key not in self.entries:
            before = self._counted()
            if isinstance(module, Unit) and module.template is not None:
                entry = self._graph(module.program, module, args)
            else:
                entry = _Entry(self._layer(module, args), Costs(), {})
            own = self._counted() - before - entry.seen_in_children
            entry.costs += own
            self.entries[key] = entry
        if self.note:
            self._note(module, self.entries[key])
        return key

    def _layer(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """What a layer, or a module of a pass, yields."""
        known = kernels.of_layer(module, *args)
        if known is not None:
            self.spared += costs.of_layer(module, args[0])
            return known
        return self._spared(
            lambda given: _leaf(module, given),
            args,
            (type(module), self._fingerprint(module)),
            lambda made: all(map(_is_meta, tree.leaves(made[0]))),
        )

    def _spared(
        self,
        function: Callable[[Any], Any],
        given: Any,
        key: Hashable,
        worth: Callable[[tuple[Any, Costs]], bool],
    ) -> Any:
        """The result of a function, run only if no equal one was run before."""
        before = self._counted()

        def run(value: Any) -> tuple[Any, Costs]:
            return function(value), self._counted() - before

        result, computed = remembered(run, given, key, worth)
        if self._counted() == before:
            self.spared += computed
        return result

    def _note(self, module: nn.Module, entry: _Entry) -> None:
        """Gives the nodes of a unit, and of those that it calls, their values in `entry`."""
        if id(module) in self.noted or not isinstance(module, Unit) or module.template is None:
            return
        self.noted.add(id(module))
        for node, value in zip(module.template.graph.nodes, entry.values, strict=True):
            if isinstance(value, torch.Tensor):
                VALUE.put(node, value)
        for name, key in entry.children.items():
            self._note(module.get_submodule(name), self.entries[key])

    def _graph(self, graph: fx.Graph, unit: Unit, args: tuple[Any, ...]) -> _Entry:
        entry = _Entry(None, Costs(), {})
        values: dict[fx.Node, Any] = {}
        given = iter(args)
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "output":
                entry.outputs = fx.node.map_arg(node.args[0], lambda n: values[n])
            elif node.op == "call_module" and not node.kwargs:
                values[node] = self._child(node, unit, values, entry)
            else:
                values[node] = self._step(node, unit, values)
            if isinstance(values.get(node), torch.Tensor):
                entry.shapes[node.name] = tuple(values[node].shape)
        entry.values = tuple(values.get(node) for node in graph.nodes)
        return entry

    def _step(self, node: fx.Node, unit: Unit, values: dict[fx.Node, Any]) -> Any:
        known = VALUE.get(node)
        if node.target == "item" and isinstance(known, (int, float)):
            return plain(known)  # what it was at this image size; on meta nothing has a value
        try:
            if node.op in ("call_function", "call_method") and is_repeatable(node.target):
                return self._remembered(node, unit, values)
            return run_node(node, unit, values)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            given = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            name = getattr(node.target, "__name__", str(node.target))
            raise BrokenError.at(name, given) from error

    def _remembered(self, node: fx.Node, unit: Unit, values: dict[fx.Node, Any]) -> Any:
        """The value of a call, run only if no equal one was run before."""
        given = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        return self._spared(
            lambda _: run_node(node, unit, values), given, (node.op, node.target), _is_one_tensor
        )

    def _counted(self) -> Costs:
        """Of all that ran, and of what did not have to run again."""
        return costs.counted(self.counter.flop_counts["Global"]) + self.spared

    def _child(self, node: fx.Node, unit: Unit, values: dict[fx.Node, Any], entry: _Entry) -> Any:
        inputs = fx.node.map_arg(node.args, lambda n: values[n])
        name = str(node.target)
        child = unit.get_submodule(name)
        before = self._counted()
        try:
            key = entry.children[name] = self._run(child, inputs)
        except BrokenError as error:
            raise error.below(name) from error
        entry.seen_in_children += self._counted() - before
        entry.costs += self.entries[key].costs
        return self.entries[key].outputs

    def _fingerprint(self, module: nn.Module) -> Hashable:
        if id(module) not in self.fingerprints:
            self.fingerprints[id(module)] = _intern(self._describe(module))
        return self.fingerprints[id(module)]

    def _program(self, unit: Unit) -> Hashable:
        key = id(unit.template)
        if key not in self.programs:
            self.programs[key] = unit.template and _intern(unit.template.signature())
        return self.programs[key]

    def _describe(self, module: nn.Module) -> Hashable:
        state = tuple(
            (name, None if t is None else tuple(t.shape))
            for name, t in (*module._parameters.items(), *module._buffers.items())
        )
        children = tuple(
            (name, None if child is None else self._fingerprint(child))
            for name, child in module._modules.items()
        )
        own: Hashable
        if isinstance(module, Unit):
            own = self._program(module), module.training and module.template is not None
        else:
            own = tuple((k, freeze(v)) for k, v in module.__dict__.items() if k not in _NO_SETTING)
        return type(module), own, state, children


_NO_SETTING = vars(nn.Module()).keys() - {"training"}
"""State, looked at apart, and hooks, which are not run."""


def _is_one_tensor(made: tuple[Any, Costs]) -> bool:
    return _is_meta(made[0])


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def _leaf(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """What a layer yields; not a call, because the counter's own module hooks need gradients."""
    own = is_inserted(module)
    caught = Exception if own else (RuntimeError, TypeError, ValueError, IndexError)
    try:
        return run_inserted(module, args) if own else module.forward(*args)
    except caught as error:
        raise BrokenError.at(type(module).__name__, args) from error


_INTERNED: dict[Hashable, int] = {}


def _intern(key: Hashable) -> int:
    return _INTERNED.setdefault(key, len(_INTERNED))


def _shape(value: Any) -> Hashable:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts; tied ones count once."""

    total: int
    trainable: int
    trainable_without_head: int


def count_parameters(root: nn.Module, head: set[str]) -> ParameterCounts:
    """Counts by `requires_grad`.

    Args:
        root: the model.
        head: names of the parameters of the classifier.
    """
    named = dict(root.named_parameters())
    trained = {n: p.numel() for n, p in named.items() if p.requires_grad}
    return ParameterCounts(
        sum(p.numel() for p in named.values()),
        sum(trained.values()),
        sum(count for name, count in trained.items() if name not in head),
    )
