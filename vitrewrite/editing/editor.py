"""Edits a captured tree: templates are copied when an instance starts to differ."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..errors import RewriteError
from ..text import Told, plural
from ..tracing import walk
from ..tracing.leaves import changed_by
from ..tracing.notes import ARITY, HINT, ORIGIN, VALUE, noted
from ..tracing.template import Template
from ..tracing.unit import Unit, duplicate
from .fitting import fit
from .linting import lint

if TYPE_CHECKING:
    from .clause import ClauseRef
    from .folds import Fold, Lowered
    from .narrowing import Gathered, Narrowing
    from .origins import OwnLayers
    from .stitching import Stitches
    from .value import Value


class Seat(Protocol):
    """Where a pass put something: the site as that pass was given it."""

    @property
    def clause(self) -> ClauseRef:
        """What asked for it."""

    @property
    def role(self) -> str:
        """The site's name."""


@dataclass(eq=False)
class Insertion(Told):
    """A module that a pass put into the tree.

    Attributes:
        pass_name: which pass.
        clause: position of the clause in the spec.
        path: module path of the new module.
        unit: path of the unit whose graph calls it.
        site: where the pass put it.
        owners: module paths that its parts belong to, which name them in a delta.
        key: what names it whatever other clauses put in; its initial values hang on it.
        folds: whether the weights of the layer that it stands at can take it.
        around: whether it stands at a part of the model that may end in a layer, not at a layer.
        given: what it is called with besides what it changes, if that is made elsewhere.
        through: what x is multiplied with before it is given to a branch beside a layer.
        others: further layers that it stands in front of.
        buffers: values that the pass gave them; those of the others hang on the constructor alone.
        reads: what it reads of the model in the pass's words, such as `blocks[3].attn`.
    """

    pass_name: str
    clause: int
    path: str
    unit: str
    module: nn.Module
    site: Seat
    owners: tuple[str, ...]
    key: str
    folds: bool = False
    around: bool = False
    given: tuple[Value, ...] = ()
    through: Value | None = None
    others: list[Seat] = field(default_factory=list)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    reads: tuple[str, ...] = ()


@dataclass
class Editor(Told):
    """The tree verbs: what site verbs are made of.

    Attributes:
        root: the tree of units, changed in place.
        insertions: what passes put in, in order.
        edited: ids of units whose template is their own at the moment.
        warnings: what is odd but not wrong.
        moved: where a place of the original model is now.
        removed: paths of modules and tensors of the original model that are gone, by which clause.
        fed: paths of layers that a clause gives another input.
        ended: sums whose branch is gone, by which clause.
        folds: branches that went into weights, at lowering.
        lowered: what became of each inserted module, at lowering.
        stacks: what passes put in at one place, in the order of the dataflow.
        waived: by clause and claim where the claim is not made, and why.
        helpers: paths of modules without state that inserted ones are given values by.
        narrowed: by name of a tensor of the original model what became of its rows or columns.
        gathered: such tensors on meta, each with the one that had all of them.
        gone: how many parameters there were in what was taken out.
        copied: tensors of copied modules, each with the one that it starts as.
        later: what is done once all clauses are through, in order.
        again: by call of a layer where it is called on something else besides.
        stops: paths of units in which a clause reads a value without gradient.
        frozen: values that clauses read, in front of which nothing may be trained.
        origins: by clause what its initial values are made of.
        appended: by entry of the model what it is to yield besides.
        by_loss: paths of modules that only a loss of their pass trains.
        stitches: the paths through several models that a clause asks for.
    """

    root: nn.Module
    insertions: list[Insertion] = field(default_factory=list)
    edited: set[int] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    moved: dict[Place, Place] = field(default_factory=dict)
    removed: dict[str, ClauseRef] = field(default_factory=dict)
    fed: dict[str, ClauseRef] = field(default_factory=dict)
    ended: dict[Place, ClauseRef] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)
    lowered: list[Lowered] = field(default_factory=list)
    stacks: dict[Place, list[Insertion]] = field(default_factory=dict)
    waived: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    helpers: list[str] = field(default_factory=list)
    copied: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, repr=False)
    narrowed: dict[str, list[Narrowing]] = field(default_factory=dict, repr=False)
    gathered: list[Gathered] = field(default_factory=list, repr=False)
    gone: int = 0
    later: list[Callable[[], None]] = field(default_factory=list, repr=False)
    again: dict[Place, list[Place]] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    frozen: list[tuple[Place, ClauseRef]] = field(default_factory=list)
    origins: dict[int, OwnLayers] = field(default_factory=dict, repr=False)
    appended: dict[str, list[Value]] = field(default_factory=dict)
    by_loss: list[str] = field(default_factory=list)
    stitches: Stitches | None = None
    _held: Counter[int] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "edited": set(), "_held": None}  # ids mean nothing elsewhere

    def on(self, root: nn.Module) -> Editor:
        """An editor of a copy of the tree, before anything is done to the copy."""
        new = {id(i): replace(i, module=root.get_submodule(i.path)) for i in self.insertions}
        known = list(self.warnings), dict(self.moved), dict(self.removed)
        stacks = {k: [new[id(i)] for i in v if id(i) in new] for k, v in self.stacks.items()}
        return Editor(
            root,
            list(new.values()),
            set(),
            *known,
            stacks=stacks,
            waived=self.waived,
            helpers=list(self.helpers),
            again={k: list(v) for k, v in self.again.items()},
            stitches=self.stitches,
            narrowed={k: list(v) for k, v in self.narrowed.items()},
            origins=dict(self.origins),
        )

    def unit(self, path: str) -> Unit:
        """The unit at `path`."""
        unit = self.root.get_submodule(path)
        assert isinstance(unit, Unit)
        return unit

    def own(self, path: str) -> Unit:
        """The unit at `path`, with a template that no other unit uses."""
        unit = self.unit(path)
        if id(unit) not in self.edited:
            template = unit.template
            assert template is not None
            if template.training is not None:
                raise RewriteError(
                    "VR404", f"'{path}' runs another program in training and cannot be rewritten"
                )
            unit.__dict__["template"] = template.clone()
            self.edited.add(id(unit))
        return unit

    def graph(self, path: str) -> fx.Graph:
        """The graph of the unit at `path`, to be edited."""
        template = self.own(path).template
        assert isinstance(template, Template)
        return template.graph

    def node(self, place: Place) -> fx.Node:
        """The node at a place, in a graph that may be edited."""
        place = self.where(place)
        graph = self.graph(place.unit)
        node: fx.Node = next(n for n in graph.nodes if n.name == place.node)
        return node

    def where(self, place: Place) -> Place:
        """Where a place of the original model is now."""
        while place in self.moved:
            place = self.moved[place]
        return place

    def passed(self, gone: Place, kept: Place) -> None:
        """What was made at `gone` of what is at `kept` is made no more: `kept` stands for it.

        What was made of it in turn, further on, stays where both are found.
        """
        further = self.moved.get(gone)
        if self.moved.get(kept) == gone:
            del self.moved[kept]
        if further is None:
            self.moved[gone] = kept
        else:
            self.moved.setdefault(kept, further)

    def calls(self, known: Iterable[Place]) -> list[Place]:
        """Where calls of a layer of the original model are now, and those that joined them."""
        found = [self.where(call) for call in known]
        return [*found, *(place for call in found for place in self.again.get(call, ()))]

    def adopt(
        self, unit: str, owner: str, name: str, module: nn.Module, like: torch.Tensor | None
    ) -> tuple[str, str]:
        """Makes `module` a child of the module at `owner`, which lies in the unit at `unit`.

        A new one gets its owner's mode, and dtype and device of `like`; a copy of what is in the
        model (`like` None) fits as it is.

        Returns:
            Its path relative to the unit, and its full path.
        """
        parent = self.root.get_submodule(owner)
        stem, number = name, 2
        while name in parent._modules or name in parent._parameters or name in parent._buffers:
            name, number = f"{stem}{number}", number + 1
        if like is not None:
            fit(module, parent, like)
        parent.add_module(name, module)
        self.counted(module, 1)
        path = f"{owner}.{name}" if owner else name
        return relative(path, unit), path

    def holders(self, module: nn.Module) -> int:
        """How many modules a module is a child of."""
        if self._held is None:
            held = (id(c) for m in walk.modules(self.root) for c in m._modules.values())
            self._held = Counter(held)
        return self._held[id(module)]

    def counted(self, module: nn.Module, more: int) -> None:
        """Keeps `holders` true when a module is put in (1) or taken out (-1)."""
        if self._held is not None and not module._modules:
            self._held[id(module)] += more
        else:
            self.rearranged()

    def take_out(self, path: str, clause: ClauseRef) -> None:
        """Takes a module of the model out of the tree, for a clause."""
        owner, _, name = path.rpartition(".")
        module = self.root.get_submodule(owner)._modules.pop(name)
        self.gone += sum(p.numel() for p in module.parameters()) if module is not None else 0
        self.removed[path] = clause
        self.rearranged()

    def take_out_tensor(self, name: str, clause: ClauseRef) -> None:
        """Takes a parameter or buffer of the model out of the tree, for a clause."""
        owner, _, last = name.rpartition(".")
        module = self.root.get_submodule(owner)
        if (parameter := module._parameters.get(last)) is not None:
            self.gone += parameter.numel()
        delattr(module, last)
        self.removed[name] = clause

    def without_helper(self, path: str) -> None:
        """Takes a helper that nothing calls any more out of the tree."""
        owner, _, name = path.rpartition(".")
        del self.root.get_submodule(owner)._modules[name]
        self.helpers.remove(path)
        self.rearranged()

    def taken(self, path: str) -> ClauseRef | None:
        """The clause that took out a module, or one that it lies in, if one did."""
        above = accumulate(path.split("."), "{}.{}".format)
        return next((self.removed[p] for p in above if p in self.removed), None)

    def left_out(self, names: Iterable[str], clause: ClauseRef) -> None:
        """Warns of the tensors of the base, out of `names`, that the tree has no more."""
        gone = sorted({*names} - {*self.root.state_dict()})
        paths = [p for p, c in self.removed.items() if c.number == clause.number]
        found = [f"{p}.*" for p in paths if any(n.startswith(f"{p}.") for n in gone)]
        found += [p for p in paths if p in gone]
        if found:
            place = f"{clause.place}: " if clause.place else ""
            self.warnings.append(
                f"{place}{plural(len(gone), 'tensor')} of the base left out: {', '.join(found)}"
            )

    def rearranged(self) -> None:
        """Has `holders` look again: modules of the tree stand elsewhere or are gone."""
        self._held = None

    def clone(self, path: str) -> nn.Module:
        """A copy of the module at `path` that runs the same program on parameters of its own."""

        def own(parameter: nn.Parameter) -> nn.Parameter:
            new = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            self.copied.append((new, parameter))
            return new

        def kept(buffer: torch.Tensor) -> torch.Tensor:
            new = buffer.clone()
            self.copied.append((new, buffer))
            return new

        return duplicate(self.root.get_submodule(path), own, kept)

    def call(
        self,
        unit: str,
        target: str,
        args: Iterable[fx.Node | None],
        *,
        origin: str,
        hints: tuple[str, ...],
    ) -> tuple[fx.Node, ...]:
        """Calls a child of a unit right after its last argument is known.

        Args:
            unit: path of the unit.
            target: the child's path in it.
            args: nodes of the unit's graph, None for what is not there.
            origin: the comment above the call.
            hints: variable names of the results; more than one for a tuple.
        """
        graph, args = self.graph(unit), tuple(args)
        with after(graph, [node for node in args if node is not None]):
            node = graph.call_module(target, args)
            noted(node, {ORIGIN: origin})
            changes = changed_by(self.unit(unit).get_submodule(target))
            if len(hints) == 1:
                results: tuple[fx.Node, ...] = (node,)
            else:
                ARITY.put(node, len(hints))
                items = range(len(hints))
                results = tuple(graph.call_function(operator.getitem, (node, i)) for i in items)
        for i, (result, hint) in enumerate(zip(results, hints, strict=True)):
            changed = changes[i] if i < len(changes) else None
            source = None if changed is None else args[changed]
            value = None if source is None else VALUE.get(source)
            HINT.put(result, hint)
            if value is not None:
                VALUE.put(result, value)
        return results

    def clean(self) -> None:
        """Drops dead code, checks that the rest is sound, and lets equal units share again."""
        known: dict[Hashable, Template] = {}
        for path, unit in units(self.root):
            if id(unit) not in self.edited or unit.template is None:
                continue
            unit.template.clean()
            for graph in unit.template.graphs:
                lint(graph, unit, path)
            # Places are node names, so what is shared has the same names too.
            names = tuple(n.name for n in unit.template.graph.nodes)
            # And values are noted in nodes: what is of other widths has nodes of its own.
            widths = tuple(p.shape for p in unit.parameters()) if self.narrowed else ()
            key = unit.template.signature(), names, widths
            unit.__dict__["template"] = known.setdefault(key, unit.template)
        self.edited.clear()


def relative(path: str, unit: str) -> str:
    """A module path as seen from a unit above it."""
    return path[len(unit) + 1 :] if unit else path


def join(*parts: str) -> str:
    """A module path from its parts, which may be empty."""
    return ".".join(p for p in parts if p)


def after(graph: fx.Graph, nodes: Iterable[fx.Node]) -> Any:
    """Inserts behind the last of `nodes`, and behind all inputs of the graph."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    return graph.inserting_before(max((*inputs, *nodes), key=order.__getitem__).next)


def units(root: nn.Module) -> Iterator[tuple[str, Unit]]:
    """All units of a tree with their paths."""
    for path, module in walk.named(root):
        if isinstance(module, Unit):
            yield path, module
