"""The models of a tree, each with what is known of it: one, or several that a spec stitches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..anatomy.bases import Anchors
from ..anatomy.sites import Anatomy
from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.stream import Stream
from ..editing.training import Training
from ..errors import RewriteError
from ..language.model import Clause, Spec
from ..text import Told


@dataclass
class BaseState(Told):
    """A model of the tree.

    Attributes:
        name: the path of its root; "" where the whole tree is the model.
        anatomy: its sites, as they were before.
        stream: what is known of its tokens, as passes change them.
        training: where it changes them in training.
    """

    name: str
    anatomy: Anatomy
    stream: Stream
    training: Training

    @classmethod
    def of(
        cls, root: nn.Module, anatomy: Anatomy, example: tuple[torch.Tensor, ...], name: str = ""
    ) -> BaseState:
        """A model as it was captured."""
        return cls(name, anatomy, Stream.of(anatomy, root), Training(root, anatomy, example))

    def holds(self, site: Any) -> bool:
        """Whether a site is one of the model; one that is of no model counts as the first's."""
        return not self.name or str(site.role).startswith((f"{self.name}.", f"{self.name} "))


def bases_of(
    root: nn.Module, anatomy: Anatomy, example: tuple[torch.Tensor, ...]
) -> tuple[BaseState, ...]:
    """The models of a tree."""
    if not anatomy.bases:
        return (BaseState.of(root, anatomy, example),)
    return tuple(BaseState.of(root, each, example, name) for name, each in anatomy.bases.items())


def anchors(clause: Clause) -> tuple[Anchors, ...]:
    """What a `stitch` clause acts on: its models, as one site."""
    return (Anchors("the bases", tuple(clause.bases)),) if clause.verb == "stitch" else ()


def refuse_drops(spec: Spec) -> None:
    """Raises VR513 for what takes blocks out of models that are stitched."""
    dropped = next((c for c in spec.clauses if c.verb == "drop"), None)
    if spec.bases and dropped is not None:
        raise RewriteError(
            "VR513",
            f"'{dropped}' in a spec that stitches models: blocks are left out by paths",
            span=dropped.span,
            suggestion="build the models with fewer blocks, such as depth=10",
        )


def refuse_tokens(bases: Sequence[BaseState], editor: Editor) -> None:
    """Refuses what changes tokens where a path would leave a part of it behind.

    Prompts in front of a first model go over as tokens; those of an end, or of several layers,
    would be there twice or not at all. Sizes of merged tokens do not go over.

    Raises:
        RewriteError: VR509, which names the clause.
    """
    if editor.stitches is None:
        return
    left = {each.front for each in editor.stitches.wanted if each.layer is not None}
    entered = {each.end for each in editor.stitches.wanted if each.layer is not None}
    for base in bases:
        joined = base.stream.cause(2 * len(base.anatomy.blocks), "prefix")
        if joined is not None and (base.name in entered or _often(joined, base.name, editor)):
            raise _lost(joined, base.name, "its prompts would be there twice, or not at all")
        for made in base.stream.in_turn if base.name in left else ():
            raise _lost(made.clause, base.name, "sizes of tokens do not go over to the next model")


def _often(clause: ClauseRef, base: str, editor: Editor) -> bool:
    """Whether a clause put more than one module into a base."""
    own = (i for i in editor.insertions if i.clause == clause.number)
    return sum(i.path.startswith(f"{base}.") for i in own) > 1


def _lost(clause: ClauseRef, base: str, why: str) -> RewriteError:
    return clause.error(
        "VR509",
        f"{clause.pass_name} changes the tokens of '{base}', which is stitched: {why}",
        suggestion="leave it out, or do it to one stitch: 'lower --stitch N' takes it out",
    )
