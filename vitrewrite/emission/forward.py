"""The body of a `forward`, printed from its graph as a person would write it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..tracing.guards import check_input, check_size
from ..tracing.operators import is_impure, is_inplace
from .effects import has_effect
from .expressions import ATOM, CALL, INPLACE, Text, render, structure, subscript
from .loops import Loop, find_loops
from .names import Names
from .wrap import WIDTH, wrap

MAX_DEPTH = 5
MAX_LENGTH = 70  # estimated characters of an expression that is written inside another


@dataclass
class Statement:
    """Nodes that are printed as one line (or one loop); the last one is what it assigns."""

    node: fx.Node
    kind: str  # "assign", "unpack", "sizes", "loop", "effect", "guard", "return"
    reads: set[fx.Node] = field(default_factory=set)
    loop: Loop | None = None


class Body:
    """Plans which nodes become statements and which are written inside others, then prints."""

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph = graph
        self.module = module
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.loops = {loop.nodes[-1]: loop for loop in find_loops(graph)}
        self.in_loop = {n for loop in self.loops.values() for n in loop.nodes[:-1]}
        self.unpacked: dict[fx.Node, list[fx.Node]] = _unpacked(graph)
        self.sized = _sized(graph, self.order)
        self.augmented = _augmented(graph)
        self.inlined: set[fx.Node] = set()
        self.statements: list[Statement] = []
        self._plan()

    @classmethod
    def of(cls, graph: fx.Graph, module: nn.Module) -> Body:
        """The plan for a graph whose nodes stand in the order in which they will be printed.

        What is written inside a later line is also computed later, which may in turn decide how
        other nodes are written. Printing, capturing and printing again must not change anything.
        """
        for _ in range(4):
            body = cls(graph, module)
            if not body._sort():
                break
        return cls(graph, module)

    def _sort(self) -> bool:
        """Moves the nodes to where they are printed; whether any moved."""
        before = list(self.graph.nodes)
        order: dict[fx.Node, None] = {n: None for n in before if n.op == "placeholder"}

        def place(node: fx.Node) -> None:
            if node in order:
                return
            for operand in node.all_input_nodes:
                if operand in self.inlined and operand not in order:
                    place(operand)
            order[node] = None

        for statement in self.statements:
            for node in statement.loop.nodes if statement.loop else (statement.node,):
                place(node)
            if statement.kind == "sizes":
                for size in self.sized[statement.node].values():
                    place(size)
            for item in self.unpacked.get(statement.node, []):
                place_items(item, order)
        for node in before:
            order.setdefault(node)
        output = before[-1]
        order.pop(output)
        for node in order:
            output.prepend(node)
        return before != list(self.graph.nodes)

    # -- planning -------------------------------------------------------------------------------

    def _plan(self) -> None:
        pending: list[fx.Node] = []  # inlined nodes with effects that no statement has printed yet
        for node in self.graph.nodes:
            if node in self.in_loop:
                continue
            if node.op == "placeholder":
                self._sizes_of(node)
            elif self._is_part(node):
                self.inlined.add(node)
            elif self._can_inline(node):
                self.inlined.add(node)
                if self._orders(node):
                    pending = self._settle(pending, node)
                    pending.append(node)
            else:
                pending = self._settle(pending, node)
                self._add(node)
                self._sizes_of(node)

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
        elif node.target in (check_input, check_size):
            kind = "guard"
        elif node in self.loops:
            kind = "loop"
        elif node in self.unpacked:
            kind = "unpack"
        elif not node.users or node.target is operator.setitem:
            kind = "effect"
        self.statements.append(Statement(node, kind, loop=self.loops.get(node)))

    def _sizes_of(self, node: fx.Node) -> None:
        values = [node, *self.unpacked.get(node, [])] if node.op != "placeholder" else [node]
        for value in values:
            if value in self.sized:
                self.statements.append(Statement(value, "sizes"))

    def _is_part(self, node: fx.Node) -> bool:
        """Sizes and items that the statement of their tensor or tuple already names."""
        if node.op == "get_attr":
            return True
        if _is_size(node):
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
        if is_impure(node) and not node.users:
            return False
        if node.target is operator.setitem or node.meta.get("origin"):
            return False
        if not isinstance(node.meta.get("val"), torch.Tensor) and _is_scalar(node):
            return len(node.users) == 1 or not node.meta.get("hint")
        if len(node.users) != 1:
            return False
        user = next(iter(node.users))
        if user.op == "output":
            return True
        if user in self.in_loop or user in self.loops or user.target is operator.setitem:
            return user.target is operator.setitem
        if node.target in INPLACE:
            return False
        named = node.meta.get("hint") not in (None, "_")
        small = self._depth(node) < MAX_DEPTH and self._expression_length(node) < MAX_LENGTH
        return not named and small and self._reads_stay(node, user)

    def _reads_stay(self, node: fx.Node, user: fx.Node) -> bool:
        """No in-place operation may change what `node` reads before `user` is evaluated."""
        between = list(self.graph.nodes)[self.order[node] + 1 : self.order[user]]
        return not any(is_inplace(n.target) and n not in self._operands(user) for n in between)

    def _depth(self, node: fx.Node) -> int:
        inner = [self._depth(n) for n in node.all_input_nodes if n in self.inlined]
        return 1 + max(inner, default=0)

    def _expression_length(self, node: fx.Node) -> int:
        """About how many characters the expression for a node takes."""
        target: Any = node.target
        name = target if isinstance(target, str) else target.__name__
        inner = (*node.args, *node.kwargs.values())
        extra = sum(len(k) + 1 for k in node.kwargs)
        return min(len(name), 24) + 4 + extra + sum(self._length(v) + 2 for v in inner)

    def _length(self, value: Any) -> int:
        if isinstance(value, fx.Node):
            inside = value in self.inlined or value.op == "get_attr"
            return self._expression_length(value) if inside else 3
        if isinstance(value, (tuple, list)):
            return sum(self._length(v) + 2 for v in value)
        return min(len(str(value)), 20)

    def _orders(self, node: fx.Node) -> bool:
        """Whether the moment at which the node is evaluated matters."""
        return node in self.loops or has_effect(node, self.module)

    def _operands(self, node: fx.Node) -> set[fx.Node]:
        """Everything written inside the statement of `node`."""
        found: set[fx.Node] = set()
        stack = [n for n in node.all_input_nodes if n in self.inlined]
        while stack:
            found.add(current := stack.pop())
            stack += [n for n in current.all_input_nodes if n in self.inlined]
        return found

    # -- printing -------------------------------------------------------------------------------

    def lines(self, parameters: list[str]) -> list[str]:
        """The statements, given the names of the inputs."""
        return _Printer(self, parameters).print()


def place_items(item: fx.Node, order: dict[fx.Node, None]) -> None:
    """Puts an item of a tuple, after the items that it is part of."""
    owner = item.args[0]
    if isinstance(owner, fx.Node) and owner not in order:
        place_items(owner, order)
    order.setdefault(item)


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and len(node.args) == 2


def _is_scalar(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float)) or (
        node.op == "call_function"
        and all(_is_size(n) or _is_scalar(n) for n in node.all_input_nodes)
        and bool(node.all_input_nodes)
    )


def _unpacked(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Calls that return several values, with the items that are used (nested ones too)."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        items = [u for u in node.users if u.target is operator.getitem and u.args[0] is node]
        is_tuple = "arity" in node.meta and node.target is not operator.getitem
        if (
            is_tuple
            and items
            and len(items) == len(node.users)
            and (len(items) > 1 or node.op == "call_module")
        ):
            found[node] = _items(node)
    return found


def _items(node: fx.Node) -> list[fx.Node]:
    result = []
    for user in sorted(node.users, key=lambda u: str(u.args[1])):
        result += _items(user) if "arity" in user.meta else [user]
    return result


def _sized(graph: fx.Graph, order: dict[fx.Node, int]) -> dict[fx.Node, dict[int, fx.Node]]:
    """Tensors whose shape is unpacked in a line of its own, with the sizes that are used."""
    reads: dict[fx.Node, dict[int, fx.Node]] = {}
    for node in graph.nodes:
        if _is_size(node) and any(u.target is not check_input for u in node.users):
            reads.setdefault(node.args[0], {})[node.args[1]] = node
    return {t: sizes for t, sizes in reads.items() if not _reads_inline(t, sizes, order)}


def _reads_inline(tensor: fx.Node, sizes: dict[int, fx.Node], order: dict[fx.Node, int]) -> bool:
    """A single size read once, while its tensor is alive anyway, is written where it is used."""
    uses = [u for s in sizes.values() for u in s.users]
    others = [order[u] for u in tensor.users if not _is_size(u)]
    last = max(others, default=-1)
    single = len(uses) == 1 and len(sizes) == 1
    return single and order[uses[0]] <= last


def _augmented(graph: fx.Graph) -> set[fx.Node]:
    """Nodes of `t[i] += v`: the item and its change, which the assignment back prints."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is not operator.setitem or not isinstance(node.args[2], fx.Node):
            continue
        change = node.args[2]
        item = change.args[0] if change.target in INPLACE and len(change.users) == 1 else None
        if isinstance(item, fx.Node) and item.target is operator.getitem:
            if item.args == node.args[:2] and len(item.users) == 1:
                found |= {change, item}
    return found


class _Printer:
    """Names the variables and writes the lines."""

    def __init__(self, body: Body, parameters: list[str]) -> None:
        self.body = body
        self.out: list[str] = []
        last_use: dict[fx.Node, int] = {}
        for number, statement in enumerate(body.statements):
            for read in self._reads(statement):
                last_use[read] = number
        self.names = Names(last_use)
        placeholders = [n for n in body.graph.nodes if n.op == "placeholder"]
        for node, name in zip(placeholders, parameters, strict=True):
            self.names.holder[name] = node
            self.names.name_of[node] = name
        # Tuple items are named with their tuple, so they live from there on.

    def _reads(self, statement: Statement) -> set[fx.Node]:
        """The variables a statement uses."""
        body, node = self.body, statement.node
        found: set[fx.Node] = set()
        if statement.kind == "sizes":
            return {node}
        stack = list(node.all_input_nodes)
        if statement.loop is not None:
            stack = [n for m in statement.loop.nodes for n in m.all_input_nodes]
            stack = [n for n in stack if n not in statement.loop.nodes]
        while stack:
            current = stack.pop()
            if (_is_size(current) and current.args[0] in body.sized) or self._holds(current):
                found.add(current)
            else:
                stack += current.all_input_nodes
        return found

    def _holds(self, node: fx.Node) -> bool:
        """Whether the node is a variable rather than an expression."""
        if node.op == "placeholder" or node not in self.body.inlined:
            return True
        return any(node in items for items in self.body.unpacked.values())

    def text(self, value: Any) -> Text:
        """The expression for an argument."""
        return structure(value, self._node)

    def _node(self, node: fx.Node) -> Text:
        if node in self.names.name_of:
            return Text(self.names.name_of[node])
        if _is_size(node):
            return Text(f"{self._node(node.args[0]).within(CALL)}.shape[{node.args[1]}]", CALL)
        return render(node, self.text)

    def print(self) -> list[str]:
        for number, statement in enumerate(self.body.statements):
            getattr(self, f"_{statement.kind}")(statement, number)
        return self.out

    def _write(self, line: str, node: fx.Node | None = None) -> None:
        origin = node.meta.get("origin") if node is not None else None
        if origin:
            self.out.append(f"# {origin}")
        self.out += wrap(line, WIDTH - 8)

    def _assign(self, statement: Statement, number: int) -> None:
        node = statement.node
        code = render(node, self.text).code
        if node.target in INPLACE:
            target = self.text(node.args[0])
            name = self.names.take(node, [target.code, *_wishes(node)], number)
            symbol = INPLACE[node.target][0]
            if target.code == name:
                code = f"{name} {symbol} {self.text(node.args[1]).code}"
                self._write(code, node)
                return
        else:
            name = self.names.take(node, _wishes(node), number)
        if code != name:
            self._write(f"{name} = {code}", node)

    def _unpack(self, statement: Statement, number: int) -> None:
        code = render(statement.node, self.text).code
        self._write(f"{self._targets(statement.node, number)} = {code}", statement.node)

    def _targets(self, node: fx.Node, number: int, nested: bool = False) -> str:
        by_key = {u.args[1]: u for u in node.users}
        names = []
        for i in range(node.meta["arity"]):
            item = by_key.get(i)
            if item is None:
                names.append("_")
            elif "arity" in item.meta:
                names.append(self._targets(item, number, nested=True))
            else:
                names.append(self.names.take(item, _wishes(item), number))
        text = ", ".join(names) + ("," if len(names) == 1 else "")
        return f"({text})" if nested else text

    def _sizes(self, statement: Statement, number: int) -> None:
        tensor = statement.node
        sizes, value = self.body.sized[tensor], tensor.meta.get("val")
        owner = self._node(tensor).code
        if len(sizes) == 1 or not isinstance(value, torch.Tensor):
            for dim, node in sizes.items():
                name = self.names.take(node, _size_wishes(node, dim), number)
                self._write(f"{name} = {owner}.shape[{dim}]")
            return
        names = [
            self.names.take(sizes[d], _size_wishes(sizes[d], d), number) if d in sizes else "_"
            for d in range(value.dim())
        ]
        self._write(f"{', '.join(names)} = {owner}.shape")

    def _loop(self, statement: Statement, number: int) -> None:
        loop = statement.loop
        assert loop is not None
        node, start = statement.node, self.text(loop.nodes[0].args[0]).code
        name = self.names.take(node, [start, *_wishes(node)], number)
        if name != start:
            self._write(f"{name} = {start}")
        extra = "".join(f", {self.text(a).code}" for a in loop.nodes[0].args[1:])
        origins = {n.meta.get("origin") for n in loop.nodes} - {None}
        self.out += [f"# {o}" for o in sorted(origins)]
        length = len(self.body.module.get_submodule(loop.container)._modules)
        self.out.append(f"for {loop.variable} in {loop.slice(length)}:")
        self.out.append(f"    {name} = {loop.variable}({name}{extra})")

    def _effect(self, statement: Statement, number: int) -> None:
        node = statement.node
        if node.target is operator.setitem:
            owner, index, value = (self.text(a) for a in node.args)
            inside = subscript(node.args[1], self.text)
            change = node.args[2]
            if change in self.body.augmented:
                amount = self.text(change.args[1]).code
                self._write(f"{owner.code}[{inside}] {INPLACE[change.target][0]} {amount}", node)
                return
            self._write(f"{owner.code}[{inside}] = {value.code}", node)
            return
        self._write(render(node, self.text).code, node)

    def _guard(self, statement: Statement, number: int) -> None:
        node = statement.node
        if node.target is check_input:
            self.out += _input_check(node, self.text)
        else:
            condition = self.text(node.args[0]).within(ATOM)
            self.out.append(f"if not {condition}:")
            self.out.append(f'    raise ValueError("{node.args[1]}")')

    def _return(self, statement: Statement, number: int) -> None:
        value = statement.node.args[0]
        code = self.text(value).code
        bare = isinstance(value, tuple) and len(value) > 1
        self._write(f"return {code[1:-1] if bare else code}", None)


def _input_check(node: fx.Node, of: Callable[[Any], Text]) -> list[str]:
    """`if x.shape[2:] != (224, 224): raise ...`."""
    reads, captured = node.args
    sizes = [of(r).code for r in reads]
    tensor = reads[0].args[0]
    rank = tensor.meta["val"].dim()
    owner = of(tensor).code
    dims = [r.args[1] for r in reads]
    tail = dims == list(range(rank - len(dims), rank))
    shape = f"{owner}.shape[{dims[0]}:]" if tail else f"({', '.join(sizes)},)"
    want = "x".join(map(str, captured))
    got = "x".join(f"{{{owner}.shape[{d}]}}" for d in dims)
    literal = f"({', '.join(map(str, captured))}{',' if len(captured) == 1 else ''})"
    return [
        f"if {shape} != {literal}:",
        f'    raise ValueError(f"captured for {want}, got {got}")',
    ]


def _wishes(node: fx.Node) -> list[str | None]:
    if node.target is getattr:
        return [str(node.args[1])]
    own = str(node.target).rpartition(".")[2] if node.op == "call_module" else ""
    return [node.meta.get("hint"), own if not own.isdigit() else "x", "y", "z"]


def _size_wishes(node: fx.Node, dim: int) -> list[str | None]:
    hint = node.meta.get("hint")
    return [hint if hint not in (None, "_") else "B" if dim == 0 else f"size{dim}"]
