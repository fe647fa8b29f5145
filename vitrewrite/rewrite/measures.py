"""What a rewritten model costs: parameters, MACs, tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.measure import BrokenError, ParameterCounts, Propagation, count_parameters
from ..errors import RewriteError
from ..tracing import tree
from ..tracing.about import about, tell
from ..tracing.unit import duplicate, on_meta
from .conflicts import needed
from .engine import Rewrite
from .lowering import lower_tree
from .misfits import refuse_misfit
from .redundant import tell_redundant
from .step import Step
from .stitches import StitchSpace, space_of


@dataclass(frozen=True)
class Measures:
    """What a rewritten model costs; `macs` per image.

    Attributes:
        run: of the rewritten model on meta; `run_lowered` of what it lowers to.
        editor_lowered: of the tree that was lowered, on meta.
        tokens: entering each block, then leaving the last one.
        stitches: the ways through several models, if the spec stitches them.
    """

    params: ParameterCounts
    run: Propagation = field(repr=False, compare=False)
    run_lowered: Propagation = field(repr=False, compare=False)
    editor_lowered: Editor = field(repr=False, compare=False)
    macs_base: int
    tokens: tuple[int | None, ...]
    stitches: StitchSpace | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the rewritten model."""
        return self.run.macs

    @property
    def macs_lowered(self) -> int:
        """Those of what it lowers to."""
        return self.run_lowered.macs

    def __str__(self) -> str:
        from .text import measure_lines

        return "\n".join(measure_lines(self))

    def to_json(self) -> dict[str, Any]:
        """The keys that `report.json` promises."""
        return {
            "params": {
                "total": self.params.total,
                "trainable": self.params.trainable,
                "trainable_without_head": self.params.trainable_without_head,
            },
            "macs": self.macs,
            "macs_lowered": self.macs_lowered,
            "macs_base": self.macs_base,
            "flops": 2 * self.macs,
            "tokens": list(self.tokens),
            **({} if self.stitches is None else {"stitches": self.stitches.to_json()}),
        }


def measure(rewritten: Rewrite, base: Propagation, *, lowered: bool = False) -> Measures:
    """Counts of a rewritten tree, and of what it lowers to unless it is `lowered` already."""
    root = rewritten.root
    meta = on_meta(root)
    run = _propagated(meta, rewritten, base)
    _expect_maps(rewritten, run, base)
    _tell_classes(rewritten, run)
    cheapest, editor, twin = run, rewritten.editor, meta
    if rewritten.editor.insertions and not lowered:
        twin = duplicate(meta, lambda p: p, lambda b: b)
        editor = lower_tree(twin, rewritten.editor, rewritten.methods)
        tell_redundant(rewritten, editor.folds)
        cheapest = Propagation(twin, rewritten.example, base)
    blocks = rewritten.anatomy.blocks
    ends = [rewritten.editor.where(b.output) for b in blocks[-1:]]
    places = [b.input for b in blocks] + ends
    tokens = tuple(_tokens(run.shape(p), rewritten.anatomy.stream.layout) for p in places)
    params = count_parameters(root, rewritten.head)
    space = space_of(meta, rewritten.example, run, twin, cheapest)
    return Measures(params, run, cheapest, editor, base.macs, tokens, space)


def _expect_maps(rewritten: Rewrite, run: Propagation, base: Propagation) -> None:
    """Raises VR410 if fewer tokens make maps of the old size, with their channels torn apart."""
    steps, grid = rewritten.stream.in_turn, rewritten.stream.start.grid
    if not steps or grid is None:
        return
    for before, now in zip(tree.leaves(base.outputs), tree.leaves(run.outputs), strict=False):
        old, new = _shape(before), _shape(now)
        maps = len(old) == len(new) == 4 and all(
            grid in (shape[1:3], shape[2:4]) for shape in (old, new)
        )
        if maps and old != new:
            raise steps[0].clause.error(
                "VR410",
                f"{steps[0].clause.pass_name} changes the tokens, and the model yields them on "
                f"their grid, {grid[0]}x{grid[1]}",
                suggestion="give them back behind it: insert unmerge() after blocks[-1]",
            )


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _tell_classes(rewritten: Rewrite, run: Propagation) -> None:
    """Has the model say how many classes a head yields that a clause replaced."""
    for site in rewritten.anatomy.head:
        replaced = site.weight.rpartition(".")[0] in rewritten.editor.removed
        shape = run.shape(rewritten.editor.where(site.call)) if replaced else None
        if shape is not None and "num_classes" in (known := about(rewritten.root).helpers):
            classes = shape[1] if len(shape) == 4 else shape[-1]  # of maps, or of vectors
            tell(rewritten.root, helpers={**known, "num_classes": classes})


def _propagated(meta: nn.Module, rewritten: Rewrite, base: Propagation) -> Propagation:
    """A run of the rewritten model on meta.

    Raises:
        RewriteError: VR410 if a part of the model cannot take tokens that a clause changed, VR405
            if no clause changed any.
    """
    try:
        return Propagation(meta, rewritten.example, base)
    except BrokenError as error:
        told = needed(error, rewritten.stream.start)
        refuse_misfit(rewritten.editor, error, only_told=True)
        back = {r.clause.number for r in rewritten.stream.regroupings if r.size is None}
        changes = [c for _, _, c in rewritten.stream.changes if c.number not in back]
        if changes:
            raise _conflict(rewritten, changes, error, told) from error
        refuse_misfit(rewritten.editor, error)
        cause = _nearest(rewritten, error.path)
        message = f"the rewritten model does not run: {told}"
        span = cause.clause.span if cause else None
        raise RewriteError("VR405", message, span=span) from error


def _conflict(
    rewritten: Rewrite, changes: list[ClauseRef], error: BrokenError, told: str
) -> RewriteError:
    """VR410: what a clause changed, a part of the model needs as it was."""
    *others, cause = {clause.origin: clause for clause in changes}.values()
    sites = [site for step in rewritten.steps if step.clause == cause for site in step.sites]
    where = f" at '{sites[0]}'" if len(sites) == 1 else ""
    message = f"{cause.pass_name}{where} changes the tokens, and '{error.path}' needs them as they"
    notes = [told, *(f"tokens are changed by: {clause.origin}" for clause in others)]
    return cause.error("VR410", f"{message} were", notes=notes)


def _nearest(rewritten: Rewrite, path: str) -> Step | None:
    """The step that put something in nearest to a unit."""

    def shared(other: str) -> int:
        pairs = zip(other.split("."), path.split("."), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    inserted = sorted(rewritten.editor.insertions, key=lambda i: shared(i.path))
    steps = {step.clause.number: step for step in rewritten.steps}
    return steps.get(inserted[-1].clause) if inserted else None


def _tokens(shape: Sequence[int] | None, layout: str) -> int | None:
    """Positions of the stream: N of (B, N, C), H*W of an image."""
    if shape is None or len(shape) < 3:
        return None
    if len(shape) == 3:
        return shape[1]
    return shape[2] * shape[3] if layout == "nchw" else shape[1] * shape[2]
