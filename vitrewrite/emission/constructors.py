"""The `__init__` of a class: its settings, parameters, buffers and children."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import nn

from ..errors import EmitError
from ..text import shown
from ..tracing.leaves import leaf_class
from ..tracing.unit import Unit
from . import layers
from .access import is_chain, is_numbered, set_buffer, set_child, set_parameter
from .classes import Class, Classes
from .effects import is_nothing
from .functions import Functions
from .literals import Symbol, quoted
from .parameters import Parameters
from .rates import rooted, scheduled
from .tables import table
from .wrap import WIDTH, wrap

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Construction:
    """A constructor call in parts, so that runs of them can be written as a loop."""

    callee: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.callee}({', '.join(self.arguments)})"


class Constructors:
    """Writes constructors; each may add arguments to its class, which the parent then passes."""

    def __init__(
        self,
        classes: Classes,
        functions: Functions,
        inserted: Mapping[type[nn.Module], str],
        arguments: Mapping[type[nn.Module], set[str]],
    ) -> None:
        self.classes = classes
        self.functions = functions
        self.inserted = inserted
        self.arguments = arguments  # of the constructors of inserted classes, as they are printed

    def lines(self, cls: Class) -> list[str]:
        """The statements after `super().__init__()` that make parameters, buffers and children."""
        # Children first: the width of a layer is a better argument than the shape of a table.
        children = []
        for name, modules in cls.children():
            text = str(self.construct(modules, cls.parameters, name))
            children.append(set_child(cls.sample, name, text))
        self.classes.finish(cls)
        out: list[str] = []
        for name, parameter in cls.sample._parameters.items():
            if parameter is not None:
                found = [u._parameters.get(name) for u in cls.units]
                made = _parameter(cls.parameters, found)
                out.append(set_parameter(cls.sample, name, made))
        for name, buffer in cls.sample._buffers.items():
            if buffer is not None:
                out += self._buffer(cls, name)
        lines = scheduled((*out, *children), cls.parameters.vectors)
        return [part for line in map(rooted, lines) for part in wrap(line, WIDTH - 8)]

    def _buffer(self, cls: Class, name: str) -> list[str]:
        has = [u._buffers.get(name) is not None for u in cls.units]
        having = list(compress(cls.units, has))
        persistent = name not in cls.sample._non_persistent_buffers_set
        if all(has):
            text = self._buffer_of(having, cls.parameters, name, persistent)
        else:
            own = cls.parameters.of(has)
            text = self._buffer_of(having, own, name, persistent)
            text = cls.parameters.if_there(text, own, has, f"has_{name}")
        return set_buffer(name, text, persistent=persistent)

    def _buffer_of(
        self, units: Sequence[Unit], parameters: Parameters, name: str, persistent: bool
    ) -> str:
        buffers = [b for u in units if (b := u._buffers[name]) is not None]
        if persistent:
            shape = _shape(parameters, buffers)
            dtype = buffers[0].dtype
            kind = "" if dtype == torch.float32 else f", dtype={dtype}"
            return f"torch.zeros({shape}{kind})"
        paths = [f"{self.classes.paths[id(u)]}.{name}".lstrip(".") for u in units]
        text = self.functions.call(paths, parameters)
        return text or parameters.express([Symbol(table(b)) for b in buffers], name)

    # -- children -------------------------------------------------------------------------------

    def construct(self, modules: Sequence[nn.Module], parameters: Parameters, name: str) -> Any:
        """A `Call` (or text) that makes the child `name` of every instance."""
        kinds = {self._kind(m) for m in modules}
        if kinds == {type(None)}:  # an item of a list that some layer does without
            return "None"
        if len(kinds) == 1:
            return self._same_kind(modules, parameters, name)
        if type(None) in kinds and len(kinds) == 2:
            return self._absent(modules, parameters, name)
        busy = [m for m in modules if m is None or not is_nothing(m)]
        if len({self._kind(m) for m in busy}) == 1:
            text = self._optional(modules, busy[0], parameters, name)
            if text:
                return text
        return parameters.module(name, modules)

    def _absent(self, modules: Sequence[Any], parameters: Parameters, name: str) -> Any:
        """A child that some modules do without."""
        has = [m is not None for m in modules]
        own = parameters.of(has)
        text = str(self._same_kind(list(compress(modules, has)), own, name))
        if any(isinstance(v[0], nn.Module) for v in own.vectors.values()):
            return parameters.module(name, modules)
        return parameters.if_there(text, own, has, name.partition("_")[0])

    def _kind(self, module: nn.Module) -> Any:
        if id(module) in self.classes.of:
            return self.classes.of[id(module)].name
        if isinstance(module, (*_CONTAINERS, Unit)):
            return _container_name(module), *(self._kind(m) for m in module.children())
        if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
            return type(module), *module._parameters
        return type(module)

    def _same_kind(self, modules: Sequence[nn.Module], parameters: Parameters, name: str) -> Any:
        first = modules[0]
        if id(first) in self.classes.of:
            return self._instance(modules, parameters)
        if isinstance(first, (*_CONTAINERS, Unit)):
            return self._container(modules, parameters, name)
        if isinstance(first, (nn.ParameterList, nn.ParameterDict)):
            return _parameter_container(modules, parameters)
        return self._layer(modules, parameters)

    def _layer(self, modules: Sequence[nn.Module], parameters: Parameters) -> Construction:
        found = [layers.arguments(m) for m in modules]
        plain = layers.positional(modules[0])
        arguments: list[str] = []
        left = self.arguments.get(type(modules[0]))
        for key in dict.fromkeys(k for f in found for k in f if left is None or k in left):
            default = layers.default(type(modules[0]), key)
            text = parameters.express([f.get(key, default) for f in found], layers.wish(key))
            arguments.append(text if key in plain else f"{key}={text}")
        return Construction(self._class_name(leaf_class(modules[0])), tuple(arguments))

    def _class_name(self, cls: type[nn.Module]) -> str:
        name = self.inserted.get(cls) or layers.torch_name(cls)
        if name is None:
            raise EmitError("VR804", f"torch has no public name for its {shown(cls.__qualname__)}")
        return name

    def _instance(self, modules: Sequence[nn.Module], parameters: Parameters) -> Construction:
        cls = self.classes.of[id(modules[0])]
        position = {id(u): i for i, u in enumerate(cls.units)}
        arguments = []
        by_name = False  # behind one left out, or one written by name, all are written so
        for name, keys in cls.parameters.arguments:
            if name in cls.parameters.together:
                given = [[cls.parameters.value(k, position[id(m)]) for m in modules] for k in keys]
                items = [self.construct(v, parameters, k) for v, k in zip(given, keys, strict=True)]
                arguments.append(_listed(items))
                continue
            (key,) = keys
            values = [cls.parameters.value(key, position[id(m)]) for m in modules]
            default = cls.parameters.default(key)
            if any(isinstance(v, nn.Module) for v in values):
                text = str(self.construct(values, parameters, key))
            else:
                text = parameters.express(values, key)
            by_name |= text == default or (default is not None and key in cls.parameters.switches)
            if text == default:
                continue
            arguments.append(f"{key}={text}" if by_name else text)
        return Construction(cls.name, tuple(arguments))

    def _optional(
        self, modules: Sequence[nn.Module], busy: nn.Module, parameters: Parameters, name: str
    ) -> str | None:
        """`DropPath(p) if p else nn.Identity()`, where one number tells which."""
        cls = self.classes.of.get(id(busy))
        if cls is None or len(cls.parameters.vectors) != 1:
            return None
        (key,) = cls.parameters.vectors
        position = {id(u): i for i, u in enumerate(cls.units)}
        values = [
            cls.parameters.value(key, position[id(m)]) if id(m) in position else 0.0
            for m in modules
        ]
        switch = all((v != 0) == (id(m) in position) for v, m in zip(values, modules, strict=True))
        if not switch or not all(isinstance(v, float) for v in values):
            return None
        text = parameters.express(values, name.rstrip("0123456789"))
        return f"{cls.name}({text}) if {text} else nn.Identity()"

    def _container(self, modules: Sequence[nn.Module], parameters: Parameters, name: str) -> Any:
        columns = zip(*(m._modules.items() for m in modules), strict=True)
        items = [
            self.construct([m for _, m in column], parameters, f"{name}_{column[0][0]}")
            for column in columns
        ]
        kind = _container_name(modules[0])
        named = list(zip(map(quoted, modules[0]._modules), items, strict=True))
        if kind == "nn.ModuleDict":
            return f"{kind}({{{', '.join(f'{k}: {v}' for k, v in named)}}})"
        if not is_numbered(modules[0]):
            return f"{kind}(OrderedDict([{', '.join(_named(list(modules[0]._modules), items))}]))"
        parts = _runs(items, parameters)
        if kind == "nn.ModuleList":
            odd = _one_odd(items)
            if odd:
                return f"{kind}({odd})"
            return f"{kind}({_spread(parts)})"
        return Construction(kind, tuple(parts))


def _parameter_container(modules: Sequence[nn.Module], parameters: Parameters) -> str:
    columns = zip(*(m._parameters.values() for m in modules), strict=True)
    made = [_parameter(parameters, column) for column in columns]
    if isinstance(modules[0], nn.ParameterList):
        return f"nn.ParameterList([{', '.join(made)}])"
    named = zip(map(quoted, modules[0]._parameters), made, strict=True)
    return f"nn.ParameterDict({{{', '.join(f'{k}: {v}' for k, v in named)}}})"


def _parameter(parameters: Parameters, found: Sequence[Any]) -> str:
    """A parameter of a module's own, zero."""
    shape, dtype = _shape(parameters, found), found[0].dtype
    if dtype.is_floating_point:  # see `DTYPES` in the file
        return f"nn.Parameter(torch.zeros({shape}))"
    fixed = "" if dtype.is_complex else ", requires_grad=False"
    return f"nn.Parameter(torch.zeros({shape}, dtype={dtype}){fixed})"


def _shape(parameters: Parameters, tensors: Sequence[Any]) -> str:
    sizes = zip(*(t.shape for t in tensors), strict=True)
    return ", ".join(parameters.express(size, "dim") for size in sizes) or "()"


def _container_name(module: nn.Module) -> str:
    if isinstance(module, Unit):
        return "nn.Sequential" if is_chain(module) else "nn.Module"
    names = {nn.Sequential: "nn.Sequential", nn.ModuleDict: "nn.ModuleDict"}
    return next((n for c, n in names.items() if isinstance(module, c)), "nn.ModuleList")


def _listed(items: list[Any]) -> str:
    """A list of the items."""
    text = _spread(_runs(items))
    return text if text.startswith("[") else f"[{text}]"


def _spread(parts: list[str]) -> str:
    """A list of the parts, or the loop that they are, without brackets."""
    loop = len(parts) == 1 and parts[0].startswith("*(")
    return parts[0][2:-1] if loop else f"[{', '.join(parts)}]"


def _runs(items: list[Any], parameters: Parameters | None = None) -> list[str]:
    """Texts of the items, with runs of three or more alike written as one loop.

    Args:
        items: what is made.
        parameters: the arguments of the class, of which those that a loop reads become one.
    """
    out: list[str] = []
    i = 0
    while i < len(items):
        stop = _run(items, i)
        if stop - i < 3:
            out.append(str(items[i]))
            i += 1
            continue
        out.append(_comprehension(items[i:stop], parameters))
        i = stop
    return out


def _one_odd(items: list[Any]) -> str | None:
    """A loop over items that are alike but for one among them."""
    texts = list(map(str, items))
    kinds = sorted(set(texts), key=texts.count)
    if len(kinds) != 2 or texts.count(kinds[0]) != 1 or len(texts) < 6:
        return None
    odd, most = kinds
    at = texts.index(odd)
    if not 0 < at < len(texts) - 1 or re.search(r"\b(i|if|for)\b", odd + most):
        return None
    return f"{odd} if i == {at} else {most} for i in range({len(texts)})"


def _named(names: list[str], items: list[Any]) -> list[str]:
    """Pairs of names and items; runs of three or more items alike are one loop over the names."""
    out: list[str] = []
    keys = list(map(quoted, names))
    i = 0
    while i < len(items):
        stop = _run(items, i)
        if stop - i < 3:
            out.append(f"({keys[i]}, {items[i]})")
            i += 1
            continue
        run = items[i:stop]
        call, name, values = _varied(run) if _differing(run) else (str(run[0]), "", [])
        pairs = [f"({k}, {v})" for k, v in zip(keys[i:stop], values, strict=False)]
        loop = (
            f"key, {name} in ({', '.join(pairs)})"
            if pairs
            else f"key in ({', '.join(keys[i:stop])})"
        )
        out.append(f"*((key, {call}) for {loop})")
        i = stop
    return out


def _run(items: list[Any], start: int) -> int:
    """End of the longest run from `start` whose calls differ in at most one argument."""
    stop = start + 1
    while stop < len(items) and len(_differing(items[start : stop + 1])) <= 1:
        stop += 1
    return stop


def _differing(items: list[Any]) -> set[int]:
    if not all(isinstance(c, Construction) for c in items):
        return {0} if all(c == items[0] for c in items) else {0, 1}
    if len({(c.callee, len(c.arguments)) for c in items}) > 1:
        return {0, 1}
    columns = enumerate(zip(*(c.arguments for c in items), strict=True))
    found = {i: column for i, column in columns if len(set(column)) > 1}
    calls = any("(" in each for column in found.values() for each in column)
    if not calls:
        return {*found}
    # Of calls, a list is easier to read than a loop, unless it is one number in them.
    return {_WITHIN} if _numbers(items) else {0, 1}


_WITHIN = -1
"""In place of an argument's position: a number somewhere in the arguments."""
_NUMBER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")


def _numbers(items: list[Any]) -> tuple[str, list[str], str] | None:
    """Where texts differ in one number alone: what stands before it, the numbers, what follows."""
    texts = [str(item) for item in items]
    parts = [_NUMBER.split(text) for text in texts]
    if any('"' in text for text in texts) or len({len(p) for p in parts}) > 1:
        return None
    columns = list(zip(*parts, strict=True))
    odd = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(odd) != 1 or odd[0] % 2 == 0:
        return None
    return "".join(parts[0][: odd[0]]), list(columns[odd[0]]), "".join(parts[0][odd[0] + 1 :])


def _comprehension(items: list[Any], parameters: Parameters | None) -> str:
    differing = _differing(items)
    if not differing or not isinstance(items[0], Construction):
        return f"*({items[0]} for _ in range({len(items)}))"
    call, name, values = _varied(items)
    if parameters and (handed := parameters.put_together(values)):
        return f"*({call} for {name} in {handed})"
    return f"*({call} for {name} in ({', '.join(values)}))"


def _varied(items: list[Any]) -> tuple[Any, str, list[str]]:
    """A call with a variable for the one argument in which calls differ, and what it runs over."""
    (i,) = _differing(items)
    others = re.findall(r"\w+", str(items[0]))
    name, prefix = next(n for n in ("p", "q", "value", "each", "p_") if n not in others), ""
    if i == _WITHIN and (found := _numbers(items)):
        before, numbers, after = found
        return f"{before}{name}{after}", name, numbers
    arguments = list(items[0].arguments)
    values = [c.arguments[i] for c in items]
    if re.match(r"\w+=", arguments[i]):
        prefix, _, _ = arguments[i].partition("=")
        values, prefix = [v.partition("=")[2] for v in values], f"{prefix}="
    arguments[i] = f"{prefix}{name}"
    return Construction(items[0].callee, tuple(arguments)), name, values
