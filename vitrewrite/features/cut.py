"""The cut through a program: what hangs on the images alone, what hangs on training, and between.

Frozen is a value that no tensor is part of that training changes, and that is not drawn. Values
that the trained part reads of the frozen one cross. Of some it reads the size alone; they are not
kept, and not computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.slices import ordered_ahead
from ..emission.captured import inlined
from ..tracing.unit import Unit
from .halves import Half, run_step, split_halves
from .names import ValueNames
from .probe import Probe, macs_of


class UnsteadyError(Exception):
    """Weights that are frozen read a value that training draws.

    Attributes:
        path: of what draws it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class Crossing:
    """A value that the trained part reads of the frozen one.

    Attributes:
        name: where it is.
        shape: of one image.
        dtype: in a model that computes in float32.
        digest: what identifies it, weights left out.
        read: whether its numbers are read, or its size alone.
        is_input: whether it is what the model is given.
    """

    node: fx.Node = field(repr=False)
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: str
    read: bool
    is_input: bool

    @property
    def kept(self) -> bool:
        """Whether it is on disk."""
        return self.read and not self.is_input

    def bytes(self, width: int | None = None) -> int:
        """What it takes for one image; with `width` fractions have so many bytes."""
        size = width if width and self.dtype.is_floating_point else self.dtype.itemsize
        return size * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class FeatureCut:
    """The two parts of a program.

    Attributes:
        crossing: what crosses, in the order of the program.
        frozen: the steps behind what is kept.
        trained: those behind the output, without what crosses.
        result: the arguments of the output.
    """

    graph: fx.Graph = field(repr=False)
    example: tuple[torch.Tensor, ...] = field(repr=False)
    crossing: tuple[Crossing, ...]
    frozen: tuple[fx.Node, ...] = field(repr=False)
    trained: tuple[fx.Node, ...] = field(repr=False)
    result: Any = field(repr=False)

    @classmethod
    def of(
        cls,
        root: Unit,
        example: Sequence[torch.Tensor],
        trained: Collection[str],
        changed: Collection[str] = (),
    ) -> FeatureCut:
        """Cuts the program of a tree.

        Args:
            root: the tree; its weights do not count.
            example: what it is called with.
            trained: names of tensors that training changes.
            changed: paths of modules that training changes in another way.

        Raises:
            UnsteadyError: if training draws what weights read that are frozen.
        """
        graph, places = inlined(root)
        split_halves(graph, root)
        return _Cutter(graph, places, root, tuple(example), trained, changed).cut()

    @property
    def kept(self) -> tuple[Crossing, ...]:
        """What is on disk."""
        return tuple(each for each in self.crossing if each.kept)

    @property
    def reads_images(self) -> bool:
        """Whether the trained part reads what the model is given."""
        return any(each.is_input and each.read for each in self.crossing)

    def bytes(self, width: int | None = None) -> int:
        """What is kept of one image."""
        return sum(each.bytes(width) for each in self.kept)

    def spared(self, root: nn.Module) -> int:
        """Multiply-accumulates of the frozen part, for one image."""
        return macs_of(self.frozen, root, self.graph, self.example)

    def look(self, root: nn.Module, images: torch.Tensor) -> dict[Crossing, torch.Tensor]:
        """What crosses, of images: the frozen part is run, and what is not read comes with it."""
        steps = ordered_ahead([each.node for each in self.crossing])
        return self._run(root, steps, images, self.crossing)

    def keep(self, root: nn.Module, images: torch.Tensor) -> dict[Crossing, torch.Tensor]:
        """What is kept, of images."""
        return self._run(root, self.frozen, images, self.kept)

    def _run(
        self,
        root: nn.Module,
        steps: Sequence[fx.Node],
        images: torch.Tensor,
        wanted: Sequence[Crossing],
    ) -> dict[Crossing, torch.Tensor]:
        last = {n: step for step in steps for n in step.all_input_nodes}
        named = {each.node: each for each in wanted}
        values: dict[fx.Node, Any] = {}
        found: dict[Crossing, torch.Tensor] = {}
        for node in steps:
            is_input = node.op == "placeholder"
            values[node] = images if is_input else run_step(node, root, values)
            if node in named:
                value = values[node]
                found[named[node]] = value.clone() if _is_changed(node) else value
            for read in node.all_input_nodes:
                if last[read] is node:
                    del values[read]
        return found

    def call(self, root: nn.Module, given: Mapping[Crossing, torch.Tensor]) -> Any:
        """The output of the trained part.

        Args:
            root: the tree, or one like it, in the mode that it is to run in.
            given: what crosses.
        """
        values: dict[fx.Node, Any] = {each.node: value for each, value in given.items()}
        for node in self.trained:
            values[node] = run_step(node, root, values)
        return fx.node.map_arg(self.result, lambda n: values[n])


@dataclass
class _Cutter:
    graph: fx.Graph
    places: dict[fx.Node, Place]
    root: nn.Module
    example: tuple[torch.Tensor, ...]
    trained: Collection[str]
    changed: Collection[str]

    def __post_init__(self) -> None:
        self.probe = Probe.of(self.graph, self.root, self.example)
        names = set(self.trained)
        self.inside = {n[:i] for n in names for i, c in enumerate(n) if c == "."} | names
        self.moved: set[fx.Node] = set()
        self.unsteady: dict[fx.Node, fx.Node] = {}
        self.seen: set[fx.Node] = set()

    def cut(self) -> FeatureCut:
        for node in self.graph.nodes:
            self._judge(node)
        output = self.graph.output_node()
        late, crossing = self._late(output.all_input_nodes)
        readers = {n: late & set(n.users) | ({output} & set(n.users)) for n in crossing}
        names, found = ValueNames(self.root), []
        for node in (n for n in self.graph.nodes if n in crossing):
            read = any(user is output or node in self.probe.reads[user] for user in readers[node])
            found.append(
                Crossing(
                    node,
                    self._name(node),
                    self.probe.shapes[node],
                    self.probe.dtypes[node],
                    names.of(node),
                    read,
                    node.op == "placeholder",
                )
            )
        trained = tuple(n for n in self.graph.nodes if n in late)
        frozen = tuple(ordered_ahead([each.node for each in found if each.kept]))
        return FeatureCut(self.graph, self.example, tuple(found), frozen, trained, output.args[0])

    def _judge(self, node: fx.Node) -> None:
        """Whether training changes a value, draws it, or leaves it as it is."""
        if any(n in self.moved for n in node.all_input_nodes) or self._is_trained(node):
            self.moved.add(node)
            return
        cause = next((self.unsteady[n] for n in node.all_input_nodes if n in self.unsteady), None)
        if cause is not None and node.op != "output" and self._has_weights(node):
            raise UnsteadyError(self._name(cause))
        if cause is None and (node in self.probe.random or self._runs_otherwise(node)):
            cause = node
        if cause is not None:
            self.unsteady[node] = cause
        elif any(n in self.seen for n in self.probe.reads.get(node, ())) or (
            node.op == "placeholder"
        ):
            self.seen.add(node)

    def _is_trained(self, node: fx.Node) -> bool:
        target: Any = node.target
        if isinstance(target, Half):
            return target.method == "finish" and self._changes(target.path)
        return node.op in ("get_attr", "call_module") and self._changes(str(target))

    def _changes(self, path: str) -> bool:
        return path in self.inside or path in self.changed

    def _runs_otherwise(self, node: fx.Node) -> bool:
        """Whether a unit runs another program in training: such ones stay calls."""
        if node.op != "call_module":
            return False
        return isinstance(self.root.get_submodule(str(node.target)), Unit)

    def _has_weights(self, node: fx.Node) -> bool:
        """Whether a step computes with parameters."""
        if node.op == "call_module":
            return any(True for _ in self.root.get_submodule(str(node.target)).parameters())
        return any(n.op == "get_attr" and n.target != "training" for n in node.all_input_nodes)

    def _late(self, wanted: Sequence[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
        """The steps of the trained part, and what crosses into it."""
        late: set[fx.Node] = set()
        crossing: set[fx.Node] = set()
        queue = [*wanted]
        while queue:
            node = queue.pop()
            if node in late or node in crossing:
                continue
            if self._crosses(node):
                crossing.add(node)
            else:
                late.add(node)
                queue += node.all_input_nodes
        return late, crossing

    def _crosses(self, node: fx.Node) -> bool:
        """Whether a value is one of the frozen part, with a row for each image."""
        if node in self.moved or node in self.unsteady or node not in self.seen:
            return False
        if node.op == "placeholder":
            return True
        detached = node.op == "call_method" and node.target == "detach"
        return node in self.probe.shapes and not detached

    def _name(self, node: fx.Node) -> str:
        place = self.places.get(node)
        if isinstance(node.target, Half):
            return node.target.path
        if node.op == "call_module":
            return str(node.target)
        if place is None:
            source = next(iter(node.all_input_nodes), None)
            return node.name if source is None else self._name(source)
        return f"{place.unit}.{place.node}" if place.unit else place.node


_IN_PLACE: tuple[Callable[..., Any], ...] = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem,
)  # fmt: skip


def _is_changed(node: fx.Node) -> bool:
    """Whether a later step may change a value in place."""
    for user in node.users:
        method = str(user.target) if user.op == "call_method" else ""
        if user.target in _IN_PLACE or (method.endswith("_") and not method.endswith("__")):
            return True
    return False
