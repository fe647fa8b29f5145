"""Two programs as one with a choice: what only the larger does stands under an `if`.

The larger one has inputs that the smaller one is not given, or children and tensors that the
modules of the smaller one do without: by these the joined program tells whose it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..tracing.nodes import after_inputs, nodes_of
from ..tracing.notes import HINT, OPTIONAL, ORIGIN, POSITION, VALUE, copied, shared
from ..tracing.operators import is_impure
from ..tracing.sizes import by_size
from ..tracing.template import Template, copy_graph, eliminate_dead_code
from ..tracing.unit import Unit
from .access import children_at, is_sequence
from .aligning import aligned, may_lack
from .effects import is_nothing
from .literals import ANYTHING
from .skeleton import Position, numbered
from .tidy import tidy

MOST_CHOICES = 4
"""More would be harder to read than two classes."""


@dataclass(eq=False)
class Joined:
    """A program for the modules of two templates.

    Attributes:
        template: the program.
        small: for each graph, the number of the node that a node of the smaller one became.
        large: the same for the larger one.
    """

    template: Template
    small: list[dict[int, int]] = field(default_factory=list)
    large: list[dict[int, int]] = field(default_factory=list)


class _ApartError(Exception):
    """Two programs that have no common form."""


def join(
    small: Template, large: Template, without: Sequence[Unit], having: Sequence[Unit]
) -> Joined | None:
    """The program of both, or None.

    Args:
        small: a program.
        large: another one, of more.
        without: the modules of the smaller one.
        having: those of the larger one.
    """
    if len(small.graphs) != len(large.graphs):
        return None
    pairs = zip(small.graphs, large.graphs, strict=True)
    try:
        made = [_Join(*pair, without, having) for pair in pairs]
    except _ApartError:
        return None
    graphs = [each.graph for each in made]
    template = Template(large.name, graphs[0], graphs[1] if len(graphs) > 1 else None)
    return Joined(template, [e.of_small for e in made], [e.of_large for e in made])


class _Join:
    def __init__(
        self, small: fx.Graph, large: fx.Graph, without: Sequence[Unit], having: Sequence[Unit]
    ) -> None:
        self.without = without[0]
        small, large = _simple(small, without), _simple(large, having)
        self.graph = copy_graph(large)
        self.copy = dict(zip(large.nodes, self.graph.nodes, strict=True))
        self.pair = aligned(small, large)
        self.choices: dict[tuple[fx.Node, fx.Node | None], fx.Node] = {}
        self.added: dict[fx.Node, fx.Node] = {}
        self._pair_inputs(small, large)
        if small.output_node() not in self.pair:
            raise _ApartError
        self.only_large = [n for n in large.nodes if n not in set(self.pair.values())]
        for old, node in self.pair.items():
            self._merge(old, node)
        if len(self.choices) > MOST_CHOICES:
            raise _ApartError
        self._rename()
        number = {n: i for i, n in enumerate(self.graph.nodes)}
        self.of_large = {POSITION.of(n): number[self.copy[n]] for n in large.nodes if _told(n)}
        now = {n: self._now(n) for n in small.nodes if _told(n)}
        self.of_small = {POSITION.of(n): number[new] for n, new in now.items() if new is not None}

    def _pair_inputs(self, small: fx.Graph, large: fx.Graph) -> None:
        few, many = ([n for n in g.nodes if n.op == "placeholder"] for g in (small, large))
        if len(few) > len(many):
            raise _ApartError
        self.pair = dict(zip(few, many, strict=False)) | {
            a: b for a, b in self.pair.items() if a.op != "placeholder"
        }
        for node in many[len(few) :]:
            OPTIONAL.put(self.copy[node], True)

    def _now(self, old: fx.Node) -> fx.Node | None:
        return self.copy[self.pair[old]] if old in self.pair else self.added.get(old)

    # -- the readers of what differs ---------------------------------------------------------

    def _merge(self, old: fx.Node, node: fx.Node) -> None:
        """Has a node that both have read what either reads."""
        new, before = self.copy[node], len(self.choices)
        missing = node.kwargs.keys() - old.kwargs.keys()
        if len(old.args) > len(node.args) or not old.kwargs.keys() <= node.kwargs.keys():
            raise _ApartError
        if not all(may_lack(node, k) for k in missing):
            raise _ApartError
        for value in node.args[len(old.args) :]:
            if not self._is_without(value):
                raise _ApartError
        args = [self._either(a, b, new) for a, b in zip(old.args, node.args, strict=False)]
        new.args = (*args, *new.args[len(args) :])
        new.kwargs = {k: self._either(old.kwargs.get(k), v, new, k) for k, v in node.kwargs.items()}
        self._origin(old, new, list(self.choices.values())[before:])

    def _origin(self, old: fx.Node, new: fx.Node, choices: list[fx.Node]) -> None:
        """What a clause changed in the larger one alone is what the choice is about."""
        if ORIGIN.get(old) == ORIGIN.get(new):
            return
        if ORIGIN.get(old) or not choices:
            raise _ApartError
        ORIGIN.put(choices[0], ORIGIN.drop(new))

    def _is_without(self, value: Any) -> bool:
        """Whether a value of the larger one is None in the smaller one."""
        if not isinstance(value, fx.Node) or value in self.pair.values():
            return False
        return value.op == "placeholder" or (value.op == "get_attr" and self._is_absent(value))

    def _is_absent(self, node: fx.Node) -> bool:
        return not has_part(self.without, str(node.target))

    def _either(self, old: Any, value: Any, reader: fx.Node, name: str = "") -> Any:
        if isinstance(value, fx.Node):
            if old is None:
                given = self.copy[value]
                return given if self._is_without(value) else self._choice(given, None, name)
            if not isinstance(old, fx.Node):
                raise _ApartError
            if self.pair.get(old) is value:
                return self.copy[value]
            return self._choice(self.copy[value], self._image(old, reader))
        if isinstance(value, (tuple, list)) and type(old) is type(value) and len(old) == len(value):
            return type(value)(self._either(a, b, reader) for a, b in zip(old, value, strict=True))
        if isinstance(value, dict) and isinstance(old, dict) and old.keys() == value.keys():
            return {k: self._either(old[k], v, reader) for k, v in value.items()}
        if isinstance(value, slice) and isinstance(old, slice):
            parts = ("start", "stop", "step")
            return slice(*(self._either(getattr(old, p), getattr(value, p), reader) for p in parts))
        if nodes_of(old):
            raise _ApartError
        return value

    def _image(self, old: fx.Node, reader: fx.Node) -> fx.Node:
        """What a node of the smaller one is here; what only that one does is added."""
        known = self._now(old)
        if known is not None:
            return known
        if is_impure(old) or old.op not in ("call_function", "call_method"):
            raise _ApartError
        inputs = {n: self._image(n, reader) for n in old.all_input_nodes}
        with self.graph.inserting_before(reader):
            made = self.added[old] = self.graph.node_copy(old, inputs.__getitem__)
        copied(old, made)
        return made

    def _choice(self, yes: fx.Node, no: fx.Node | None, name: str = "") -> fx.Node:
        if no is not None and _parts(yes) == _parts(no):
            return yes  # both read it
        if all(yes is not self.copy[n] for n in self.only_large):
            raise _ApartError  # both make it, and read it in other places
        key = yes, no
        if key not in self.choices:
            order = {node: i for i, node in enumerate(self.graph.nodes)}
            place = after_inputs(
                max((n for n in (yes, no) if n is not None), key=order.__getitem__)
            ).next
            condition = self._condition(place)
            with self.graph.inserting_before(place):
                made = self.graph.call_function(by_size, (condition, yes, no))
            shared(yes, made, VALUE, HINT)
            HINT.keep(made, HINT.get(no) if no is not None else name)
            if ORIGIN.on(yes):
                ORIGIN.put(made, ORIGIN.drop(yes))
            self.choices[key] = made
        return self.choices[key]

    def _rename(self) -> None:
        """What is read where there is a choice, and by it, has the name of what is chosen."""
        more = {self.copy[n] for n in self.only_large} | set(self.choices.values())
        for (_, no), choice in self.choices.items():
            if no is not None and no.op.startswith("call") and more.issuperset(no.users):
                if self._is_returned(choice) and self._is_needed(HINT.get(choice), no):
                    HINT.put(choice, HINT.get(no) or _called(no) or HINT.get(choice))
                HINT.put(no, HINT.get(choice))

    def _is_returned(self, choice: fx.Node) -> bool:
        """Whether nothing is called after it: then no trace sees its name, but that before it."""
        users = list(choice.users)
        while len(users) == 1 and users[0].op == "call_module":
            if not all(map(is_nothing, children_at([self.without], str(users[0].target)))):
                return False
            users = list(users[0].users)
        return all(user.op == "output" for user in users)

    def _is_needed(self, name: str | None, node: fx.Node) -> bool:
        """Whether something else of this name is read after `node`."""
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        held = (n for n in order if HINT.get(n) == name and order[n] < order[node])
        return name is not None and any(order[u] > order[node] for n in held for u in n.users)

    def _condition(self, place: fx.Node) -> fx.Node:
        """`mask is not None`, of what only the larger one has."""
        for node in self.only_large:
            if node.op != "placeholder" and is_impure(node):
                raise _ApartError
        given = [n for n in self.only_large if n.op == "placeholder"]
        held = [
            n for n in self.only_large if n.op in ("get_attr", "call_module") and self._is_absent(n)
        ]
        if not given and not held:
            raise _ApartError
        with self.graph.inserting_before(place):
            if given:
                subject = self.copy[given[0]]
            else:
                subject = self.graph.create_node("get_attr", str(held[0].target).partition(".")[0])
            return self.graph.call_function(operator.is_not, (subject, None))


def _called(node: fx.Node) -> str | None:
    """The name of the child that a node calls."""
    name = str(node.target).rpartition(".")[2] if node.op == "call_module" else ""
    return name if name and not name.isdigit() else None


def _simple(graph: fx.Graph, units: Sequence[Unit]) -> fx.Graph:
    """A program with its sizes read as they will be printed."""
    made = numbered(graph)
    tidy(made, units)
    eliminate_dead_code(made)
    return made


def _told(node: fx.Node) -> bool:
    return POSITION.on(node)


def _parts(node: fx.Node) -> Any:
    return node.op, node.target, node.args, node.kwargs


def holds_less(small: Unit, large: Unit) -> bool:
    """Whether a module has what another one has, or less of it, and nothing else."""
    for table in ("_modules", "_parameters", "_buffers"):
        few, many = (
            {k: v for k, v in getattr(u, table).items() if v is not None} for u in (small, large)
        )
        if not few.keys() <= many.keys() or (table == "_parameters" and len(few) < len(many)):
            return False
        if list(few) != [k for k in many if k in few]:
            return False
        if any(_tensor_kind(v) != _tensor_kind(many[k]) for k, v in few.items()):
            return False
    hidden = small._non_persistent_buffers_set, large._non_persistent_buffers_set
    return (
        small.kept == large.kept
        and hidden[0] <= hidden[1]
        and (small.checkpointing == large.checkpointing)
    )


def _tensor_kind(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return len(value._modules) if is_sequence(value) else None
    return value.dim(), None if value.dtype.is_floating_point else value.dtype


def has_part(unit: Unit, path: str) -> bool:
    """Whether a module has the child, parameter or buffer at a path."""
    name = path.partition(".")[0]
    tables = (unit._modules, unit._parameters, unit._buffers)
    return any(table.get(name) is not None for table in tables)


def moved(
    literals: Mapping[Position, int | float],
    numbers: Sequence[Mapping[int, int]],
    positions: Iterable[Position],
) -> dict[Position, Any]:
    """The literals of a module at the positions of a joined program.

    Args:
        literals: those of the program that it had.
        numbers: what the nodes of that one became.
        positions: where the joined program has some.
    """
    known = {
        (graph, numbers[graph][node], *rest): value
        for (graph, node, *rest), value in literals.items()
        if node in numbers[graph]
    }
    return {position: known.get(position, ANYTHING) for position in positions}
