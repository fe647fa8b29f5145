"""What identifies a value of a program: the steps that make it, from the images on."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import fx, nn

from ..editing.slices import ordered_ahead
from .halves import Half


class ValueNames:
    """Digests of the values of a flat program; equal for equal programs over the same paths.

    Weights are left out: who asks for a value says whose.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.known: dict[fx.Node, str] = {}

    def of(self, node: fx.Node) -> str:
        """The digest of a value."""
        for each in ordered_ahead([node]):
            if each not in self.known:
                text = f"{each.op} {self._target(each)} {self._shown((each.args, each.kwargs))}"
                self.known[each] = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        return self.known[node]

    def _target(self, node: fx.Node) -> str:
        target: Any = node.target
        if node.op == "placeholder":
            return str([n for n in node.graph.nodes if n.op == "placeholder"].index(node))
        if isinstance(target, Half):
            return f"{target.method} {self._module(target.path)}"
        if node.op == "call_module":
            return self._module(str(target))
        if node.op == "call_function":
            owner = getattr(target, "__module__", "")
            return f"{owner}.{getattr(target, '__qualname__', target.__name__)}"
        return str(target)

    def _module(self, path: str) -> str:
        """A module by its path and what it was made with."""
        module = self.root.get_submodule(path)
        plain = {
            k: v
            for k, v in sorted(vars(module).items())
            if not k.startswith("_") and k not in ("training", "template") and _is_plain(v)
        }
        return f"{path} {type(module).__qualname__} {plain}"

    def _shown(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.known[value]
        if isinstance(value, (tuple, list)):
            return [self._shown(each) for each in value]
        if isinstance(value, dict):
            return {k: self._shown(v) for k, v in value.items()}
        if isinstance(value, slice):
            return "slice", *map(self._shown, (value.start, value.stop, value.step))
        return repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
