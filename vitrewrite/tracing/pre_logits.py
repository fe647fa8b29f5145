"""What `forward_head(x, pre_logits=True)` of timm's models is, told from what layers of it read.

It is one program with `forward_head(x)` up to the layers that make the classes, and something small
of what these read: that itself, its mean over several, or all in a row. Both are run on meta with
tensors that know how they were made, so that equal ones are known as equal.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from . import walk
from .configuration import freeze
from .leaves import is_inserted
from .tree import leaves, map_leaves
from .unit import duplicate

HOW: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "input": lambda xs: xs[0] if len(xs) == 1 else None,
    "mean": lambda xs: (xs[0] + xs[1]) / 2 if len(xs) == 2 else None,
    "row": lambda xs: torch.cat(list(xs), dim=1) if len(xs) > 1 else None,
}
"""What it may be of what the layers read."""
WHOLE = "whole"
"""It is what the model yields: no layer makes classes."""

NOT_READ = "the head of this model reads no vector that its tokens were pooled to"
_UNKNOWN = "what forward_head of this model yields with pre_logits is not what its head reads"


def pre_logits(model: nn.Module, features: Any) -> tuple[str, ...] | None:
    """How it is made, and the paths of the layers; or "" and why it cannot be known.

    Args:
        model: what was captured; it stays as it was.
        features: what its `forward_features` yields, on meta.

    Returns:
        None if its `forward_head` takes no `pre_logits`.
    """
    method = getattr(type(model), "forward_head", None)
    if method is None or "pre_logits" not in inspect.signature(method).parameters:
        return None
    twin: Any = duplicate(model, lambda p: p, lambda b: b)
    for module in walk.modules(twin):
        for table in ("_forward_pre_hooks", "_forward_hooks"):
            module.__dict__[table] = OrderedDict()
    try:
        told = _told(twin, features)
        heads = {id(m): path for path, m in walk.named(twin) if is_inserted(m)}
        return _told(twin, features, heads) if told is None and heads else told or ("", _UNKNOWN)
    except NotImplementedError as error:  # of a model that was printed
        return "", str(error)
    except Exception:  # a method of somebody's own that means something else
        return "", _UNKNOWN


def _told(
    model: Any, features: Any, heads: Mapping[int, str] = MappingProxyType({})
) -> tuple[str, ...] | None:
    """How it is made, or None if nobody knows.

    Args:
        model: a copy of the model, without hooks.
        features: what its tokens became.
        heads: by id the paths of modules that passes put in, to be taken for layers.
    """
    with torch.no_grad(), _Known() as known, known.whole(model, heads):
        given = map_leaves(known.meta, features)
        whole, calls = model.forward_head(given), dict(known.layers)
        known.layers.clear()
        wanted = known.key(model.forward_head(given, pre_logits=True))
        made = {k: v for k, v in calls.items() if k not in known.layers}
        if not made:
            return (WHOLE,) if wanted == known.key(whole) else None
        inputs = [x for x, _ in made.values()]
        for how, make in HOW.items():
            if wanted == known.key(make(inputs)):
                paths = {id(m._parameters.get("weight")): path for path, m in walk.named(model)}
                found = [paths.get(layer, heads.get(layer)) for _, layer in made.values()]
                return None if None in found else (how, *map(str, found))
    return None


class _Known(TorchFunctionMode):
    """Runs functions on meta, whatever they are given, and knows how each tensor was made.

    Attributes:
        layers: by what it yields, the input of each linear layer that ran and the id of its weight,
            or the id of a module that counts as one layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[Hashable, int] = {}  # of each way to make a tensor
        self.known: dict[int, int] = {}  # by id of a tensor on meta, how it was made
        self.twins: dict[int, torch.Tensor] = {}
        self.alive: list[Any] = []
        self.layers: dict[Hashable, tuple[torch.Tensor, int]] = {}
        self.within = False  # whether what runs is part of such a module

    @contextmanager
    def whole(self, model: nn.Module, ids: Collection[int]) -> Iterator[None]:
        """Within, modules of these ids count as one layer each."""

        def enter(*_: Any) -> None:
            self.within = True

        def leave(module: nn.Module, args: Any, made: Any) -> None:
            self.within = False
            self.layers[self.key(made)] = args[0], id(module)

        found = [m for m in walk.modules(model) if id(m) in ids]
        before = [m.register_forward_pre_hook(enter) for m in found]
        behind = [m.register_forward_hook(leave) for m in found]
        try:
            yield
        finally:
            for handle in (*before, *behind):
                handle.remove()

    def meta(self, tensor: Any) -> Any:
        """The tensor on meta that stands for one."""
        if not isinstance(tensor, torch.Tensor) or id(tensor) in self.known:
            return tensor
        if id(tensor) not in self.twins:
            with torch._C.DisableTorchFunction():
                twin = torch.empty_like(tensor, device="meta", requires_grad=False)
            self.twins[id(tensor)] = twin
            self._note(twin, ("given", id(tensor)))
            self.alive.append(tensor)
        return self.twins[id(tensor)]

    def _note(self, tensor: torch.Tensor, key: Hashable) -> None:
        self.known[id(tensor)] = self.numbers.setdefault(key, len(self.numbers))
        self.alive.append(tensor)

    def key(self, value: Any) -> Hashable:
        """How a value was made: equal for what is made alike."""
        if isinstance(value, torch.Tensor):
            return "tensor", self.known.get(id(value), -1)
        if isinstance(value, (tuple, list)):
            return type(value).__name__, *map(self.key, value)
        if isinstance(value, dict):
            return "dict", *((k, self.key(v)) for k, v in value.items())
        if isinstance(value, slice):
            return "slice", *map(self.key, (value.start, value.stop, value.step))
        return freeze(value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls it on meta, and notes what it yields."""
        on_meta, given = map_leaves(self.meta, (args, kwargs or {}))
        key = func, self.key(on_meta), self.key(given)
        made = func(*on_meta, **given)
        for i, tensor in enumerate(v for v in leaves(made) if isinstance(v, torch.Tensor)):
            self._note(tensor, (*key, i))
        if func is F.linear and not self.within:
            self.layers[self.key(made)] = on_meta[0], id(args[1])
        return made
