"""Ways through several models of one tree: the first blocks of one, a layer, the last of another.

What a model computes is a beginning, pieces in a line, and an end. A piece is a module that takes
the stream and yields it: a block, or what stands between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import fx, nn

from .guards import is_guard
from .nodes import is_size
from .notes import HINT, VALUE, copied
from .operators import is_impure
from .template import eliminate_dead_code
from .unit import Unit

STITCHES = "stitches"
"""The child of the root that holds the layers between two models."""

RUNNING = "running"
"""What modules have that hang on the path that runs: its number, or None while none does.

They are made with `stitches`, the numbers of the paths that run them, and have a `table` with a row
for each.
"""


class LineError(Exception):
    """The blocks of a model are no line of modules that take the stream and yield it."""


@dataclass(frozen=True)
class Between:
    """What runs of a third model, between front and end.

    Attributes:
        layer: the number of the layer in front of it.
        model: which it is.
        start: the first of its pieces that runs.
        stop: the one in front of which it ends.
    """

    layer: int
    model: str
    start: int
    stop: int


@dataclass(frozen=True)
class Way:
    """One way through the models.

    Attributes:
        front: the model whose beginning runs.
        stop: how many of its pieces run.
        layer: the number of the layer in front of the end; None for a model by itself.
        end: the model whose end runs.
        start: the first of its pieces that runs.
        between: what runs of a third model behind the front, by a layer of its own.
    """

    front: str
    stop: int
    layer: int | None
    end: str
    start: int
    between: Between | None = None

    @property
    def row(self) -> tuple[object, ...]:
        """It as a row of a table."""
        mid = self.between
        more = () if mid is None else (mid.layer, mid.model, mid.start, mid.stop)
        return self.front, self.stop, self.layer, self.end, self.start, *more


@dataclass(frozen=True)
class Ways:
    """All ways through the models of a tree.

    Attributes:
        table: the paths by number.
        pieces: of each model, as paths of modules below it.
        left_out: of each model the norm behind its pieces, if ways that end in it leave it out and
            only the model by itself has it.
    """

    table: tuple[Way, ...]
    pieces: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def modules(self, path: Way) -> tuple[str, ...]:
        """Ways of the modules that run in turn between beginning and end."""
        first = (f"{path.front}.{name}" for name in self.pieces[path.front][: path.stop])
        layer = () if path.layer is None else (f"{STITCHES}.{path.layer}",)
        last = (f"{path.end}.{name}" for name in self.pieces[path.end][path.start :])
        middle: tuple[str, ...] = ()
        if (mid := path.between) is not None:
            ran = self.pieces[mid.model][mid.start : mid.stop]
            middle = f"{STITCHES}.{mid.layer}", *(f"{mid.model}.{name}" for name in ran)
        return (*first, *middle, *layer, *last)


def pieces_of(unit: Unit, blocks: Sequence[str]) -> tuple[str, ...]:
    """The pieces of a model from its first block to its last, as paths below it.

    Args:
        unit: the root of the model.
        blocks: paths of its blocks below it.

    Raises:
        LineError: if they are no line.
    """
    assert unit.template is not None
    wanted = set(blocks)
    nodes = [n for n in unit.template.graph.nodes if _holds(str(n.target), wanted, n)]
    if not nodes:
        raise LineError("it calls no block")
    found: list[str] = []
    for node in _line(nodes[0], nodes[-1]):
        found += _opened(unit, str(node.target), wanted)
    return tuple(found)


def _holds(path: str, wanted: set[str], node: fx.Node | None = None) -> bool:
    if node is not None and node.op != "call_module":
        return False
    return path in wanted or any(name.startswith(f"{path}.") for name in wanted)


def _opened(unit: Unit, path: str, wanted: set[str]) -> Iterator[str]:
    """A piece, or those of what holds several."""
    if path in wanted or not _holds(path, wanted):
        yield path
        return
    inner = unit.get_submodule(path)
    if not isinstance(inner, Unit) or inner.template is None:
        raise LineError(f"'{path}' holds blocks and has no program")
    nodes = list(inner.template.graph.nodes)
    given = [n for n in nodes if n.op == "placeholder"]
    calls = [n for n in nodes if n.op not in ("placeholder", "output")]
    if not calls or len(given) != 1 or nodes[-1].args[0] is not calls[-1]:
        raise LineError(f"'{path}' does more than call its blocks in turn")
    if calls[0].args != (given[0],) or len(_line(calls[0], calls[-1])) != len(calls):
        raise LineError(f"'{path}' does more than call its blocks in turn")
    for node in calls:
        yield from _opened(unit, f"{path}.{node.target}", wanted)


def _line(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The calls from one to another, each on what the one before yields alone.

    Raises:
        LineError: if something else stands in between.
    """
    found = [first]
    if first.op != "call_module" or len(first.args) != 1 or first.kwargs:
        raise LineError(f"'{first.target}' takes more than the stream")
    while found[-1] is not last:
        users = list(found[-1].users)
        if len(users) != 1:
            raise LineError(f"what '{found[-1].target}' yields is read in {len(users)} places")
        if users[0].op != "call_module" or users[0].args != (found[-1],) or users[0].kwargs:
            raise LineError(f"something stands between '{found[-1].target}' and the next block")
        found.append(users[0])
    return found


def ends_of(graph: fx.Graph, pieces: Sequence[str]) -> tuple[fx.Node, fx.Node]:
    """What the first piece takes and what the last one yields, in the program of a model."""
    held = [n for n in graph.nodes if _holds(str(n.target), set(pieces), n)]
    taken = held[0].args[0]
    assert isinstance(taken, fx.Node)
    return taken, held[-1]


def beginning(graph: fx.Graph, pieces: Sequence[str]) -> fx.Graph:
    """The program of a model up to its first piece, as one of its own."""
    taken, _ = ends_of(graph, pieces)
    needed, queue = {taken}, [taken]
    while queue:
        fresh = set(queue.pop().all_input_nodes) - needed
        needed |= fresh
        queue += fresh
    made = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        guards = is_guard(node) and all(n in mapping or n in needed for n in node.all_input_nodes)
        if node.op == "placeholder" or node in needed or guards:
            mapping[node] = _copy(node, made, mapping)
    made.output(mapping[taken])
    return made


def ending(graph: fx.Graph, pieces: Sequence[str], left_out: str | None = None) -> fx.Graph:
    """The program of a model behind its last piece, as one of its own that takes the stream.

    Args:
        graph: the program.
        pieces: those of the model.
        left_out: a module that does not run there, which takes the stream alone.

    Raises:
        LineError: if it hangs on more of the image than the stream.
    """
    _, last = ends_of(graph, pieces)
    behind = {last}
    for node in graph.nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    behind.discard(last)
    made = fx.Graph()
    x = made.placeholder("x")
    copied(last, x, VALUE, HINT)
    HINT.put(x, "x")
    mapping = {last: x}
    for node in graph.nodes:
        if node in behind or (node.op == "get_attr" and not behind.isdisjoint(node.users)):
            for source in node.all_input_nodes:
                if source not in mapping:
                    raise LineError(f"its end reads '{source.name}', which is made in front")
            if node.op == "output":
                made.output(fx.node.map_arg(node.args[0], mapping.__getitem__))
            elif left_out is not None and node.op == "call_module" and node.target == left_out:
                mapping[node] = mapping[node.all_input_nodes[0]]
            else:
                mapping[node] = _copy(node, made, mapping)
        elif is_impure(node) and not is_guard(node) and mapping.keys() - {last}:
            raise LineError(f"'{node.name}' runs behind its blocks and does not read them")
    return made


def checks(graph: fx.Graph) -> fx.Graph:
    """What a program refuses of its inputs before anything else, as one that yields the first."""
    made = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        known = all(n in mapping for n in node.all_input_nodes)
        if node.op == "placeholder" or (known and (is_size(node) or is_guard(node))):
            mapping[node] = _copy(node, made, mapping)
    made.output(next(iter(mapping.values())))
    eliminate_dead_code(made)
    return made


def _copy(node: fx.Node, graph: fx.Graph, mapping: dict[fx.Node, fx.Node]) -> fx.Node:
    new = graph.node_copy(node, mapping.__getitem__)
    copied(node, new)
    return new


def runs(root: nn.Module, pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pieces as lists of modules, or single ones: the path of the list, or of the module.

    Yields:
        "list" with the path of what holds all of a run, or "one" with the path of a module.
    """
    for owner, group in groupby(pieces, lambda path: path.rpartition(".")[0]):
        names = [path.rpartition(".")[2] for path in group]
        held = root.get_submodule(owner) if owner else root
        if owner and list(held._modules) == names:
            yield "list", owner
        else:
            yield from (("one", f"{owner}.{name}".lstrip(".")) for name in names)


def told(root: nn.Module) -> Iterator[nn.Module]:
    """The modules below that hang on the path that runs."""
    return (m for m in root.modules() if hasattr(m, RUNNING))
