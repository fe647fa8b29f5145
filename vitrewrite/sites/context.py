"""What a clause is carried out in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..anatomy.sites import Anatomy
from ..editing.clause import ClauseRef
from ..editing.editor import Editor, Insertion
from ..editing.samples import Batches
from ..editing.stream import Stream
from ..editing.value import Value
from ..sensitivity.profile import Profile
from ..text import Told


@dataclass(frozen=True, eq=False)
class Context(Told):
    """What a clause is carried out in.

    Attributes:
        scope: paths of the units that hold the sites of the clause.
        roles: of the sites of the clause, in order.
        folds: whether what the pass puts beside a layer is linear, so that the weights can take it.
        shared: values that the sites of the clause have in common.
        insertion: at lowering, the module that is lowered.
        batches: how samples lie in the values of the model.
        checked: inserted classes that are known to be as they should.
        profile: what was measured of the model, if anything was.
        again: whether the model was made before, and gets the values that it had then.
        bases: the anatomy of each model, where the spec stitches several.
    """

    editor: Editor
    clause: ClauseRef
    anatomy: Anatomy
    stream: Stream
    scope: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    folds: bool = False
    shared: dict[str, Value] = field(default_factory=dict)
    insertion: Insertion | None = None
    batches: Batches | None = None
    checked: set[str] = field(default_factory=set)
    profile: Profile | None = None
    again: bool = False
    bases: Mapping[str, Anatomy] = field(default_factory=dict)


@dataclass(frozen=True)
class Drops:
    """What is dropped at random in training, of a branch beside a layer.

    Attributes:
        dropout: probability of each number of its input; sites of one clause that read the same
            input share the draw.
        path: probability of what it yields, for each sample of the batch as a whole. The branch is
            called with a third argument: factors to multiply with, one per sample.
    """

    dropout: float = 0.0
    path: float = 0.0
