"""Classes from units: one per program, whatever the number of instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..tracing import walk
from ..tracing.about import about, is_root
from ..tracing.cutting import halves
from ..tracing.entries import ENTRIES
from ..tracing.notes import HINT
from ..tracing.packing import PLAIN, Packing, packing
from ..tracing.paths import Ways, checks
from ..tracing.pre_logits import NOT_READ
from ..tracing.ranks import generalise
from ..tracing.template import Template, eliminate_dead_code
from ..tracing.unit import Unit
from .access import children_at, is_chain
from .distinction import CONTAINERS, by_place, distinguish
from .effects import holds_tensors
from .entrances import entered, entrances
from .implied import drop_implied
from .inlining import inline_small_calls
from .joining import holds_less, join, moved
from .lengths import is_longer
from .literals import ANYTHING, Symbol, same
from .makeup import lists_of, parts_of
from .names import NameScope
from .packs import agree, name_items, name_tuples, pack_calls, pack_inputs, rejoin
from .parameters import Parameters
from .paths import known_paths, parts, runs_by_id
from .pre_logits import before_logits
from .results import name_results, star_results
from .skeleton import Position, numbered, replace_literals, skeleton
from .tidy import tidy


@dataclass(eq=False)
class Class:
    """A class to be emitted, and the units that are its instances."""

    name: str
    template: Template | None
    units: list[Unit] = field(default_factory=list)
    literals: list[dict[Position, int | float]] = field(default_factory=list)
    parameters: Parameters = field(default_factory=lambda: Parameters(0))
    graphs: tuple[fx.Graph, ...] = ()
    entries: tuple[str, ...] = ()  # methods that its forward calls in turn, the graphs in order
    before: tuple[fx.Graph, ...] = ()  # of the last entry up to what makes the classes
    asked: tuple[tuple[str, tuple[fx.Graph, ...]], ...] = ()  # entries that clauses ask for
    runs: tuple[tuple[str, str], ...] = ()  # of the blocks that paths go through
    paths: Ways | None = None  # through the models that the root holds
    checks: tuple[fx.Graph, ...] = ()  # of what the root refuses of its inputs
    odd: str = ""  # why there is no such program, if there was one in the model
    joined: bool = False  # whether its modules have two programs, which are written as one
    plain: bool = False  # whether its forward is written without loops
    checkpointed: str | None = None  # when it is computed again in backward; "" is always
    packing: Packing = PLAIN  # which inputs are one argument
    yields: tuple[str | None, ...] = ()  # what its results are called
    used: set[int] = field(default_factory=set)  # ids of modules that some graph calls

    @property
    def sample(self) -> Unit:
        """One of the instances."""
        return self.units[0]

    @property
    def programs(self) -> tuple[fx.Graph, ...]:
        """All graphs, those of evaluation and of training in turn where they differ."""
        asked = (g for _, graphs in self.asked for g in graphs)
        return (*self.graphs, *self.before, *asked, *self.checks)

    def children(self) -> Iterator[tuple[str, list[nn.Module]]]:
        """The children that the class needs, with one module per instance."""
        for name in self.sample._modules:
            modules = [u._modules.get(name) for u in self.units]
            if any(m is not None and is_made(m, self.used) for m in modules):
                yield name, modules  # type: ignore[misc]


@dataclass
class Care:
    """Modules, by id, whose classes are written with more care, as the proof of them failed.

    Attributes:
        plain: without loops and comprehensions.
        alone: as a class of their own.
        apart: without those of other programs.
    """

    plain: set[int] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    apart: set[int] = field(default_factory=set)


class Classes:
    """All classes of a captured tree, children before parents."""

    def __init__(self, root: nn.Module, scope: NameScope, care: Care | None = None) -> None:
        self.scope = scope
        self.care = care or Care()
        self.of: dict[int, Class] = {}  # id of a unit -> its class
        self.paths = {id(m): path for path, m in walk.named(root)}
        self.all: list[Class] = []
        self.ways, self.runs = known_paths(root), runs_by_id(root)
        self.models = {
            id(root.get_submodule(n)): n for n in (self.ways.pieces if self.ways else ())
        }
        self._by_key: dict[Any, Class] = {}
        self._skeletons: dict[int, Any] = {}
        self._collect(root)
        self._join()
        self.all = self._ordered()
        self._used: set[int] = set()
        for cls in self.all:
            cls.used = self._used
            self._prepare(cls)
            self._used |= _used_by(cls)
        self._pack()
        needed = self._reachable(root)
        self.all = [cls for cls in self.all if cls in needed]
        self._name()

    def makes(self, module: nn.Module) -> bool:
        """Whether a constructor makes the module."""
        return is_made(module, self._used)

    def _collect(self, module: nn.Module) -> None:
        for child in module.children():
            self._collect(child)
        if not isinstance(module, Unit) or id(module) in self.of or is_chain(module):
            return
        key, literals = self._key(module)
        cls = self._by_key.get(key)
        if cls is None:
            template = module.template and self._skeletons[id(module.template)][0]
            name = template.name if template else module.kind
            plain = id(module) in self.care.plain
            cls = self._by_key[key] = Class(name, template, plain=plain)
            self.all.append(cls)
        cls.units.append(module)
        cls.literals.append(literals)
        self.of[id(module)] = cls

    def _key(self, unit: Unit) -> tuple[Any, dict[Position, int | float]]:
        template = unit.template
        names = parts_of(unit)
        if id(unit) in self.care.plain:
            names = names, "plain", id(unit) if id(unit) in self.care.alone else None
        if template is None:
            return (unit.kind, names), {}
        if id(template) not in self._skeletons:
            general = template.clone()
            for graph in general.graphs:
                generalise(graph)
            self._skeletons[id(template)] = general, *skeleton(general)
        _, shape, literals = self._skeletons[id(template)]
        more = lists_of(unit, template), self.runs.get(id(unit)), is_root(unit)
        return (shape, names, *more), literals

    def _join(self) -> None:
        """Makes one class of two whose programs can be one with a choice."""
        for name in dict.fromkeys(cls.name for cls in self.all):
            alike = [c for c in self.all if c.name == name and self._may_join(c)]
            alike.sort(key=_length, reverse=True)
            for i, large in enumerate(alike):
                for small in alike[i + 1 :]:
                    if large in self.all and small in self.all and not small.joined:
                        self._join_two(small, large)

    def _may_join(self, cls: Class) -> bool:
        plain = cls.template is not None and not cls.plain and not is_root(cls.sample)
        special = self.care.apart.intersection(map(id, cls.units)) or id(cls.sample) in self.models
        return plain and not special and id(cls.sample) not in self.runs

    def _join_two(self, small: Class, large: Class) -> bool:
        """Gives one class the modules of another, if that can be; whether it did."""
        assert small.template is not None
        assert large.template is not None
        if is_longer(large.template, small.template, large.sample, small.sample):
            large.literals += [{} for _ in small.units]
            return self._absorb(small, large)
        if large.joined or not holds_less(small.sample, large.sample):
            return False
        found = join(small.template, large.template, small.units, large.units)
        if found is None:
            return False
        _, positions = skeleton(found.template)
        large.literals = [
            *(moved(each, found.large, positions) for each in large.literals),
            *(moved(each, found.small, positions) for each in small.literals),
        ]
        large.template = found.template
        return self._absorb(small, large)

    def _absorb(self, small: Class, large: Class) -> bool:
        large.joined = True
        large.units += small.units
        self.of |= {id(unit): large for unit in small.units}
        self.all.remove(small)
        return True

    def _ordered(self) -> list[Class]:
        """Children before parents, else as they were found."""
        order: list[Class] = []
        begun: set[Class] = set()  # a class may have itself below

        def visit(cls: Class) -> None:
            if cls in begun:
                return
            begun.add(cls)
            for unit in cls.units:
                for below in walk.modules(unit)[1:]:
                    if id(below) in self.of:
                        visit(self.of[id(below)])
            order.append(cls)

        for cls in self.all:
            visit(cls)
        return order

    def _reachable(self, root: nn.Module) -> set[Class]:
        """The classes of modules that are called or hold state."""
        needed: set[Class] = set()
        stack = [root]
        while stack:
            module = stack.pop()
            cls = self.of.get(id(module))
            if cls is None:
                stack += module.children()
            elif cls not in needed:
                needed.add(cls)
                stack += [m for _, modules in cls.children() for m in modules if m is not None]
        return needed

    def _name(self) -> None:
        """Two classes of one name: one says what it has besides, or it is numbered."""
        for cls in self.all:
            if cls.name in CONTAINERS:
                cls.name = by_place(self.paths[id(cls.sample)]) or cls.name
        distinguish(self.all)
        for cls in self.all:
            cls.name = self.scope.take(cls.name, "Part")

    def _prepare(self, cls: Class) -> None:
        cls.parameters = Parameters(len(cls.units), self.scope.taken, _members(cls.sample))
        if cls.template is None:
            return
        whole = [numbered(g) for g in cls.template.graphs]
        cut = [] if any(u.checkpointing for u in cls.units) else [halves(g) for g in whole]
        if cut and all(cut):
            cls.entries = ENTRIES
            whole = [half for each in zip(*filter(None, cut), strict=True) for half in each]
        cls.graphs = tuple(whole)
        told = about(cls.sample).helpers.get("pre_logits") if is_root(cls.sample) else None
        if cls.entries and told:
            count = len(whole) // len(cls.entries)
            halves_before = [before_logits(g, cls.sample, told) for g in whole[-count:]]
            cls.before = tuple(g for g in halves_before if g is not None)
            if len(cls.before) < count:
                cls.before, cls.odd = (), told[1] if not told[0] else NOT_READ
        if is_root(cls.sample):
            plain = [numbered(g) for g in cls.template.graphs]
            cls.asked = tuple(
                (name, tuple(entered(g, cls.sample, name) for g in plain))
                for name in entrances(cls.sample)
            )
            cls.paths = self.ways
            cls.checks = tuple(map(checks, plain)) if self.ways else ()
        if (name := self.models.get(id(cls.sample))) is not None and self.ways is not None:
            cls.runs = self.runs[id(cls.sample)]
            programs = [numbered(g) for g in cls.template.graphs]
            cls.asked = tuple(
                parts(programs, self.ways.pieces[name], self.ways.left_out.get(name)).items()
            )
        for graph in cls.programs:
            inline_small_calls(graph, cls.units)

    def _pack(self) -> None:
        """Finds which inputs are one argument: all that a call may reach must agree."""
        for cls in self.all:
            found = {packing(graph) for graph in cls.graphs}
            alone = is_root(cls.sample) or cls.entries or self.ways is not None
            cls.packing = found.pop() if len(found) == 1 and not alone else PLAIN
        calls = [
            self._called(cls, str(node.target))
            for cls in self.all
            for graph in cls.programs
            for node in graph.nodes
            if node.op == "call_module"
        ]
        agree(calls)

    def _called(self, cls: Class, target: str) -> set[Class | None]:
        """The classes of what a call may reach, None for what is no unit."""
        return {self.of.get(id(child)) for child in children_at(cls.units, target)}

    def _taken_by(self, cls: Class, target: str) -> tuple[Packing, tuple[str, ...]]:
        """What a call takes, and what that is called there."""
        called = next(filter(None, self._called(cls, target)), None)
        if called is None:
            return PLAIN, ()
        inputs = (n for n in called.graphs[0].nodes if n.op == "placeholder")
        return called.packing, tuple(str(HINT.get(n) or n.name) for n in inputs)

    def _yielded_by(self, cls: Class, target: str) -> tuple[str | None, ...]:
        """What the results of a call are called there."""
        called = next(filter(None, self._called(cls, target)), None)
        return called.yields if called else ()

    def finish(self, cls: Class) -> None:
        """Writes differing literals as arguments; to be done after the children's classes."""
        names = {p: self._argument(cls, p) for p in cls.literals[0]} if cls.template else {}
        for i, graph in enumerate(cls.programs):
            number = i % len(cls.template.graphs) if cls.template else 0
            replace_literals(graph, number, {p: s for p, s in names.items() if s is not None})
            tidy(graph, cls.units)
            drop_implied(graph, cls.units)
            pack_inputs(graph, cls.packing)
            pack_calls(graph, lambda target: self._taken_by(cls, target))
            star_results(graph)
            rejoin(graph)
            eliminate_dead_code(graph)
            name_tuples(graph)
            cls.yields = name_results(graph, lambda target: self._yielded_by(cls, target))
            name_items(graph)
        flags = [unit.checkpointing for unit in cls.units]
        if any(flags):
            differs = not all(flags)
            cls.checkpointed = (
                cls.parameters.express(flags, "checkpointed", "self.") if differs else ""
            )

    def _argument(self, cls: Class, position: Position) -> Symbol | None:
        vector = tuple(found[position] for found in cls.literals)
        needed = [v for v in vector if v is not ANYTHING]
        if all(same(v, needed[0]) for v in needed):
            return None
        name = setting(cls, vector)
        if name is None and isinstance(needed[0], float):
            complement = tuple(_setting_values(cls, k) for k in cls.sample.settings)
            for key, values in zip(cls.sample.settings, complement, strict=True):
                if values is not None and all(map(same, vector, (1 - v for v in values))):
                    return Symbol(f"1 - {cls.parameters.express(values, key, 'self.')}")
        fallback = "size" if isinstance(needed[0], int) else "factor"
        return Symbol(
            cls.parameters.express(vector, name or fallback, "self.", derive=name is None)
        )


def _used_by(cls: Class) -> set[int]:
    """Modules on the path to what the graphs of a class call or read."""
    names = {
        str(n.target).rpartition(".")[0] if n.op == "get_attr" else str(n.target)
        for graph in cls.graphs
        for n in graph.nodes
        if n.op in ("call_module", "get_attr")
    }
    found: set[int] = set()
    for unit in cls.units:
        for name in names:
            module: nn.Module | None = unit
            for part in name.split(".") if name else ():
                module = module and module._modules.get(part)
                if module is not None:
                    found.add(id(module))
    return found


def _length(cls: Class) -> int:
    return sum(len(g.nodes) for g in cls.template.graphs) if cls.template else 0


def _members(unit: Unit) -> frozenset[str]:
    """The names of a module's children, parameters and buffers."""
    return frozenset((*unit._modules, *unit._parameters, *unit._buffers))


def is_made(module: nn.Module, used: set[int]) -> bool:
    """Whether a module is needed: it holds state, or is called by one of those in `used`."""
    return id(module) in used or holds_tensors(module)


def setting(cls: Class, vector: tuple[Any, ...]) -> str | None:
    """The attribute of the original modules that held these values."""
    for name in cls.sample.settings:
        values = _setting_values(cls, name)
        if values is not None and all(map(same, values, vector)):
            return name
    return None


def _setting_values(cls: Class, name: str) -> tuple[Any, ...] | None:
    values = tuple(u.settings.get(name) for u in cls.units)
    return None if None in values else values
