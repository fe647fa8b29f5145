"""Where a model changes its tokens in training only, as patch dropout does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..anatomy.sites import Anatomy, Place
from ..tracing.modes import by_mode
from ..tracing.unit import Unit, duplicate, on_meta, run_graph
from .editor import join, units
from .measure import BrokenError, Propagation

_BATCH = 2  # one image is too few for batch norm in training


@dataclass(frozen=True)
class Change:
    """A unit that yields other tokens in training.

    Attributes:
        unit: its path.
        tokens: how many there are otherwise, and in training.
    """

    unit: str
    tokens: tuple[int, int]


class Training:
    """The lengths of the residual stream in training.

    Args:
        root: the model as it was captured.
        anatomy: its sites.
        example: its input, on meta.
    """

    def __init__(
        self, root: nn.Module, anatomy: Anatomy, example: tuple[torch.Tensor, ...]
    ) -> None:
        self.anatomy = anatomy
        self.differs = any(_differs(unit) for _, unit in units(root))
        shapes = [list(v.shape) for v in example]
        batches = [[_BATCH, *s[1:]] if s[:1] == [1] else s for s in shapes]
        pairs = zip(example, batches, strict=True)
        self.example = tuple(torch.empty(s, dtype=v.dtype, device="meta") for v, s in pairs)
        # A copy with graphs of its own: passes change those of the root.
        self.root = duplicate(on_meta(root), lambda p: p, lambda b: b) if self.differs else root

    @cached_property
    def _runs(self) -> tuple[Propagation, Propagation] | None:
        """Of both modes, or None if the model does not run in training here."""
        if not self.differs:
            return None
        try:
            plain = Propagation(self.root.eval(), self.example)
            return plain, Propagation(self.root.train(), self.example)
        except BrokenError:
            return None
        finally:
            self.root.eval()

    def change(self, position: int) -> Change | None:
        """What makes the stream at a position another one in training.

        Args:
            position: 2 * i is the input of block i, 2 * i + 1 its middle.
        """
        if self._runs is None:
            return None
        block = self.anatomy.blocks[min(position // 2, len(self.anatomy.blocks) - 1)]
        place = block.input if position // 2 == block.index else block.output
        place = block.mid if position % 2 and block.mid is not None else place
        found = [run.shape(place) for run in self._runs]
        if found[0] is None or found[1] is None or found[0][1:] == found[1][1:]:
            return None
        counts = [_tokens(shape, self.anatomy.stream.layout) for shape in found if shape]
        return Change(self._culprit(), (counts[0], counts[1]))

    def _culprit(self) -> str:
        """The lowest unit in which lengths begin to differ."""
        assert self._runs is not None
        path = ""
        while True:
            unit = self.root.get_submodule(path)
            if not isinstance(unit, Unit) or unit.template is None or unit.template.training:
                return path
            nodes = (n for n in unit.template.graph.nodes if self._at(path, n.name))
            first = next(nodes, None)
            if first is None or first.op != "call_module":
                return path
            path = join(path, str(first.target))

    def _at(self, unit: str, node: str) -> bool:
        """Whether a value has another length in training."""
        assert self._runs is not None
        plain, other = (run.shape(Place(unit, node)) for run in self._runs)
        return plain is not None and other is not None and plain[1:] != other[1:]

    def keeps(self, change: Change, count: int) -> bool:
        """Whether a unit that drops tokens in training leaves the first `count` where they are."""
        unit = self.root.get_submodule(change.unit)
        program = unit.template.training if isinstance(unit, Unit) and unit.template else None
        if program is None or any(True for _ in (*unit.parameters(), *unit.buffers())):
            return False
        x = torch.arange(2.0 * change.tokens[0], device="cpu").view(2, -1, 1)
        unit.train()
        try:
            with torch.random.fork_rng(devices=()), torch.device("cpu"), torch.no_grad():
                found = [run_graph(program, unit, (x,)) for _ in range(3)]
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        finally:
            unit.eval()
        return all(
            isinstance(y, torch.Tensor) and torch.equal(y[:, :count], x[:, :count]) for y in found
        )


def _differs(unit: Unit) -> bool:
    template = unit.template
    if template is None:
        return False
    return template.training is not None or any(n.target is by_mode for n in template.graph.nodes)


def _tokens(shape: tuple[int, ...], layout: str) -> int:
    if len(shape) == 4:
        return shape[1] * shape[2] if layout == "nhwc" else shape[2] * shape[3]
    return shape[1] if len(shape) > 1 else 0
