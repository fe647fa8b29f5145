"""What modules yield in the forward of a training step, for losses that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class Watched:
    """Keeps what modules yielded last, by name, in training mode.

    Call `on` in `Hooks.before_step`, and read it in `Hooks.terms`: the values belong to the graph
    of that step. Nothing of it survives a step, or is in a checkpoint.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._root: nn.Module | None = None

    def on(self, root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Watches modules of a tree, once; values of the step before are forgotten."""
        self.values.clear()
        if self._root is root:
            return
        self._root = root
        for name, module in modules.items():
            module.register_forward_hook(self._keep(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Watched)

    __hash__ = None  # type: ignore[assignment]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, _given: Any, made: Any) -> None:
            if module.training:
                self.values[name] = made

        return hook
