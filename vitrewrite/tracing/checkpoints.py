"""Gradient checkpointing: what a model computes again in backward, instead of keeping it.

`torch.utils.checkpoint.checkpoint` of a module, however a library comes to call it, makes that
module *checkpointed*: the printed class does the same. Where only a part of a forward is
checkpointed, the modules called there are, or the whole of a module that calls no others.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.utils.checkpoint as library
from torch import fx

from .guards import is_guard
from .template import Template

if TYPE_CHECKING:
    from .frame import Frame
    from .recorder import Recorder

_GENERATORS = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
)
_READS = (operator.getitem, getattr)


@contextmanager
def checkpoints_seen(recorder: Recorder) -> Iterator[None]:
    """Notes in this thread's frames what is checkpointed; nothing is saved or computed again."""
    owner = threading.get_ident()
    known = {
        n: getattr(library, n) for n in (*_GENERATORS, "CheckpointFunction") if hasattr(library, n)
    }
    reentrant = known["CheckpointFunction"]

    def generator(original: Any) -> Any:
        def region(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner or not recorder.frames:
                yield from original(*args, **kwargs)
                return
            with _region(recorder.frame):
                yield

        return region

    class Reentrant(reentrant):  # type: ignore[misc, valid-type]
        @staticmethod
        def apply(function: Any, preserve: bool, *args: Any) -> Any:
            if threading.get_ident() != owner or not recorder.frames:
                return reentrant.apply(function, preserve, *args)
            with _region(recorder.frame):
                return function(*args)

    for name, original in known.items():
        new = Reentrant if name == "CheckpointFunction" else generator(original)
        setattr(library, name, new)
    try:
        yield
    finally:
        for name, original in known.items():
            setattr(library, name, original)


@contextmanager
def _region(frame: Frame) -> Iterator[None]:
    """Notes the nodes that are added meanwhile; what is checkpointed twice is so once."""
    before = next(iter(reversed(frame.graph.nodes)), None)
    frame.inside += 1
    try:
        yield
    finally:
        frame.inside -= 1
        if frame.inside == 0:
            nodes = list(frame.graph.nodes)
            frame.regions.append(nodes[nodes.index(before) + 1 if before else 0 :])


def checkpointed(frame: Frame) -> tuple[frozenset[str], list[str]]:
    """Paths, relative to the frame's module, of what is checkpointed, and what of it is not kept.

    The path of the module itself is empty.
    """
    found = set(frame.checkpointed)
    lost: list[str] = []
    regions = [[n for n in nodes if _computes(n)] for nodes in frame.regions]
    inside = {node for nodes in regions for node in nodes}
    outside = [n for n in frame.graph.nodes if n not in inside and _computes(n)]
    for nodes in regions:
        units = {str(n.target) for n in nodes if _is_unit(n, frame)}
        plain = any(not _is_unit(n, frame) for n in nodes)
        # What a block does outside its checkpoints is little: sums, a drop path.
        if frame.path and (not outside or (plain and not any(_is_unit(n, frame) for n in outside))):
            return frozenset({""}), []
        found |= units
        if plain and nodes:
            lost.append(frame.path)
    return frozenset(found), lost


def _is_unit(node: fx.Node, frame: Frame) -> bool:
    called = node.op == "call_module"
    return called and isinstance(frame.assignments.get(str(node.target)), Template)


def _computes(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr", "output") or is_guard(node):
        return False
    return not (node.target in _READS or (node.op == "call_method" and node.target == "size"))
