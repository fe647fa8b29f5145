"""Which nodes of a graph become statements, and which are written inside others."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..tracing.guards import is_guard
from ..tracing.modes import by_mode
from ..tracing.nodes import is_size
from ..tracing.notes import ARITY, ASSIGNED, HINT, ORIGIN, VALUE
from ..tracing.operators import is_impure, is_inplace
from .alike import operands
from .choices import Block, blocks, is_choice
from .comprehensions import Comprehension
from .effects import has_effect, may_change
from .expressions import INPLACE, named_arguments
from .grouping import augmented, is_scalar, sized, unpacked
from .loops.rolls import Roll, is_item, spread
from .loops.runs import Loop, find_loops
from .loops.sweeps import Sweep

MAX_DEPTH = 5
MAX_LENGTH = 80  # estimated characters of an expression that is written inside another

MAX_CHAIN = 80
"""The same, where the source gave the value a name before it returned what it made of it."""


@dataclass
class Statement:
    """Nodes that are printed as one line (or one loop); the last one is what it assigns."""

    node: fx.Node
    kind: str  # "assign", "unpack", "sizes", "loop", "roll", "effect", "guard", "return"
    loop: Loop | None = None
    block: Block | None = None  # the way of a choice that it is part of


class Layout:
    """Plans which nodes become statements and which are written inside others."""

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph = graph
        self.module = module
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.loops = {loop.nodes[-1]: loop for loop in find_loops(graph)}
        self.in_loop = {n for loop in self.loops.values() for n in loop.nodes[:-1]}
        self.unpacked = {n: v for n, v in unpacked(graph).items() if _is_taken_apart(n, v)}
        self.sized = sized(graph, self.order)
        self.augmented = augmented(graph)
        self.inlined: set[fx.Node] = set()
        self.one_mode = _of_one_mode(graph)
        self.blocks = blocks(graph)
        self.statements: list[Statement] = []
        self._plan()

    @classmethod
    def of(cls, graph: fx.Graph, module: nn.Module) -> Layout:
        """The plan for a graph whose nodes stand in the order in which they will be printed.

        What is written inside a later line is also computed later, which may in turn decide how
        other nodes are written. Printing, capturing and printing again must not change anything.
        """
        for _ in range(4):
            if not cls(graph, module)._sort():
                break
        return cls(graph, module)

    def _sort(self) -> bool:
        """Moves the nodes to where they are printed; whether any moved."""
        before = list(self.graph.nodes)
        order = self._printed_order(before)
        output = before[-1]
        order.pop(output)
        for node in order:
            output.prepend(node)
        return before != list(self.graph.nodes)

    def _printed_order(self, nodes: list[fx.Node]) -> dict[fx.Node, None]:
        """The nodes as keys, in the order in which the statements evaluate them."""
        order: dict[fx.Node, None] = {n: None for n in nodes if n.op == "placeholder"}
        for statement in self.statements:
            named = self.sized[statement.node].values() if statement.kind == "sizes" else ()
            inside = statement.loop.nodes if statement.loop else (statement.node,)
            for node in (*inside, *named):
                self._place(node, order)
            for item in self.unpacked.get(statement.node, []):
                _place_item(item, order)
        return order | dict.fromkeys(n for n in nodes if n not in order)

    def _place(self, node: fx.Node, order: dict[fx.Node, None]) -> None:
        """Puts a node after everything that is written inside its line."""
        if node in order:
            return
        for operand in node.all_input_nodes:
            if operand in self.inlined:
                self._place(operand, order)
        order[node] = None

    # -- planning -------------------------------------------------------------------------------

    def _plan(self) -> None:
        pending: list[fx.Node] = []  # inlined nodes with effects that no statement has printed yet
        for node in self.graph.nodes:
            if node in self.in_loop:
                continue
            pending = self._changed(pending, node)
            if node.op == "placeholder":
                if node in self.unpacked and not ASSIGNED.get(node):
                    self.statements.append(Statement(node, "unpack"))
                self._sizes_of(node)
            elif self._is_part(node):
                self.inlined.add(node)
                if _is_indexed(node):
                    self._sizes_of(node)
            elif self._can_inline(node):
                self.inlined.add(node)
                if self._orders(node):
                    pending = self._settle(pending, node)
                    pending.append(node)
            else:
                pending = self._settle(pending, node)
                self._add(node)
                self._sizes_of(node)
        self.statements = self._by_block(None)

    def _by_block(self, block: Block | None) -> list[Statement]:
        """The statements of a block, those of either way of a choice in front of it."""
        found: list[Statement] = []
        for statement in [s for s in self.statements if s.block == block]:
            if statement.kind == "choice":
                for way in (True, False):
                    found += self._by_block((statement.node, way))
            found.append(statement)
        return found

    def _changed(self, pending: list[fx.Node], node: fx.Node) -> list[fx.Node]:
        """What changes a tensor in place is printed before the next node that may read it."""
        if is_size(node) or node.op in ("placeholder", "get_attr"):
            return pending
        inside = self._operands(node)
        early = [p for p in pending if may_change(p) and p not in inside]
        if not early:
            return pending
        for each in pending[: pending.index(early[-1]) + 1]:
            if each not in inside:
                self.inlined.discard(each)
                self._add(each)
        return pending[pending.index(early[-1]) + 1 :]

    def _settle(self, pending: list[fx.Node], node: fx.Node) -> list[fx.Node]:
        """Before `node` is printed, what must have happened earlier gets a statement of its own."""
        if not self._orders(node) and not is_inplace(node.target):
            return [p for p in pending if p not in self._operands(node)]
        inside = self._operands(node)
        for early in pending:
            if early not in inside:
                self.inlined.discard(early)
                self._add(early)
        return []

    def _add(self, node: fx.Node) -> None:
        kind = "assign"
        if node.op == "output":
            kind = "return"
        elif is_guard(node):
            kind = "guard"
        elif node in self.loops:
            kind = "loop"
        elif isinstance(node.target, Roll):
            kind = "roll"
        elif isinstance(node.target, Sweep) and node.target.element is None:
            kind = "sweep"
        elif is_choice(node):
            kind = "choice"
        elif node in self.unpacked:
            kind = "unpack"
        elif not node.users or node.target is operator.setitem:
            kind = "effect"
        block = self.blocks.get(node)
        self.statements.append(Statement(node, kind, self.loops.get(node), block))

    def _sizes_of(self, node: fx.Node) -> None:
        values = [node, *self.unpacked.get(node, [])]
        for value in values:
            if value in self.sized:
                self.statements.append(Statement(value, "sizes", block=self.blocks.get(value)))

    def _is_part(self, node: fx.Node) -> bool:
        """Sizes and items that the statement of their tensor or tuple already names."""
        written = is_size(node) or is_item(node) or node.target is spread or _is_indexed(node)
        if written or node.op == "get_attr" or isinstance(node.target, Comprehension):
            return True
        owner = node.args[0] if node.target is operator.getitem else None
        while isinstance(owner, fx.Node):
            if owner in self.unpacked:
                return True
            owner = owner.args[0] if owner.target is operator.getitem else None
        return False

    def _can_inline(self, node: fx.Node) -> bool:
        if node in self.augmented:
            return True
        if node.op == "output" or node in self.loops or node in self.unpacked or node in self.sized:
            return False
        if is_choice(node):
            return False
        if isinstance(node.target, Roll) or any(isinstance(u.target, Roll) for u in node.users):
            return False
        if isinstance(node.target, Sweep):
            return node.target.element is not None and len(node.users) == 1
        if any(isinstance(u.target, Sweep) for u in node.users):
            number = is_scalar(node) and not isinstance(VALUE.get(node), torch.Tensor)
            return number and (len(node.users) == 1 or not HINT.get(node))
        if ASSIGNED.get(node):
            return False
        unread = is_impure(node) and not node.users
        returned = len(node.users) == 1 and next(iter(node.users)).op == "output"
        named = ORIGIN.get(node) and not returned
        if unread or node.target is operator.setitem or named:
            return False
        if not isinstance(VALUE.get(node), torch.Tensor) and is_scalar(node):
            return len(node.users) == 1 or not HINT.get(node)
        return len(node.users) == 1 and self._can_join(node, next(iter(node.users)))

    def _can_join(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether a node is written inside the line of the only one that reads it."""
        if user.op == "output" or _mentions(user, node) > 1:
            return _mentions(user, node) == 1 and self._reads_stay(node, user)
        if node in self.one_mode:
            return self._reads_stay(node, user)
        if user in self.in_loop or user in self.loops or user.target is operator.setitem:
            return user.target is operator.setitem
        if node.target in INPLACE:
            return False
        named = HINT.get(node) not in (None, "_")
        small = self._depth(node) < MAX_DEPTH and self._expression_length(node) < MAX_LENGTH
        if is_choice(user) and node is not user.args[0]:  # then it is assigned to that one's name
            named = named and HINT.get(node) != HINT.get(user)
            small = self._depth(node) < MAX_DEPTH
        if named and self._is_passed_out(node):
            named = self._expression_length(node) >= MAX_CHAIN
        return not named and small and self._reads_stay(node, user)

    def _is_passed_out(self, node: fx.Node) -> bool:
        """Whether a variable is one that is set again, until it is returned: `x = f(x)`."""
        name, user = HINT.get(node), node
        if name not in self._names_in(node):
            return False
        for _ in range(MAX_DEPTH):
            if len(user.users) != 1:
                return False
            (user,) = user.users
            if user.op == "output":
                return isinstance(user.args[0], (fx.Node, tuple))
            if HINT.get(user) not in (None, name) or user.op == "call_function":
                return False
        return False

    def _names_in(self, node: fx.Node) -> set[Any]:
        """The variables in the expression for a node."""
        found: set[Any] = set()
        stack = list(node.all_input_nodes)
        while stack:
            read = stack.pop()
            bare = HINT.get(read) is None and read.op.startswith("call") and not is_size(read)
            stack += read.all_input_nodes if bare else []
            found |= set() if bare else {HINT.get(read) or read.name}
        return found

    def _reads_stay(self, node: fx.Node, user: fx.Node) -> bool:
        """No in-place operation may change what `node` reads before `user` is evaluated."""
        between = list(self.graph.nodes)[self.order[node] + 1 : self.order[user]]
        return not any(may_change(n) and node not in self._operands(n) for n in between)

    def _depth(self, node: fx.Node) -> int:
        inner = [self._depth(n) for n in node.all_input_nodes if n in self.inlined]
        return 1 + max(inner, default=0)

    def _expression_length(self, node: fx.Node) -> int:
        """About how many characters the expression for a node takes."""
        target: Any = node.target
        name = target if isinstance(target, str) else target.__name__
        named = named_arguments(node)
        inner = (*node.args, *named.values())
        extra = sum(len(k) + 1 for k in named)
        return min(len(name), 24) + 4 + extra + sum(self._length(v) + 2 for v in inner)

    def _length(self, value: Any) -> int:
        if isinstance(value, fx.Node):
            inside = value in self.inlined or value.op == "get_attr"
            return self._expression_length(value) if inside else 3
        if isinstance(value, (tuple, list)):
            return sum(self._length(v) + 2 for v in value)
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return 1 + sum(self._length(v) for v in parts if v is not None)
        return min(len(str(value)), 20)

    def _orders(self, node: fx.Node) -> bool:
        """Whether the moment at which the node is evaluated matters."""
        rolled = isinstance(node.target, Roll)
        return rolled or node in self.loops or has_effect(node)

    def _operands(self, node: fx.Node) -> set[fx.Node]:
        """Everything written inside the statement of `node`."""
        found: set[fx.Node] = set()
        stack = [n for n in node.all_input_nodes if n in self.inlined]
        while stack:
            found.add(current := stack.pop())
            stack += [n for n in current.all_input_nodes if n in self.inlined]
        return found


def _is_taken_apart(node: fx.Node, items: list[fx.Node]) -> bool:
    """Whether a tuple is unpacked: an argument is where that says more than `sizes[0]`."""
    numbers = all(isinstance(VALUE.get(item), int) for item in items)
    return node.op != "placeholder" or bool(ASSIGNED.get(node)) or numbers


def _is_indexed(node: fx.Node) -> bool:
    """Whether the node is an item of an argument, written `sizes[0]` wherever it is read."""
    owner = node.args[0] if node.target is operator.getitem else None
    while isinstance(owner, fx.Node) and owner.target is operator.getitem and ARITY.on(owner):
        owner = owner.args[0]
    if not isinstance(owner, fx.Node) or not ARITY.on(owner) or not isinstance(node.args[1], int):
        return False
    if is_item(owner):  # of a list that a loop made, of which a size is read
        return not HINT.get(node) and [is_size(user) for user in node.users] == [True]
    return owner.op == "placeholder"


def _of_one_mode(graph: fx.Graph) -> set[fx.Node]:
    """What one mode alone needs: written inside the choice, so that the other is spared it."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "call_method") and len(node.users) == 1:
            (user,) = node.users
            if (user.target is by_mode or user in found) and _mentions(user, node) == 1:
                found.add(node)
    return found


def _mentions(user: fx.Node, node: fx.Node) -> int:
    """How often `node` stands in the arguments of `user`."""
    return operands(user).count(node)


def _place_item(item: fx.Node, order: dict[fx.Node, None]) -> None:
    """Puts an item of a tuple, after the items that it is part of."""
    owner = item.args[0]
    if isinstance(owner, fx.Node) and owner not in order:
        _place_item(owner, order)
    order.setdefault(item)
