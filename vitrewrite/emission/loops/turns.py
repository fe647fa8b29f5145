"""The lines of a loop whose turns are more than one call."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

from torch import fx

from ...tracing.notes import ASSIGNED, CALLEE, CHILD, HINT, OTHER
from ..access import access
from ..alike import numbered_call
from ..expressions import ATOM, Text
from ..literals import comment
from ..names import plural
from ..statements import Layout
from .rolls import Roll, is_item
from .runs import Loop

if TYPE_CHECKING:
    from ..forward import Printer

_NEVER = 1 << 30  # a statement after all others


def roll_lines(printer: Printer, node: fx.Node, number: int) -> list[str]:
    """The loop for a node that `roll_up` made, in statement `number` of a forward."""
    return _Loop(printer, node, number).lines()


class _Loop:
    def __init__(self, printer: Printer, node: fx.Node, number: int) -> None:
        assert isinstance(node.target, Roll)
        self.printer, self.node, self.number = printer, node, number
        self.roll = node.target
        self.module = printer.plan.module
        self.before: list[str] = []
        self.loop = Loop(self.roll.container, self.roll.start, (node,) * self.roll.turns)
        self.results = {u.args[1]: u for u in node.users if is_item(u)}
        read = printer.variables(node.all_input_nodes)
        self.read_later = {n for n in read if printer.names.last_use[n] > number}
        for value in read:
            self._hold(value)
        self.index = self._take(fx.Graph().placeholder("index"), "i")
        self.variable = self._take(fx.Graph().placeholder("child"), self.loop.variable)

    def lines(self) -> list[str]:
        """Assignments before the loop, and the loop."""
        started, fixed, cycles = self.node.args
        assert isinstance(started, tuple)
        assert isinstance(fixed, tuple)
        assert isinstance(cycles, tuple)
        outputs: Any = self.roll.graph.output_node().args[0]
        carried = [self._carried(*pair) for pair in enumerate(zip(started, outputs, strict=False))]
        texts = [self._text(value) for value in fixed]
        texts += [self._cycle(cycle) for cycle in cycles]
        rest = [r for i, r in sorted(self.results.items()) if i not in self.roll.carried]
        split = len(rest) - self.roll.lists
        others = [self._result(result) for result in rest[:split]]
        texts += [self._list(result) for result in rest[split:]]
        body = self._body([*carried, *texts], carried, others)
        others_called = any(OTHER.on(n) for n in self.roll.graph.nodes)
        head = self._head(counted=bool(cycles) or others_called)
        origins = [
            line for origin in self.roll.origins for line in comment(origin, self.printer.width)
        ]
        return [*self.before, *origins, head, *(f"    {line}" for line in body)]

    def _head(self, *, counted: bool) -> str:
        roll, i = self.roll, self.index
        if roll.step > 1:
            stop = roll.start + roll.turns * roll.step
            return f"for {i} in range({roll.start}, {stop}, {roll.step}):"
        over = self.loop.slice(self.module)
        if counted:
            return f"for {i}, {self.variable} in enumerate({over}):"
        return f"for {self.variable} in {over}:"

    def _child(self, number: int) -> str:
        """How a turn names the child that it calls, counted from the first of the turn."""
        if self.roll.step == 1:
            return self.variable
        owner = access(self.module, self.roll.container)
        return f"{owner}[{self.index}{f' + {number}' if number else ''}]"

    def _other(self, node: fx.Node) -> str:
        """How a turn names a child of another container."""
        container, _ = numbered_call(node) or ("", 0)
        first = OTHER.of(node)
        owner = access(self.module, container)
        return f"{owner}[{self._turn_number()}{f' + {first}' if first else ''}]"

    def _turn_number(self) -> str:
        start, step = self.roll.start, self.roll.step
        if step == 1:
            return self.index
        return f"({self.index} - {start}) // {step}" if start else f"{self.index} // {step}"

    # -- names ----------------------------------------------------------------------------------

    def _hold(self, node: fx.Node) -> None:
        """Keeps a variable: what is assigned before the loop is not to take its name."""
        last_use = self.printer.names.last_use
        last_use[node] = max(last_use.get(node, -1), self.number + 1)

    def _take(self, holder: fx.Node, *wishes: str | None) -> str:
        """A variable that nothing else takes before the loop is over."""
        name = self.printer.names.take(holder, wishes, self.number)
        self._hold(holder)
        return name

    def _text(self, value: Any) -> str:
        return str(self.printer.text(value).within(ATOM))

    def _carried(self, index: int, pair: tuple[fx.Node, fx.Node]) -> str:
        """The variable of a carried value, which has its first value before the loop."""
        start, end = pair
        result = self.results.get(self.roll.carried[index])
        holder = result if result is not None else end
        text = self._text(start)
        self._release(start)
        hint = HINT.get(end) or text
        own = text if start.op != "placeholder" or hint == text else None
        stem = hint.rstrip("0123456789")  # `x2`, assigned to `x` at the end of a turn, is `x`
        name = self._take(holder, own, hint if stem.endswith("_") else stem, text)
        if name != text:
            self.before.append(f"{name} = {text}")
        return name

    def _release(self, start: fx.Node) -> None:
        """Lets a first value's name go to what is carried on, if nothing else needs the value."""
        reads: list[fx.Node] = []
        fx.node.map_arg(self.node.args, lambda n: reads.extend(self.printer.variables([n])))
        if reads.count(start) == 1 and start not in self.read_later:
            self.printer.names.last_use[start] = self.number

    def _cycle(self, values: Any) -> str:
        """An item of a tuple of the values that alternate."""
        period = next(
            k
            for k in range(1, len(values) + 1)
            if all(v is values[i % k] for i, v in enumerate(values))
        )
        texts = [self._text(v) for v in values[:period]]
        if texts[0].startswith("*"):  # one list of all values, which a comprehension makes
            name = self._take(fx.Graph().placeholder("own"), "values")
            self.before += self.printer.wrapped(f"{name} = {texts[0][1:]}")
            return f"{name}[{self._turn_number()}]"
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
        stem = "".join(letters[0] for letters in alike).rstrip("_0123456789") or "values"
        name = self._take(fx.Graph().placeholder("own"), stem)
        self.before += self.printer.wrapped(f"{name} = ({', '.join(texts)})")
        turn = self._turn_number()
        return f"{name}[{turn} % {period}]" if period < len(values) else f"{name}[{turn}]"

    def _result(self, result: fx.Node) -> str:
        """The variable of a result that is neither carried on nor collected."""
        return self._take(result, HINT.get(result), "x")

    def _list(self, result: fx.Node) -> str:
        """The variable of a list that the turns fill."""
        hint = (HINT.get(result) or "x").rstrip("0123456789")
        name = self._take(result, plural(hint))
        self.before.append(f"{name} = []")
        return name

    # -- the turn -------------------------------------------------------------------------------

    def _body(self, texts: list[str], carried: list[str], others: list[str]) -> list[str]:
        turn = self._turn(texts, carried, others)
        turn.print_all_but_return()
        outputs: Any = self.roll.graph.output_node().args[0]
        ends = [turn.text(n).code for n in outputs]
        results = zip([*carried, *others], ends, strict=True)
        changed = [(name, end) for name, end in results if name != end]
        if changed:
            names, codes = zip(*changed, strict=True)
            turn.out += turn.wrapped(f"{', '.join(names)} = {', '.join(codes)}")
        return turn.out

    def _fixed(self, inputs: list[fx.Node]) -> dict[fx.Node, Text]:
        """What is written for the inputs that never change."""
        fixed: Any = self.node.args[1]
        own = inputs[len(self.roll.carried) :]
        return {node: self.printer.text(value) for node, value in zip(own, fixed, strict=False)}

    def _turn(self, texts: list[str], carried: list[str], others: list[str]) -> Printer:
        """A printer for one turn, to which names that are needed around it are taken."""
        from ..forward import Printer

        outputs: Any = self.roll.graph.output_node().args[0]
        inputs = [n for n in self.roll.graph.nodes if n.op == "placeholder"]
        for node in self.roll.graph.nodes:
            if CHILD.on(node):
                CALLEE.put(node, self._child(CHILD.of(node)))
            elif OTHER.on(node):
                CALLEE.put(node, self._other(node))
        for node, name in zip(outputs, [*carried, *others], strict=True):
            if node.op != "placeholder":
                HINT.put(node, name)
                ASSIGNED.put(node, True)
        turn = Printer(Layout.of(self.roll.graph, self.module), texts, self.printer.width - 4)
        turn.texts = self._fixed(inputs)
        around = self.printer.names
        for name, holder in around.holder.items():
            if name not in (*carried, *others) and around.last_use.get(holder, -1) >= self.number:
                turn.names.holder[name] = holder
                turn.names.last_use[holder] = _NEVER
        for node, name in zip(inputs, texts, strict=True):
            if name not in carried:
                turn.names.last_use[node] = _NEVER
        return turn
