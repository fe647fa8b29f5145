"""Equal modules called in the same way are traced once.

The key is everything that a forward can depend on: the class, the configuration of the module and
of all modules below it, the shapes of its state, and the shapes, aliasing and constants of the
arguments, under every witness. Objects whose equality is unknown count as different.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import tree
from .configuration import freeze
from .hooks import TABLES
from .numbers import Float, Int, plain
from .template import Template

if TYPE_CHECKING:
    from .frame import Frame
    from .recorder import Recorder

_STATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training", *TABLES}
"""Not configuration: state, looked at apart, the mode of the whole trace, and hooks."""
_EMPTY = frozenset(k for k, v in vars(nn.Module()).items() if not v)
"""Tables of other hooks, which hardly any module has."""


@dataclass(frozen=True)
class Entry:
    """The outcome of a module call: its template, outputs, and the templates below it.

    Attributes:
        frame: where it was traced, if it was.
        checkpointed: relative paths of what is computed again in backward; see `checkpoints`.
        repeatable: whether an equal call has the same outcome.
        decided: whether the outputs hang on values that are not known.
    """

    template: Any
    outputs: Any
    witnesses: list[Any]
    assignments: dict[str, Any]
    checkpointed: frozenset[str] = frozenset()
    frame: Frame | None = None
    repeatable: bool = True
    decided: bool = False

    def fresh(self, recorder: Recorder) -> Any:
        """New values of the same shapes, so that every call has outputs of its own."""
        dead = recorder.values.dead
        others = [
            None if w is None or i in dead else list(_parts(w))
            for i, w in enumerate(self.witnesses)
        ]
        counter, frame = itertools.count(), recorder.frame

        def renew(value: Any) -> Any:
            i = next(counter)
            copies = tuple(_copy(o[i]) if o else None for o in others)
            if isinstance(value, (Int, Float)):
                number: Any = type(value)(plain(value))
                number.frame, number.recipe, number.hint = frame, value.recipe, value.hint
                number.witnesses, number.deps = copies, value.deps
                return number
            result = value.detach()
            recorder.values.add(result, list(copies))
            return result

        with recorder.off():
            return tree.map_leaves(renew, self.outputs)


def _parts(value: Any) -> Iterator[Any]:
    """Leaves of a structure under a witness, where tracked numbers are plain."""
    if isinstance(value, (torch.Tensor, int, float)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _parts(item)


def _copy(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


class Memo:
    """Templates by key, for one trace.

    Args:
        other: the memo of another trace; what does not depend on the mode is shared.
        inputs: whether the inputs of the other trace are those of this one.
    """

    def __init__(self, other: Memo | None = None, *, inputs: bool = True) -> None:
        self.entries: dict[Hashable, Entry] = {}
        self.other = other
        self.shared: set[int] = set()  # programs of the other trace that are those of this one
        self.leaves: dict[Hashable, Entry] = other.leaves if other and inputs else {}
        self.fingerprints: dict[int, Hashable] = other.fingerprints if other else {}

    def find(self, key: Hashable) -> Entry | None:
        """The outcome of an equal call; of the other trace, if nothing in it is another program."""
        found = self.entries.get(key)
        if found is None and self.shared and self.other is not None:
            found = self.other.entries.get(key)
            parts = () if found is None else (found.template, *found.assignments.values())
            if any(isinstance(t, Template) and id(t) not in self.shared for t in parts):
                return None
        return found

    def key(self, module: nn.Module, arguments: Any, recorder: Recorder) -> Hashable:
        """What the call depends on."""
        order: dict[int, int] = {}
        read = tuple(v for v in tree.passed(recorder.frame, arguments) if _is_device(v))
        with recorder.off():
            return self.fingerprint(module), _signature(arguments, recorder, order), read

    def fingerprint(self, module: nn.Module) -> Hashable:
        """The configuration of a module and everything below it."""
        if id(module) not in self.fingerprints:
            self.fingerprints[id(module)] = self._fingerprint(module)
        return self.fingerprints[id(module)]

    def _fingerprint(self, module: nn.Module) -> Hashable:
        config = tuple(
            (k, freeze(v))
            for k, v in module.__dict__.items()
            if k not in _STATE and not (k in _EMPTY and not v)
        )
        state = tuple(
            (name, None if t is None else (tuple(t.shape), t.dtype))
            for name, t in (*module._parameters.items(), *module._buffers.items())
        )
        children = tuple(
            (name, None if child is None else self.fingerprint(child))
            for name, child in module._modules.items()
        )
        # Hashing nested tuples again and again is quadratic in depth: intern each as a number.
        return _intern((type(module), config, state, children))


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device)


_INTERNED: dict[Hashable, int] = {}


def _intern(key: Hashable) -> int:
    return _INTERNED.setdefault(key, len(_INTERNED))


def _signature(value: Any, recorder: Recorder, order: dict[int, int]) -> Hashable:
    if isinstance(value, torch.Tensor):
        alias = order.setdefault(id(value), len(order))
        shapes = tuple(None if t is None else tuple(t.shape) for t in recorder.values.all(value))
        return ("tensor", shapes, value.dtype, alias)
    if isinstance(value, (Int, Float)):
        return ("number", plain(value), value.witnesses)
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_signature(v, recorder, order) for v in value))
    if isinstance(value, dict):
        return ("dict", *((k, _signature(v, recorder, order)) for k, v in value.items()))
    return freeze(value)
