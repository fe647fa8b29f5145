"""One `fx.Graph` under construction: the forward of one module call."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..errors import CaptureError
from . import places
from .dtypes import same_as
from .escapes import bring
from .nodes import add, after_inputs, attribute_of
from .notes import ARGUMENT, ARITY, HINT, LISTED, VALUE
from .numbers import Int, Tracked, make
from .witness import IMAGE

if TYPE_CHECKING:
    from .recorder import Recorder


class Frame:
    """The open graph of a module call, and which traced value is which node in it.

    Node meta: `val` the primary meta value, `hint` the name of the local variable that held it.
    """

    def __init__(
        self, recorder: Recorder, module: nn.Module, path: str, decisions: tuple[Any, ...] = ()
    ) -> None:
        self.recorder = recorder
        self.module = module
        self.path = path
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}  # id of a tensor or number -> its node here
        self.sizes: dict[tuple[int, int], Int] = {}  # one read per (tensor, dimension)
        self.called: list[tuple[str, Any]] = []  # what was called, and what came of it
        self.trail: list[Any] = []  # what was decided on numbers, in order
        self.reads: list[tuple[Any, fx.Node, str]] = []  # dtypes and devices that were read
        self.assignments: dict[str, Any] = {}  # relative path -> template of what was called
        self.hinted: set[int] = set()
        self.listed: dict[int, int] = {}  # how many items lists had whose names were taken
        self.decisions = decisions  # answers to the first questions about values of tensors
        self.parent: Frame | None = recorder.frames[-1] if recorder.frames else None
        self.calls: list[tuple[fx.Node, Frame]] = []  # what was traced when it was called here
        self.moved = 0  # how often a call came to return more than it did
        self.taken: list[Any] = []  # values of forwards around this one, inputs besides its own
        self.shared = False  # whether other calls have its program, without having run
        self.inside = 0  # how many checkpoints are open
        self.regions: list[list[fx.Node]] = []  # what was added in each checkpoint
        self.checkpointed: set[str] = set()  # relative paths of what was called with checkpoints
        self.asked: list[fx.Node | None] = []  # what was asked
        self.dead = dict(recorder.values.dead)  # what the model was fixed in before
        self.lost: set[fx.Node] = set()  # nodes from which on no other image size is carried
        self.first_step = len(recorder.known.replay.steps)
        self.repeatable = True  # no decision hangs on values that were made outside of it
        self.doubt: fx.Node | None = None  # from here on decisions on sizes are not known
        self.former: dict[int, str] = {}  # names that values had before an in-place operation

    def bind(self, value: Any, node: fx.Node) -> None:
        """Makes `node` stand for `value` from here on."""
        self.nodes[id(value)] = node
        VALUE.put(node, value)
        if self.decisions and IMAGE in self.recorder.values.dead and node.op != "get_attr":
            others = value.witnesses[IMAGE:] if isinstance(value, Tracked) else ()
            carried = any(other is not None for other in others[:1])
            if not carried:
                self.lost.add(node)
        self.recorder.values.keep(value)

    def placeholder(self, name: str, value: Any) -> fx.Node:
        """Adds an input."""
        node = self.graph.placeholder(_identifier(name))
        HINT.put(node, name)
        VALUE.put(node, value)
        if isinstance(value, (torch.dtype, torch.device)):
            self.reads.append((value, node, ""))
        else:
            self.nodes.setdefault(id(value), node)
        return node

    def take(self, value: Any) -> None:
        """Adds an input for a value that a forward around this one has."""
        nodes = list(self.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        first = None if inputs or not nodes else nodes[0]
        inserting = self.graph.inserting_after if inputs else self.graph.inserting_before
        with inserting(inputs[-1] if inputs else first):
            node = self.placeholder("given", value)
        ARGUMENT.put(node, "given")
        self.nodes[id(value)] = node
        self.recorder.values.keep(value)
        self.taken.append(value)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """Adds `node[index]`."""
        return getitem(self, node, index)

    def emit_function(self, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """Adds a call whose arguments are nodes and constants already."""
        return add(self.graph, "call_function", target, args)

    def arg(self, value: Any) -> Any:
        """What stands for `value` in an argument list of this graph."""
        moved = self.moved
        found = self._standing(value)
        return found if self.moved == moved else self._standing(value)

    def _standing(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Tracked):
            return self.number(value)
        if isinstance(value, (tuple, list)):
            items = [self._standing(v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self._standing(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(
                self._standing(value.start), self._standing(value.stop), self._standing(value.step)
            )
        if isinstance(value, (torch.dtype, torch.device)):
            return self._read(value)
        return value

    def _tensor(self, value: torch.Tensor) -> fx.Node:
        node = self.nodes.get(id(value))
        if node is None:
            node = bring(self, value)
        if node is None:
            node = self.graph.get_attr(self.recorder.owner(self, value))
            self.bind(value, node)
        return node

    def number(self, value: Tracked) -> Any:
        """What stands for a tracked number.

        Raises:
            CaptureError: VR603 if no forward around has it.
        """
        node = self.nodes.get(id(value))
        if node is None and value.frame is not self:
            node = bring(self, value)
        if node is not None:
            return node
        if value.frame is not self:
            raise CaptureError(
                "VR603",
                f"a size read in '{value.frame.path or 'the root'}' is used in "
                f"'{self.path or 'the root'}' without being passed to it, in {places.here()}",
            )
        node = value.recipe()
        if not isinstance(node, fx.Node):
            return node
        HINT.put(node, HINT.get(node) or value.hint)
        self.bind(value, node)
        return node

    def _read(self, value: torch.dtype | torch.device) -> Any:
        """A device that this forward read off a tensor stays that reading, a dtype may be one."""
        found = [(node, what) for read, node, what in self.reads if read is value or read == value]
        if not found:
            return value
        if isinstance(value, torch.dtype):
            latest_last = dict.fromkeys(reversed([node for node, _ in found]))
            return self.emit_function(same_as, (value, tuple(reversed(latest_last))))
        node, what = found[-1]
        return attribute_of(node, what) if what else node

    def has_read(self, value: torch.dtype | torch.device) -> bool:
        """Whether this forward read the dtype or device off a tensor, or was given it."""
        return any(read is value or read == value for read, _, _ in self.reads)

    def size(self, tensor: torch.Tensor, dim: int) -> Any:
        """The tracked length of a dimension, read at most once."""
        dim %= tensor.dim()
        key = (id(tensor), dim)
        if key not in self.sizes:
            node = self._tensor(tensor)
            values = self.recorder.values
            length, *others = (t.size(dim) if t is not None else None for t in values.all(tensor))
            if not values.has(tensor):  # a parameter
                others = [length] * len(others)
            assert length is not None  # the primary witness is always alive
            self.sizes[key] = make(self, length, tuple(others), lambda: self._size_node(node, dim))
            self.recorder.values.keep(tensor)
        return self.sizes[key]

    def _size_node(self, node: fx.Node, dim: int) -> fx.Node:
        with self.graph.inserting_after(after_inputs(self._last_size(node))):
            return add(self.graph, "call_method", "size", (node, dim))

    def _last_size(self, node: fx.Node) -> fx.Node:
        """Sizes of one tensor are read together, where the tensor is made."""
        while node.next.op == "call_method" and node.next.target == "size":
            node = node.next
        return node

    def doubted(self) -> None:
        """Notes that a decision hangs on sizes of which only those of the example are known."""
        if self.doubt is None:
            self.doubt = next(iter(reversed(self.graph.nodes)), None)

    def hint(self, names: dict[str, Any]) -> None:
        """Takes names for nodes from the local variables of a running forward."""
        for name, value in names.items():
            if type(value) in (list, tuple):
                self._hint_items(name, value)
            if type(value) in _NEVER_NODES or id(value) in self.hinted:
                continue
            if not isinstance(value, (torch.Tensor, Tracked)):
                continue
            node = self.nodes.get(id(value))
            if node is not None:
                if name == self.former.get(id(value)) and _other_name(names, name, value):
                    continue  # `y = x.add_(1)`: x is y now, and y is the newer name
                HINT.keep(node, name)
                self.hinted.add(id(value))
            elif isinstance(value, Tracked) and value.frame is self:
                value.hint = value.hint or name

    def _hint_items(self, name: str, values: Any) -> None:
        """Takes the name of a list for what is in it."""
        if self.listed.get(id(values)) == len(values):
            return
        self.listed[id(values)] = len(values)
        self._hint_whole(name, values)
        for value in values:
            parts = value if type(value) is tuple else (value,)
            for part in parts:
                node = self.nodes.get(id(part))
                if isinstance(part, (torch.Tensor, Tracked)) and node is not None:
                    LISTED.keep(node, name)

    def _hint_whole(self, name: str, values: Any) -> None:
        """Takes the name of a tuple for the call that returned all of it."""
        nodes = [self.nodes.get(id(value)) for value in values]
        owner = nodes[0].args[0] if nodes and nodes[0] is not None and nodes[0].args else None
        if isinstance(owner, fx.Node) and ARITY.get(owner) == len(nodes):
            whole = [(owner, i) for i in range(len(nodes))]
            if [n is not None and n.target is operator.getitem and n.args for n in nodes] == whole:
                HINT.keep(owner, name)


_NEVER_NODES = frozenset({int, float, bool, str, tuple, list, dict, type(None)})
"""Types of most local variables; to ask whether one is a tensor takes longer."""


def _other_name(names: dict[str, Any], name: str, value: Any) -> bool:
    return any(v is value and n != name for n, v in names.items())


def _identifier(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) or name == "self" else name


def getitem(frame: Frame, node: fx.Node, index: Any) -> fx.Node:
    """Adds `node[index]`."""
    return frame.emit_function(operator.getitem, (node, index))
