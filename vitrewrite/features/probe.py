"""Runs a flat program on meta, to see what each step reads and whether it draws anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..tracing import walk
from ..tracing.unit import on_meta
from .halves import run_step

_COUNTS = (2, 3)
"""Images of the two runs: what has as many rows as there are images is told by both."""


@dataclass
class Probe:
    """What is known of the values of a program.

    Attributes:
        shapes: of values that are tensors with a row for each image, of one image.
        dtypes: of all values that are tensors, in float32.
        reads: of each node, those whose numbers it reads; of others it reads sizes at most.
        random: nodes that draw something in training.
    """

    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[fx.Node, torch.dtype] = field(default_factory=dict)
    reads: dict[fx.Node, set[fx.Node]] = field(default_factory=dict)
    random: set[fx.Node] = field(default_factory=set)

    @classmethod
    def of(cls, graph: fx.Graph, root: nn.Module, example: Sequence[torch.Tensor]) -> Probe:
        """Runs a program in training with two images, and in evaluation with three.

        Args:
            graph: flat, over the modules of a tree.
            root: the tree.
            example: what it is called with.
        """
        found, meta = cls(), on_meta(root)
        shapes = []
        try:
            for count in _COUNTS:
                training_mode(meta) if count == _COUNTS[0] else meta.eval()
                shapes.append(found._run(graph, meta, _images(example, count)))
        finally:
            meta.eval()
        two, three = shapes
        for node, shape in two.items():
            other = three.get(node, ())
            if shape[:1] == (2,) and other[:1] == (3,) and shape[1:] == other[1:]:
                found.shapes[node] = shape[1:]
        return found

    def _run(
        self, graph: fx.Graph, root: nn.Module, inputs: Sequence[torch.Tensor]
    ) -> dict[fx.Node, tuple[int, ...]]:
        values: dict[fx.Node, Any] = {}
        shapes: dict[fx.Node, tuple[int, ...]] = {}
        given = iter(inputs)
        with torch.no_grad(), torch.device("meta"):
            for node in graph.nodes:
                if node.op == "output":
                    break
                if node.op == "placeholder":
                    values[node] = next(given)
                else:
                    with _Watch() as watch:
                        values[node] = run_step(node, root, values)
                    self._note(node, values, watch)
                value = values[node]
                if isinstance(value, torch.Tensor):
                    shapes[node], self.dtypes[node] = tuple(value.shape), value.dtype
        return shapes

    def _note(self, node: fx.Node, values: dict[fx.Node, Any], watch: _Watch) -> None:
        read = {n for n in node.all_input_nodes if _is_read(values[n], values[node], watch.read)}
        self.reads[node] = self.reads.get(node, set()) | read
        if watch.random:
            self.random.add(node)


def training_mode(root: nn.Module, put: Collection[int] = ()) -> nn.Module:
    """Training mode, except for batch norms of the base: their statistics are in no delta.

    Args:
        root: a tree.
        put: ids of modules that were put in.
    """
    root.train()
    for each in walk.modules(root):
        if isinstance(each, _BatchNorm) and id(each) not in put:
            each.eval()
    return root


def macs_of(
    steps: Sequence[fx.Node], root: nn.Module, graph: fx.Graph, example: Sequence[torch.Tensor]
) -> int:
    """Multiply-accumulates of some steps of a program, for one image.

    Args:
        steps: in order; what they read of others is among them.
        root: the tree.
        graph: the program.
        example: what it is called with.
    """
    meta, given = on_meta(root), iter(_images(example, 1))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        for node in steps:
            is_input = node.op == "placeholder"
            values[node] = next(given) if is_input else run_step(node, meta, values)
    return int(counter.get_total_flops() // 2)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What operations read, by id, and whether one of them draws."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[int] = set()
        self.random = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self.read |= {id(each) for each in leaves if isinstance(each, torch.Tensor)}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random |= _rate(func, args, kwargs) != 0
        return func(*args, **kwargs)


def _rate(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The rate of dropout that an operation has as an argument; 1 for one that has none."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[i] if i < len(args) else argument.default_value
            return kwargs.get(argument.name, given)
    return 1


def _is_read(value: Any, made: Any, read: set[int]) -> bool:
    """Whether a value, or one of several, is an operand; what is only handed on is, too."""
    leaves = torch.utils._pytree.tree_leaves(value)
    tensors = {id(each) for each in leaves if isinstance(each, torch.Tensor)}
    passed = {id(each) for each in torch.utils._pytree.tree_leaves(made)}
    return bool(tensors & (read | passed))


def _images(example: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """So many on meta, as the example is."""
    floats = (v.float() if v.is_floating_point() else v for v in example)
    return [torch.empty((count, *v.shape[1:]), dtype=v.dtype, device="meta") for v in floats]
