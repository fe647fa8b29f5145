"""Proof that what was printed is what was captured, for every module of a class.

Both the graph of a module and the forward that was printed for its class are gone through with
symbols in place of tensors. They are the same if they return the same terms, after the same draws
and changes in the same order. So nothing that a printed class shares between its instances, no
line, loop or comprehension, can rest on one of them alone.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..tracing import walk
from ..tracing.about import is_root
from ..tracing.configuration import freeze
from ..tracing.guards import is_guard
from ..tracing.leaves import is_inserted
from ..tracing.modes import by_mode
from ..tracing.notes import ARITY, VALUE
from ..tracing.numbers import plain
from ..tracing.sizes import by_size
from ..tracing.unit import Unit
from .effects import is_nothing, module_changes, module_has_effect
from .entrances import entered, entrances
from .inlining import MAX_STEPS, program, steps
from .symbols import Number, Storage, Symbolic, Terms, UnknownError, UnprovedError, frozen


@dataclass(frozen=True)
class Doubt:
    """Why a class is not proved.

    Attributes:
        why: in words.
        differs: whether it computes something else; if not, nothing is known of it.
    """

    why: str
    differs: bool


def unproved(unit: Unit) -> Doubt | None:
    """How the printed class of a unit differs from its graph, or None.

    Args:
        unit: a module with a template, whose class has been printed.
    """
    assert unit.template is not None
    for training in (False, True) if _has_modes(unit) else (False,):
        try:
            for name in ("forward", *(entrances(unit) if is_root(unit) else ())):
                _compare(unit, training, name)
        except UnprovedError as error:
            return Doubt(str(error), differs=True)
        except (UnknownError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Doubt(f"{type(error).__name__}: {error}", differs=False)
    return None


_APART = ("template", "kind", "settings")  # looked at apart, or not printed


def likeness(unit: Unit) -> Hashable:
    """Equal for units of one class of which one proves the other."""
    template = unit.template
    assert template is not None
    calls = {str(n.target) for g in template.graphs for n in g.nodes if n.op == "call_module"}
    below = tuple((name, _kind(unit.get_submodule(name))) for name in sorted(calls))
    own = tuple((k, freeze(v)) for k, v in unit.__dict__.items() if k[0] != "_" and k not in _APART)
    sizes = tuple((k, len(m._modules)) for k, m in unit._modules.items() if m is not None)
    return type(unit), id(template), own, below, sizes


def _kind(module: nn.Module) -> Hashable:
    """What of a child decides how a call of it is written."""
    inlined = program(module) if steps(module) <= MAX_STEPS else None
    return is_nothing(module), inlined, module_has_effect(module), module_changes(module)


def _has_modes(unit: Unit) -> bool:
    assert unit.template is not None
    reads = (n for n in unit.template.graph.nodes if n.op == "get_attr" and n.target == "training")
    return unit.template.training is not None or any(True for _ in reads)


def _compare(unit: Unit, training: bool, name: str = "forward") -> None:
    assert unit.template is not None
    terms = Terms()
    graph = (unit.template.training if training else None) or unit.template.graph
    if name != "forward":
        graph = entered(graph, unit, name)
    wanted = _run(terms, graph, unit, None, training)
    ended = terms.close()
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    given = [_input(terms, i, node) for i, node in enumerate(inputs)]
    if name == "forward":
        given = list(unit.packing.packed(given))
    found = _printed(terms, unit, training, name)(*given)
    if frozen(found) != frozen(wanted):
        raise UnprovedError("what it returns is not what the graph returns")
    if terms.moment != ended:
        raise UnprovedError(
            "it draws random numbers, or changes tensors, less often than the graph"
        )


# -- the graph ------------------------------------------------------------------------------------


def _run(terms: Terms, graph: fx.Graph, module: nn.Module, args: Any, training: bool) -> Any:
    values: dict[fx.Node, Any] = {}
    inputs = iter(args) if args is not None else None
    count = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs) if inputs is not None else _input(terms, count, node)
            count += 1
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        elif not is_guard(node):
            values[node] = _node(terms, node, module, values, training)
            _note(terms, node, values[node])
    return None


def _input(terms: Terms, number: int, node: fx.Node) -> Any:
    value = VALUE.get(node)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return plain(value)
    symbol = Symbolic(terms, terms.of(("input", number), "an input"))
    _note(terms, node, symbol)
    return symbol


def _note(terms: Terms, node: fx.Node, value: Any) -> None:
    """Keeps what the graph tells of a value: its shape, or how many items it has."""
    known = VALUE.get(node)
    if isinstance(known, (int, float)) and not isinstance(known, bool):
        known = Number(plain(known))
    known = ARITY.get(node, known)
    if isinstance(value, Symbolic) and known is not None:
        terms.known.setdefault(value.term, known)


def _node(terms: Terms, node: fx.Node, module: nn.Module, values: Any, training: bool) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return _Stand(terms, module.get_submodule(owner), training).member(name)
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(dict(node.kwargs), values.__getitem__)
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return _called(terms, child, args, kwargs, training)
    if node.op == "call_method":
        return _method(terms, str(node.target), args, kwargs)
    if node.target in (getattr, operator.getitem) and isinstance(args[0], Symbolic):
        return node.target(*args)
    return _function(terms, node.target, args, kwargs)


def _method(terms: Terms, name: str, args: Any, kwargs: Any) -> Any:
    if isinstance(args[0], Symbolic) and name in ("size", "dim", "numel"):
        return getattr(args[0], name)(*args[1:], **kwargs)
    return terms.apply(name, args, kwargs)


def _function(terms: Terms, function: Any, args: Any, kwargs: Any) -> Any:
    """Numbers are computed; what has a symbol in it, and what torch makes, is a term."""
    made = str(getattr(function, "__module__", None) or "torch").partition(".")[0] == "torch"
    of_items = bool(args) and isinstance(args[0], (tuple, list, dict))  # `(a, b)[0]`
    if not made and (of_items or not _symbols((args, kwargs))):
        return function(*args, **kwargs)
    if function in (by_mode, by_size) and isinstance(args[0], bool):
        return function(*args)
    return terms.apply(function, args, kwargs)


def _symbols(value: Any) -> bool:
    return any(isinstance(v, Symbolic) for v in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def _called(terms: Terms, child: nn.Module, args: Any, kwargs: Any, training: bool) -> Any:
    """The value of a call: that of the child's program, where it may be written inline."""
    if is_nothing(child):
        return args[0]
    args = _given(child, args)
    if isinstance(child, Unit) and steps(child) <= MAX_STEPS:
        assert child.template is not None
        graph = child.template.graph  # and so the same on both sides
        return terms.freely(lambda: _run(terms, graph, child, args, training))
    effect = module_has_effect(child)
    key = ("call", id(child), frozen(args), frozen(kwargs), terms.moment if effect else None)
    terms.moment += effect
    term = terms.of(key, f"a call of {type(child).__name__}")
    if module_changes(child):
        for value in _leaves((args, kwargs)):
            if isinstance(value, Symbolic):
                value.memory.version += 1
    return Symbolic(terms, term)


def _given(child: nn.Module, args: Any) -> Any:
    """The arguments of a call but for a last None, which is what is there without it."""
    if is_inserted(child):
        return _but_for_defaults(type(child).forward, tuple(args))
    if isinstance(child, Unit) and child.printed is not None and child.template is not None:
        wanted = sum(n.op == "placeholder" for n in child.template.graph.nodes)
        most = type(child).forward.__code__.co_argcount + child.packing.more
        if args[wanted:] == (None,) * (len(args) - wanted) and len(args) < most:
            return args[:wanted]
    return args


def _but_for_defaults(function: Callable[..., Any], args: Any) -> Any:
    """The arguments of a call but for each last None that is a default."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    while args and args[-1] is None and len(args) <= len(parameters):
        last = parameters[len(args) - 1]
        if last.default is not None or last.kind is not last.POSITIONAL_OR_KEYWORD:
            break
        args = args[:-1]
    return args


# -- what was printed -----------------------------------------------------------------------------


def _printed(terms: Terms, unit: Unit, training: bool, name: str) -> Any:
    """A printed method of a unit, with torch replaced by what makes terms."""
    return _bound(getattr(type(unit), name), _Stand(terms, unit, training), terms)


def _bound(method: Any, stand: _Stand, terms: Terms) -> Any:
    names = {"torch": _Library(terms, torch), "F": _Library(terms, F), "nn": _Library(terms, nn)}
    space = {**method.__globals__, **names, "math": math, "checkpoint": _checkpoint}
    function = FunctionType(method.__code__, space, method.__name__, method.__defaults__)
    function.__kwdefaults__ = method.__kwdefaults__
    return function.__get__(stand)


def _checkpoint(compute: Any, *args: Any, **_: Any) -> Any:
    """What is computed again in backward is computed once."""
    return compute(*args)


class _Library:
    """`torch`, or a part of it, as a printed forward sees it."""

    def __init__(self, terms: Terms, library: Any) -> None:
        self._terms, self._library = terms, library

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if isinstance(found, ModuleType):
            return _Library(self._terms, found)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(found, type) and not _symbols((args, kwargs)):
                return found(*args, **kwargs)
            return _function(self._terms, found, args, kwargs)

        return call


class _Stand:
    """A module as a printed forward sees it: children, tensors, settings."""

    def __init__(self, terms: Terms, module: nn.Module, training: bool) -> None:
        self._terms, self._module, self._training = terms, module, training

    def member(self, name: str) -> Any:
        """What is called `name` below the module."""
        module = self._module
        if module._modules.get(name) is not None:
            return self._child(module._modules[name])
        for table in (module._parameters, module._buffers):
            if table.get(name) is not None:
                return self._tensor(table[name])
        if name == "training":
            return self._training
        if name == "_modules":
            return {k: self._child(m) for k, m in module._modules.items()}
        if name in ("_parameters", "_buffers"):
            return {k: self._tensor(t) for k, t in getattr(module, name).items() if t is not None}
        method = getattr(type(module), name, None)
        if isinstance(method, FunctionType):  # a part of the printed class
            return _bound(method, self, self._terms)
        return getattr(module, name)

    __getattr__ = member

    def _child(self, module: Any) -> _Stand:
        return _Stand(self._terms, module, self._training)

    def _tensor(self, tensor: Any) -> Symbolic:
        terms = self._terms
        term = terms.freely(lambda: terms.of(("state", id(tensor)), "a tensor"))
        terms.known.setdefault(term, tensor)
        return Symbolic(terms, term, terms.state.setdefault(id(tensor), Storage()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._module, Unit) and self._module.packing:
            args = self._module.packing.flat(args)
        return _called(self._terms, self._module, args, kwargs, self._training)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        if isinstance(self._module, (nn.ParameterList, nn.ParameterDict)):
            return self._tensor(self._module._parameters[str(index)])
        return list(self)[index] if isinstance(index, int) else self.member(index)

    def __iter__(self) -> Iterator[Any]:
        return (self._child(m) for m in self._module._modules.values())

    def __len__(self) -> int:
        return len(self._module._modules)


def find_unproved(root: nn.Module, printed: Mapping[int, Any]) -> dict[int, Doubt]:
    """Ids of the units whose printed class differs from their graph, and how.

    Args:
        root: a tree whose classes have been printed.
        printed: what has a printed class of its own, by the id of the module.
    """
    seen: set[Hashable] = set()
    found: dict[int, Doubt] = {}
    for unit in walk.modules(root):
        if not isinstance(unit, Unit) or unit.printed is None or id(unit) not in printed:
            continue
        if unit.template is None:
            continue
        like = likeness(unit)
        if like not in seen:
            seen.add(like)
            why = unproved(unit)
            if why is not None:
                found[id(unit)] = why
    return found
