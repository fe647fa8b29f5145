"""Entries: the methods of a model that its forward is made of, which can be called by themselves.

A forward that is `forward_head(forward_features(x))` stays one program, so whatever reads or edits
programs has one graph to look at. Its nodes remember where `forward_head` begins, and there it is
cut again when its class is printed: after a rewrite, too, the entries are the parts of the forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from .cutting import Part, cut, mark, result_nodes, unmark
from .template import Template
from .tree import leaves

if TYPE_CHECKING:
    from .frame import Frame

ENTRIES = ("forward_features", "forward_head")
"""What timm's models call them; the second takes what the first returns."""


class _Calls:
    """Sees the entries that one forward calls."""

    def __init__(self, frame: Frame, given: Any) -> None:
        self.frame = frame
        self.given = [id(leaf) for leaf in leaves(given)]
        self.features: Any = None
        self.head: Any = None
        self.tail: list[fx.Node] = []
        self.marks: dict[fx.Node, Part] | None = None

    def call(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the method returns."""
        if self.frame.recorder.frames[-1:] != [self.frame]:  # of another forward, or not recorded
            return method(*args, **kwargs)
        note = self._features if name == ENTRIES[0] else self._head
        return note(method, args, kwargs)

    def _features(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nodes = self.frame.graph.nodes
        first = self.marks is None and all(n.op == "placeholder" for n in nodes)
        alike = [id(leaf) for leaf in leaves((args, kwargs))] == self.given
        found = method(*args, **kwargs)
        self.marks = {}
        if first and alike:
            self.features = found
            self.marks = result_nodes(found, self.frame.nodes) or {}
        return found

    def _head(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = set(self.frame.graph.nodes)
        alike = len(args) == 1 and args[0] is self.features and not [*leaves(kwargs)]
        found = method(*args, **kwargs)
        if self.marks and alike and self.head is None:
            self.tail = [n for n in self.frame.graph.nodes if n not in before]
            self.head = found
        return found

    def ended(self, outputs: Any) -> None:
        """Marks the nodes, if the forward is the one entry after the other and nothing else."""
        if self.marks and self.head is not None and outputs is self.head:
            mark(self.marks, self.tail, ENTRIES[1])


def run(frame: Frame, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`forward(*args, **kwargs)`, which becomes the frame's graph; its entries are marked in it."""
    module = frame.module
    own = [n for n in ENTRIES if _is_method(module, n)]
    if len(own) < len(ENTRIES):
        return forward(*args, **kwargs)
    seen = _Calls(frame, (args, kwargs))
    for name in own:
        method = getattr(module, name)
        module.__dict__[name] = functools.partial(_called, seen, name, method)
    try:
        outputs = forward(*args, **kwargs)
    finally:
        for name in own:
            del module.__dict__[name]
    seen.ended(outputs)
    return outputs


def _called(seen: _Calls, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return seen.call(name, method, args, kwargs)


def _is_method(module: nn.Module, name: str) -> bool:
    return callable(getattr(type(module), name, None)) and name not in module.__dict__


def settle(template: Template) -> None:
    """Keeps the entries only where they compute what the methods of the model do."""
    if not all(map(_is_exact, template.graphs)):
        for graph in template.graphs:
            unmark(graph)


def _is_exact(graph: fx.Graph) -> bool:
    """Whether the features are what the method returned: all of it, and nothing besides."""
    found = cut(graph)
    return found is not None and found.as_marked


def entries_of(module: nn.Module) -> tuple[str, ...]:
    """The entries that can be called on a captured or rewritten module."""
    found = tuple(n for n in ENTRIES if callable(getattr(type(module), n, None)))
    return found if len(found) == len(ENTRIES) else ()
