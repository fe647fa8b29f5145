"""Records how a model's constructor computes its tables.

Buffers that no checkpoint holds (relative position indices, window masks, rotary angles) have to
be made by the emitted source. While a model is built, every torch function is written into one
graph; the part of it that leads to a buffer becomes a small function in the source.
"""

from __future__ import annotations

import inspect
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from . import walk
from .notes import ARITY, HINT, VALUE, copied
from .operators import canonical, is_inplace, is_random
from .template import eliminate_dead_code

Programs = dict[str, fx.Graph]
"""Path of a buffer -> a graph without inputs that returns its value."""

_MAX_NODES = 45  # beyond that a packed table is easier to read
_MAX_LITERALS = 200
_MAX_NUMEL = 1 << 22
_KNOWN: weakref.WeakKeyDictionary[nn.Module, Programs] = weakref.WeakKeyDictionary()


def construct(build: Callable[[], nn.Module]) -> nn.Module:
    """Calls `build` and remembers how it made the tables of the model."""
    recording = _Recording()
    with recording:
        model = build()
    _KNOWN[model] = {
        path: graph
        for path, buffer in tables(model)
        if (graph := recording.program(buffer)) is not None
    }
    return model


def programs(model: nn.Module) -> Programs:
    """How the tables of `model` are computed, as far as it is known.

    A model that was not built by `construct` is built once more, on meta, if its class needs no
    arguments (as emitted models do not); whether the tables agree is for the reader to check.
    """
    if model not in _KNOWN:
        _KNOWN[model] = {}
        if any(True for _ in tables(model)) and _builds_itself(type(model)):
            _KNOWN[model] = _rebuilt(type(model))
    return _KNOWN[model]


def tables(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that no checkpoint holds, by path."""
    for prefix, module in walk.named(model):
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def _builds_itself(cls: type) -> bool:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)


def _rebuilt(cls: type[nn.Module]) -> Programs:
    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            twin = construct(cls)
        return _KNOWN[twin]
    except Exception:  # whatever a constructor may do; the tables are then stored as they are
        return {}
    finally:
        torch.set_rng_state(state)


class _Recording(TorchFunctionMode):
    """One straight-line graph of everything a constructor computes."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.keep: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], nn.Parameter):
            # Initialisation of weights; on meta there is nothing to initialise, and it is slow.
            idle = args[0].is_meta and is_inplace(func)
            return args[0] if idle else func(*args, **kwargs)
        result = func(*args, **kwargs)
        kind, target, args, kwargs = canonical(func, args, kwargs)
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(first, torch.Tensor) or target is operator.setitem:
            self._record(kind, target, args, kwargs, result)
        return result

    def _record(self, kind: str, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._name_locals()
        kwargs = {k: v for k, v in kwargs.items() if k != "device" and v is not None}
        node_args, node_kwargs = self._arg(tuple(args)), self._arg(kwargs)
        if kind == "method":
            node = self.graph.call_method(target, node_args, node_kwargs)
        elif kind == "attribute":
            node = self.graph.call_function(getattr, (*node_args, target))
        else:
            node = self.graph.call_function(target, node_args, node_kwargs)
        self._bind(node, result)

    def _bind(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            if result.numel() <= _MAX_NUMEL:
                self.nodes[id(result)] = node
                self.keep.append(result)
                VALUE.put(node, result)
        elif isinstance(result, (tuple, list)):
            ARITY.put(node, len(result))
            for i, item in enumerate(result):
                self._bind(self.graph.call_function(operator.getitem, (node, i)), item)

    def _arg(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.nodes.get(id(value), _Unknown)
        if isinstance(value, (tuple, list)):
            items = [self._arg(v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self._arg(v) for k, v in value.items()}
        return value if _is_literal(value) else _Unknown

    def _name_locals(self) -> None:
        here = sys._getframe(3)  # the code that called into torch
        for _ in range(4):
            if here is None or here.f_code.co_name == "__init__":
                break
            if "/torch/" not in here.f_code.co_filename:
                for name, value in here.f_locals.items():
                    node = self.nodes.get(id(value))
                    if node is not None:
                        HINT.keep(node, name)
            here = here.f_back  # type: ignore[assignment]

    def program(self, buffer: torch.Tensor) -> fx.Graph | None:
        """The part of the graph that computes `buffer`, or None if it cannot be told."""
        node = self.nodes.get(id(buffer))
        if node is None:
            return None
        needed = _slice(self.graph, node)
        if len(needed) > _MAX_NODES or any(_unprintable(n) for n in needed):
            return None
        return _extract(self.graph, needed, node)


class Uninitialised(TorchFunctionMode):
    """Leaves parameters as they were allocated: they are loaded afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skips what fills a parameter; `torch.nn.init` hands it over by name."""
        given = kwargs or {}
        filled = args[0] if args else given.get("tensor")
        if isinstance(filled, nn.Parameter) and is_inplace(func):
            return filled
        return func(*args, **given)


class _Unknown:
    """Stands for an argument whose origin was not recorded."""


def _is_literal(value: Any) -> bool:
    plain = (bool, int, float, str, type(None), torch.dtype, slice, type(...))
    return isinstance(value, plain)


def _unprintable(node: fx.Node) -> bool:
    unknown: list[Any] = []
    literals: list[Any] = []

    def note(value: Any) -> Any:
        (unknown if value is _Unknown else literals).append(value)
        return value

    fx.node.map_aggregate((node.args, node.kwargs), note)
    return bool(unknown) or len(literals) > _MAX_LITERALS or is_random(node)


def _slice(graph: fx.Graph, node: fx.Node) -> set[fx.Node]:
    """Everything that `node` depends on, in-place changes of what it depends on included."""
    needed: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in needed:
            continue
        needed.add(current)
        stack += current.all_input_nodes
        stack += [u for u in current.users if is_inplace(u.target) and u.args[0] is current]
    return needed


def _extract(graph: fx.Graph, needed: set[fx.Node], result: fx.Node) -> fx.Graph:
    out = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            mapping[node] = out.node_copy(node, lambda n: mapping[n])
            copied(node, mapping[node])
    out.output(_copied(mapping[result]))
    eliminate_dead_code(out)
    return out


def _copied(node: fx.Node) -> fx.Node:
    """What is copied into fresh memory, rather than that memory."""
    if node.target == "copy_":
        target, source = node.args[0], node.args[1]
        if isinstance(target, fx.Node) and isinstance(source, fx.Node) and len(target.users) == 1:
            node.graph.erase_node(node)
            return source
    return node
