"""Values that leave a forward by another way than its outputs: hooks, attributes, lists.

A forward that asks for a value which another one computed gets it along the tree: it becomes one
more output of each call on the way up to the forward that both are in, and one more input of each
on the way down. A call that was taken from memory did not run, so its values cannot leave it: then
modules of its class are traced anew, each for itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..errors import CaptureError
from .notes import ARITY, HINT, VALUE, copied
from .numbers import Tracked
from .operators import is_impure

if TYPE_CHECKING:
    from .frame import Frame


class AnewError(BaseException):
    """Modules have to be traced each for itself; not an `Exception`, so that no model catches it.

    Attributes:
        classes: those of the modules.
    """

    def __init__(self, inside: Frame) -> None:
        super().__init__()
        self.classes: set[type] = set()
        frame: Frame | None = inside
        while frame is not None and frame.parent is not None:
            self.classes.add(type(frame.module))
            frame = frame.parent


def bring(frame: Frame, value: torch.Tensor | Tracked) -> fx.Node | None:
    """What stands in `frame` for a value that another forward computed; None if none did.

    Raises:
        AnewError: if it was computed in a call that others share.
        CaptureError: VR604 if it was computed in one of several calls of a module.
    """
    if not frame.recorder.values.is_traced(value):
        return None
    if (node := _lifted(frame, value)) is not None:
        return node
    below, outer = [frame], frame.parent
    while outer is not None:
        if _own(outer, value) is not None or _lifted(outer, value) is not None:
            for inner in reversed(below):
                inner.take(value)
            return frame.nodes[id(value)]
        below.append(outer)
        outer = outer.parent
    return None


def _own(frame: Frame, value: torch.Tensor | Tracked) -> fx.Node | None:
    """The node of a value that a forward has itself."""
    node = frame.nodes.get(id(value))
    if node is None and isinstance(value, Tracked) and value.frame is frame:
        last = next(iter(reversed(frame.graph.nodes)))
        with frame.graph.inserting_before(last) if last.op == "output" else nullcontext():
            made = frame.number(value)
        return made if isinstance(made, fx.Node) else None
    return node


def _lifted(frame: Frame, value: torch.Tensor | Tracked) -> fx.Node | None:
    """The node of a value that a call in a forward computed, which returns it from here on."""
    for call, child in frame.calls:
        node = _own(child, value)
        if node is None:
            node = _lifted(child, value)
        if node is not None:
            if child.shared:
                raise AnewError(child)
            return _returned(frame, call, child, node, value)
    return None


def _returned(frame: Frame, call: fx.Node, child: Frame, node: fx.Node, value: Any) -> fx.Node:
    """Lets a call return one more value; the node of it in the calling forward."""
    if sum(n.op == "call_module" and n.target == call.target for n in frame.graph.nodes) > 1:
        raise CaptureError(
            "VR604",
            f"'{child.path}' is called several times, and a value inside of one call is "
            f"used in '{frame.path or 'the root'}'",
        )
    end = child.graph.output_node()
    if not isinstance(end.args[0], tuple):
        _unpacked(frame, call)
        end.args = ((end.args[0],),)
    outputs = end.args[0]
    assert isinstance(outputs, tuple)
    end.args = ((*outputs, node),)
    ARITY.put(call, len(outputs) + 1)
    with frame.graph.inserting_after(_last_item(call)):
        found = frame.item(call, len(outputs))
    HINT.put(found, HINT.get(node))
    frame.bind(value, found)
    return found


def _unpacked(frame: Frame, call: fx.Node) -> None:
    """What a call returned becomes the first of what it returns."""
    frame.moved += 1
    with frame.graph.inserting_after(call):
        first = frame.item(call, 0)
    call.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    copied(call, first)
    for note in (VALUE, HINT, ARITY):
        note.drop(call)
    for known, node in frame.nodes.items():
        if node is call:
            frame.nodes[known] = first


def _last_item(call: fx.Node) -> fx.Node:
    last = call
    while last.next.args[:1] == (call,) and not is_impure(last.next):
        last = last.next
    return last
