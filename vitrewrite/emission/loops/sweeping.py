"""The lines of a loop over tuples, side by side."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from ...tracing.notes import ARITY, CALLEE, HINT
from ..expressions import ATOM, CALL, Text
from ..packs import PAIR
from ..statements import Layout
from .rolls import is_item
from .sweeps import Sweep
from .turning import element_text

if TYPE_CHECKING:
    from ..forward import Printer

_NEVER = 1 << 30  # a statement after all others


def sweep_text(printer: Printer, node: fx.Node, own: Callable[[str], str]) -> Text:
    """The comprehension for a node; `own` makes a name that nothing else has."""
    head = _Head(printer, node, own)
    element = element_text(head.sweep.element, head.names.get)
    return Text(f"[{element} {head.text}]", ATOM)


class _Head:
    """`for i, (a, b) in enumerate(zip(c, d))`, and what is called how in a turn."""

    def __init__(self, printer: Printer, node: fx.Node, take: Callable[[str], str]) -> None:
        assert isinstance(node.target, Sweep)
        self.sweep, self.take = node.target, take
        self.inputs = [n for n in self.sweep.graph.nodes if n.op == "placeholder"]
        owners, others = node.args
        rest = iter(self.inputs)
        given: Any = iter(owners)  # type: ignore[arg-type]
        self.names: dict[fx.Node, Text] = {}
        targets, parts = [], []
        for over in self.sweep.over:
            if over.calls:
                name = take(over.hint or "layer")
                for call in over.calls:
                    CALLEE.put(call, name)
                targets.append(name)
                parts.append(over.part)
            else:
                parts.append(printer.text(next(given)).within(CALL) + over.part)
                targets.append(self._target(next(rest), over.hint or "y"))
        counter = self._counter(next(rest)) if self.sweep.first is not None else None
        for each, other in zip(rest, others, strict=False):  # type: ignore[arg-type]
            self.names[each] = printer.text(other)
        whole = parts[0] if len(parts) == 1 else f"zip({', '.join(parts)})"
        target = ", ".join(targets)
        if counter is not None and not parts:
            whole, target = self._range(), counter
        elif counter is not None:
            start = f", {self.sweep.first}" if self.sweep.first else ""
            target = f"({target})" if len(targets) > 1 else target
            whole, target = f"enumerate({whole}{start})", f"{counter}, {target}"
        self.text = f"for {target} in {whole}"

    def _range(self) -> str:
        first = self.sweep.first or 0
        stop = first + self.sweep.turns
        return f"range({first}, {stop})" if first else f"range({stop})"

    def _counter(self, node: fx.Node) -> str:
        name = self.take("i")
        self.names[node] = Text(name)
        return name

    def _target(self, node: fx.Node, hint: str) -> str:
        items = {u.args[1]: u for u in node.users if _is_item_of(u, node)}
        if len(items) < 2 or len(items) < len(node.users):
            name = self.take(hint)
            self.names[node] = Text(name)
            return name
        self.names[node] = Text("_")
        found = []
        for number in range(ARITY.of(node)):
            item = items.get(number)
            name = "_" if item is None else self.take(HINT.get(item) or hint)
            if item is not None:
                self.names[item] = Text(name)
            found.append(name)
        alone = len(self.sweep.over) == 1 and self.sweep.first is None
        return ", ".join(found) if alone else f"({', '.join(found)})"


def _is_item_of(node: fx.Node, owner: fx.Node) -> bool:
    item = node.target is operator.getitem and node.args[0] is owner
    return item and isinstance(node.args[1], int) and ARITY.on(owner)


def sweep_lines(printer: Printer, node: fx.Node, number: int) -> list[str]:
    """The loop for a node, in statement `number` of a forward."""
    names = printer.names

    def take(wish: str | None, holder: fx.Node | None = None) -> str:
        held = holder or fx.Graph().placeholder("held")
        name = names.take(held, [wish] if wish in PAIR else [wish, "y"], number)
        names.last_use[held] = max(names.last_use.get(held, -1), number + 1)
        return name

    for value in printer.variables(node.all_input_nodes):  # no name of theirs is taken meanwhile
        names.last_use[value] = max(names.last_use.get(value, -1), number + 1)
    results = {u.args[1]: u for u in node.users if is_item(u)}
    sweep = node.target
    assert isinstance(sweep, Sweep)
    lists = [
        take(HINT.get(results[i]) or "values" if i in results else "y", results.get(i))
        for i in range(sweep.lists)
    ]
    head = _Head(printer, node, take)
    filled = head.inputs[len(head.inputs) - len(lists) :]
    head.names.update(zip(filled, map(Text, lists), strict=True))
    texts = [head.names[n].within(ATOM) for n in head.inputs]
    turn = type(printer)(Layout.of(sweep.graph, printer.plan.module), texts, printer.width - 4)
    for name, holder in names.holder.items():
        if names.last_use.get(holder, -1) >= number:
            turn.names.holder[name] = holder
            turn.names.last_use[holder] = _NEVER
    for each in head.inputs:
        turn.names.last_use[each] = _NEVER
    for each, text in head.names.items():
        if each not in head.inputs:
            turn.names.name_of[each] = text.code
            turn.names.holder[text.code] = each
            turn.names.last_use[each] = _NEVER
    turn.texts = {n: head.names[n] for n in head.inputs}
    turn.print_all_but_return()
    starts = [f"{name} = []" for name in lists]
    return [*starts, *printer.wrapped(f"{head.text}:"), *(f"    {line}" for line in turn.out)]
