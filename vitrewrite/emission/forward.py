"""The body of a `forward`, printed from its graph as a person would write it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from ..tracing.guards import check_dtype, check_grid, check_input, for_grid
from ..tracing.nodes import arg, is_size, operand
from ..tracing.notes import ARITY, HINT, ORIGIN, PLACE, VALUE
from .access import written
from .choices import Block, is_by_presence
from .comprehensions import Comprehension, comprehend
from .effects import note_effects
from .expressions import ATOM, CALL, INPLACE, Text, named_arguments, render, structure, subscript
from .grouping import is_nested
from .literals import comment
from .loops.filling import sweep_up
from .loops.rolling import roll_up
from .loops.rolls import is_item, spread
from .loops.sweeping import sweep_lines, sweep_text
from .loops.sweeps import Sweep
from .loops.turns import roll_lines
from .names import Names
from .refusals import dtype_check, input_check, raised
from .statements import Layout, Statement
from .wrap import WIDTH, wrap


def body_lines(
    graph: fx.Graph, units: Sequence[nn.Module], parameters: list[str], *, plain: bool = False
) -> list[str]:
    """The statements of the forward of all `units`.

    The nodes of `graph` are put in the order in which they are printed, unless a loop is rolled up.

    Args:
        graph: a program that they share.
        units: the modules.
        parameters: the names of its inputs.
        plain: write every call as a line of its own, without loops and comprehensions.
    """
    written(graph, units[0])
    note_effects(graph, units)
    if plain:
        for node in graph.nodes:
            PLACE.drop(node)
    else:
        graph = sweep_up(comprehend(roll_up(graph), units[0]), units[0])
    _read_late(graph)
    return Printer(Layout.of(graph, units[0]), parameters).print()


def _read_late(graph: fx.Graph) -> None:
    """Reads dtypes and devices where they are first used.

    Of equal dtypes that were read before its use, a trace takes the one that was read last.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if n.target is getattr and n.users]:
        min(node.users, key=order.__getitem__).prepend(node)


class Printer:
    """Names the variables and writes the lines, at most `width` characters wide."""

    def __init__(self, plan: Layout, parameters: list[str], width: int = WIDTH - 8) -> None:
        self.plan = plan
        self.width = width
        self.out: list[str] = []
        self.above: tuple[list[str], list[str], int] | None = None  # origins of the last line
        self.ways: dict[Block, list[str]] = {}  # lines of the ways of choices
        self.uses: dict[fx.Node, list[int]] = {}
        for number, statement in enumerate(plan.statements):
            for read in self._reads(statement):
                self.uses.setdefault(read, []).append(number)
        self.names = Names({node: numbers[-1] for node, numbers in self.uses.items()})
        self.owned: dict[str, fx.Node] = {}  # names in comprehensions
        self.texts: dict[fx.Node, Text] = {}  # what is written in place of inputs
        placeholders = [n for n in plan.graph.nodes if n.op == "placeholder"]
        for node, name in zip(placeholders, parameters, strict=True):
            self.names.holder[name] = node
            self.names.name_of[node] = name

    def _reads(self, statement: Statement) -> set[fx.Node]:
        """The variables a statement uses."""
        if statement.kind == "sizes":
            return {statement.node}
        if statement.loop is None:
            return self.variables(statement.node.all_input_nodes)
        calls = statement.loop.nodes
        return self.variables([n for m in calls for n in m.all_input_nodes if n not in calls])

    def variables(self, values: Iterable[fx.Node]) -> set[fx.Node]:
        """The variables in the expressions for values."""
        found: set[fx.Node] = set()
        stack = list(values)
        while stack:
            current = stack.pop()
            if (is_size(current) and current.args[0] in self.plan.sized) or self._holds(current):
                found.add(current)
            else:
                stack += current.all_input_nodes
        return found

    def _holds(self, node: fx.Node) -> bool:
        """Whether the node is a variable rather than an expression."""
        if node.op == "placeholder" or node not in self.plan.inlined or is_item(node):
            return True
        return any(node in items for items in self.plan.unpacked.values())

    def text(self, value: Any) -> Text:
        """The expression for an argument."""
        return structure(value, self._node)

    def _node(self, node: fx.Node) -> Text:
        if node in self.texts:
            return self.texts[node]
        if node in self.names.name_of:
            return Text(self.names.name_of[node])
        if is_size(node):
            return Text(f"{self._node(operand(node)).within(CALL)}.shape[{node.args[1]}]", CALL)
        if node.target is spread:
            return Text(f"*{self._node(operand(node)).code}")
        if isinstance(node.target, Comprehension):
            return node.target.text(node, self.text, self._own)
        if isinstance(node.target, Sweep):
            return sweep_text(self, node, self._own_again())
        return render(node, self.text)

    def _own(self, wish: str) -> str:
        """A name that no variable has ever had."""
        owned = fx.Graph().placeholder("owned")
        self.names.last_use[owned] = 0
        return self.names.take(owned, [wish], -1)

    def _own_again(self) -> Callable[[str], str]:
        """Names that no variable has ever had, but other comprehensions may have."""
        taken: set[str] = set()

        def own(wish: str) -> str:
            again = wish in self.owned and wish not in taken
            again = again and self.names.holder[wish] is self.owned[wish]
            name = wish if again else self._own(wish)
            self.owned[name] = self.names.holder[name]
            taken.add(name)
            return name

        return own

    def print(self) -> list[str]:
        """All lines."""
        for number, statement in enumerate(self.plan.statements):
            self._print_one(statement, number)
        return self.out

    def print_all_but_return(self) -> None:
        """Writes what leads to the outputs, which are then expressions or variables."""
        for number, statement in enumerate(self.plan.statements):
            if statement.kind != "return":
                self._print_one(statement, number)

    def _print_one(self, statement: Statement, number: int) -> None:
        """Writes a statement, into the way of a choice where it is part of one."""
        before, depth = self.out, 0
        block = statement.block
        if block is not None:
            self.out = self.ways.setdefault(block, [])
        while block is not None:
            depth, block = depth + 1, self.plan.blocks.get(block[0])
        self.width -= 4 * depth
        with self._other_way(statement.block):
            getattr(self, f"_{statement.kind}")(statement, number)
        self.width += 4 * depth
        self.out = before

    @contextmanager
    def _other_way(self, block: Block | None) -> Iterator[None]:
        """In one way of a choice, nothing is needed that only the other way's value reads."""
        other = block[0].args[2 if block[1] else 1] if block else None
        numbers = self.uses.get(other, []) if isinstance(other, fx.Node) else []
        if not isinstance(other, fx.Node) or not numbers or not self._is_last(block, numbers[-1]):
            yield
            return
        self.names.last_use[other] = numbers[-2] if len(numbers) > 1 else -1
        yield
        self.names.last_use[other] = numbers[-1]

    def _is_last(self, block: Block | None, number: int) -> bool:
        """Whether a statement is the choice itself."""
        return block is not None and self.plan.statements[number].node is block[0]

    def _choice(self, statement: Statement, number: int) -> None:
        node = statement.node
        condition = self.text(node.args[0])
        values = [self.text(value).code for value in node.args[1:]]
        name = self.names.take(node, _wishes(node), number)
        ways = [self.ways.pop((node, way), []) for way in (True, False)]
        short = f"{name} = {render(node, self.text).code}"
        if not any(ways) and len(short) <= self.width and _is_short(node):
            self._write(short, node)
            return
        for lines, value in zip(ways, values, strict=True):
            lines += wrap(f"{name} = {value}", self.width - 4) if value != name else []
        if origin := ORIGIN.get(node):
            self.out += comment(origin, self.width)
        head = condition.code if ways[0] else f"not {condition.within(ATOM)}"
        self.out += wrap(f"if {head}:", self.width)
        self.out += [f"    {line}" for line in ways[0] or ways[1]]
        if all(ways):
            self.out += ["else:", *(f"    {line}" for line in ways[1])]

    def wrapped(self, line: str) -> list[str]:
        """The line, broken where it is too long."""
        return wrap(line, self.width)

    def _write(self, line: str, *nodes: fx.Node) -> None:
        origins = [str(o) for n in nodes if (o := ORIGIN.get(n))]
        if self.above != (origins, self.out, len(self.out)):  # else the comment above is of it too
            self.out += [line for origin in origins for line in comment(origin, self.width)]
        self.out += wrap(line, self.width)
        self.above = origins, self.out, len(self.out)

    def _assign(self, statement: Statement, number: int) -> None:
        node = statement.node
        code = self._node(node).code
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
        code = self._node(statement.node).code
        targets = self._targets(statement.node, number)
        if max(map(len, wrap(f"{targets} = {code}", self.width))) > self.width:
            targets = f"({targets})"
        self._write(f"{targets} = {code}", statement.node)

    def _targets(self, node: fx.Node, number: int, nested: bool = False) -> str:
        by_key: dict[Any, fx.Node] = {}
        within: set[int] = set()  # results that a list has, but the first of them
        for user in node.users:
            key: Any = user.args[1]
            by_key[key.start if isinstance(key, slice) else key] = user
            within |= set(range(key.start + 1, key.stop)) if isinstance(key, slice) else set()
        names = []
        for i in sorted(set(range(ARITY.of(node))) - within):
            item = by_key.get(i)
            if item is None:
                names.append("_")
            elif isinstance(item.args[1], slice):
                names.append(f"*{self.names.take(item, _wishes(item), number)}")
            elif is_nested(item):
                names.append(self._targets(item, number, nested=True))
            else:
                names.append(self.names.take(item, _wishes(item), number))
        text = ", ".join(names) + ("," if len(names) == 1 else "")
        return f"({text})" if nested else text

    def _sizes(self, statement: Statement, number: int) -> None:
        tensor = statement.node
        sizes, value = self.plan.sized[tensor], VALUE.get(tensor)
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
        given = [self.text(a).code for a in loop.nodes[0].args[1:]]
        named = named_arguments(loop.nodes[0]).items()
        extra = "".join(f", {a}" for a in (*given, *(f"{k}={self.text(v).code}" for k, v in named)))
        origins = {str(o) for n in loop.nodes if (o := ORIGIN.get(n)) is not None}
        self.out += [line for origin in sorted(origins) for line in comment(origin, self.width)]
        owned = fx.Graph().placeholder("owned")  # holds the loop's variable, no value
        variable = self.names.take(owned, [loop.variable], number - 1)
        self.out.append(f"for {variable} in {loop.slice(self.plan.module)}:")
        call = f"{name} = {variable}({name}{extra})"
        self.out += [f"    {line}" for line in wrap(call, self.width - 4)]

    def _roll(self, statement: Statement, number: int) -> None:
        self.out += roll_lines(self, statement.node, number)

    def _sweep(self, statement: Statement, number: int) -> None:
        self.out += sweep_lines(self, statement.node, number)

    def _effect(self, statement: Statement, number: int) -> None:
        node = statement.node
        if node.target is operator.setitem:
            place = f"{self.text(node.args[0]).code}[{subscript(node.args[1], self.text)}]"
            change = arg(node, 2)
            if isinstance(change, fx.Node) and change in self.plan.augmented:
                amount = self.text(change.args[1]).code
                self._write(f"{place} {INPLACE[change.target][0]} {amount}", node)
                return
            self._write(f"{place} = {self.text(change).code}", node)
            return
        self._write(render(node, self.text).code, node)

    def _guard(self, statement: Statement, number: int) -> None:
        node = statement.node
        if node.target is check_input:
            self.out += input_check(node, self.text)
        elif node.target is check_dtype:
            self.out += dtype_check(node, self.text)
        elif node.target is check_grid:
            planned, user = arg(node, 1), str(arg(node, 2))
            first, *rest = input_check(node, self.text, for_grid(planned, user))
            self._write(first, node)
            self.out += rest
        else:
            condition = self.text(node.args[0])
            self._write(f"if not {condition.within(ATOM)}:")
            sides = arg(node, 0).args if isinstance(arg(node, 0), fx.Node) else ()
            got = [self.text(side).code for side in sides if isinstance(side, fx.Node)]
            lines = raised(self._in_words(node, condition.code), got, self.width - 4)
            self.out += [f"    {line}" for line in lines]

    def _in_words(self, guard: fx.Node, condition: str) -> str:
        """A condition with `x.shape[2]` for each size that the source gives no name."""
        waiting, seen = list(guard.all_input_nodes), set[fx.Node]()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if is_size(node):
                name, owner = self.text(node).code, self.text(operand(node)).code
                if re.fullmatch(r"size\d+", name):
                    said = f"{owner}.shape[{arg(node, 1)}]"
                    condition = re.sub(rf"\b{name}\b", said, condition)
            elif node.op == "call_function":
                waiting += node.all_input_nodes
        return condition

    def _return(self, statement: Statement, number: int) -> None:
        value = statement.node.args[0]
        code = self.text(value).code
        bare = isinstance(value, tuple) and len(value) > 1 and len(code) < WIDTH - 16
        inside = [n for n in statement.node.all_input_nodes if n in self.plan.inlined]
        self._write(f"return {code[1:-1] if bare else code}", *inside)


def _is_short(choice: fx.Node) -> bool:
    """Whether a choice may be one expression: in an `if`, a variable has a name to capture."""
    return not is_by_presence(choice) or choice.args[2] is None


def _wishes(node: fx.Node) -> list[str | None]:
    if node.target is getattr:
        return [str(node.args[1])]
    own = str(node.target).rpartition(".")[2] if node.op == "call_module" else ""
    hint = HINT.get(node)
    if hint not in (None, "_") and isinstance(VALUE.get(node), int):
        return [hint]  # a second height is `height2`
    return [
        None if hint and re.fullmatch(r"getitem(_\d+)?", hint) else hint,
        own if not own.isdigit() else "x",
        "y",
        "z",
    ]


def _size_wishes(node: fx.Node, dim: int) -> list[str | None]:
    hint = HINT.get(node)
    return [hint if hint not in (None, "_") else "B" if dim == 0 else f"size{dim}"]
