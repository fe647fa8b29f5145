"""The inputs under which a trace runs at once.

The primary input decides the control flow. Each *witness* is another input, with another batch size
or another image size. A guard that comes out differently under a witness, or an operation that
fails under it, proves that the model is fixed in that respect; the witness is dropped.

That is how a size is told from a setting of the same value without looking at the source: the
`deps` of a number are the witnesses under which it is another. Values are known by the `id` of
their primary tensor, so whatever is registered is held on to until the trace ends; else an id could
be given anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..errors import CaptureError
from . import places, tree
from .numbers import plain
from .recipes import remembered

BATCH, IMAGE = 0, 1  # by index: the witness of another batch size, and of another image size
COUNT = 2


Shadow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What becomes of the shadow of a tensor that belongs to the model, given both."""


class DeadError(Exception):
    """A witness that is no longer carried."""


class Witnesses:
    """Every value of a trace, under every witness.

    Args:
        count: how many there are; a trace that only checks another has none.
        state: what a shadow of the model's state becomes, where it is in another dtype.
    """

    def __init__(self, count: int = COUNT, state: Shadow | None = None) -> None:
        self.count = count
        self.dead: dict[int, str] = {}  # witness -> why the model is fixed in it
        self._state = state
        self._others: dict[int, list[torch.Tensor | None]] = {}
        self._metas: dict[int, torch.Tensor] = {}
        self._keep: list[Any] = []

    def keep(self, value: Any) -> None:
        """Holds on to a value, so that its id stays its own."""
        self._keep.append(value)

    def add(self, value: torch.Tensor, others: list[torch.Tensor | None]) -> None:
        """Registers a new value."""
        self._others[id(value)] = others
        self.keep(value)

    def has(self, value: torch.Tensor) -> bool:
        """Whether the value was made while tracing."""
        return id(value) in self._others

    def is_traced(self, value: Any) -> bool:
        """Whether it was computed in the trace: no parameter, no number of the model's own."""
        return not isinstance(value, torch.Tensor) or self.has(value)

    def all(self, value: torch.Tensor) -> list[torch.Tensor | None]:
        """The value under the primary input, then under each witness (None where dead)."""
        others = self._others.get(id(value))
        if others is None:  # a parameter: the same under all
            others = [None if i in self.dead else value for i in range(self.count)]
        return [value, *others]

    def meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or its shadow on the meta device."""
        is_meta = tensor.device.type == "meta"
        if is_meta and (self._state is None or id(tensor) in self._others):
            return tensor
        if id(tensor) not in self._metas:
            shadow = tensor if is_meta else tensor.detach().to("meta")
            self._metas[id(tensor)] = self._state(tensor, shadow) if self._state else shadow
            self.keep(tensor)
        return self._metas[id(tensor)]

    def primary(self, value: Any) -> Any:
        """A nested value under the primary input."""
        return tree.map_leaves(
            lambda v: self.meta(v) if isinstance(v, torch.Tensor) else plain(v), value
        )

    def under(self, index: int, value: Any) -> Any:
        """A nested value under a witness.

        Raises:
            DeadError: if any part of it is not carried any more.
        """
        return tree.map_leaves(lambda v: self._at(index, v), value)

    def outcome(self, index: int, value: Any) -> Any:
        """A nested value under a witness, or None if the witness is dead."""
        try:
            return self.under(index, value)
        except DeadError:
            return None

    def _at(self, index: int, value: Any) -> Any:
        is_tensor = isinstance(value, torch.Tensor)
        found = self.all(value)[index + 1] if is_tensor else value.witnesses[index]
        if found is None or index in self.dead:
            raise DeadError
        return self.meta(found) if is_tensor else found

    def run(
        self, function: Callable[[Any], Any], value: Any, what: str, key: Hashable = None
    ) -> tuple[Any, list[Any]]:
        """`function(value)` under the primary input and under each witness.

        Args:
            function: an operation on meta tensors.
            value: its argument, nested.
            what: the operation in words.
            key: identifies the operation, if its result depends on nothing but the shapes and
                constants in `value`; meta kernels are slow, so such results are remembered.
        """
        run = function if key is None else lambda v: remembered(function, v, key)
        result = run(self.primary(value))
        return result, [self._attempt(i, run, value, what) for i in range(self.count)]

    def _attempt(self, index: int, function: Callable[[Any], Any], value: Any, what: str) -> Any:
        if index in self.dead:
            return None
        try:
            return function(self.under(index, value))
        except DeadError:
            return None
        except Exception as error:  # any failure under a witness says that the model is fixed
            self.kill(index, f"{what}: {error}")
            return None

    def kill(self, index: int, why: str) -> None:
        """Drops a witness.

        Raises:
            CaptureError: if the model turns out to be fixed in batch size.
        """
        place = places.here()
        why = f"{why}, {place}" if place else why
        self.dead.setdefault(index, why)  # the first reason is the cause, others follow from it
        if index == BATCH:  # a model may be fixed in image size, and says so; in batch size never
            raise CaptureError("VR605", f"the batch size is built into the model ({why})")
