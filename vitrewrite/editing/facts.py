"""What passes read of the tokens: declared, guarded at run time, and true in training too.

A pass takes the grid as two Python numbers, and the number of tokens and of prefix tokens as one.
They are those of the size that the model was captured with, outside of training. So a model that
takes other sizes gets a guard, which names the pass; and where training changes the tokens (patch
dropout), they are no facts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx

from ..anatomy.sites import Anatomy, Place
from ..anatomy.sites import StreamFacts as Around
from ..errors import RewriteError
from ..tracing.guards import check_grid, check_input
from ..tracing.nodes import is_size
from ..tracing.notes import GUARD, HINT, ORIGIN, VALUE, noted
from .training import Training

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..catalog.declare import Pass
    from .clause import ClauseRef
    from .editor import Editor
    from .stream import Tokens
    from .value import Value


@dataclass(eq=False)
class Reader:
    """The clause that reads facts at the moment.

    Attributes:
        noted: where clauses went by which fact, of all clauses.
        active: whether the clause is being carried out; at lowering nothing is guarded any more.
    """

    editor: Editor
    anatomy: Anatomy
    clause: ClauseRef
    method: Pass
    training: Training
    noted: list[tuple[int, str, ClauseRef]] = field(default_factory=list)
    active: bool = True

    def declare(self, facts: Iterable[str], attribute: str) -> None:
        """Raises VR415 if the pass does not say that it reads, or writes, one of the facts."""
        known = {*self.method.writes, *(self.method.reads if attribute == "reads" else ())}
        if missing := [fact for fact in facts if fact not in known]:
            raise self.clause.error(
                "VR415",
                f"{self.clause.pass_name} {attribute} '{missing[0]}' of the tokens undeclared",
                notes=["without it the order of the clauses is a guess"],
                suggestion=f"add '{missing[0]}' to the '{attribute}' of the pass",
            )

    def prefix(self, position: int) -> None:
        """The number of prefix tokens is read at a position."""
        self._note(position, "prefix")
        change = self.training.change(position)
        if change is not None and not self.training.keeps(
            change, self.anatomy.stream.prefix_tokens
        ):
            raise self._lost("the prefix tokens", change)

    def grid(self, position: int) -> None:
        """The grid is read at a position, as two numbers."""
        self._note(position, "grid")
        self.whole(position)
        guard(self.editor, self.anatomy, self.clause)

    def sizes(self, position: int) -> tuple[Place, Place] | None:
        """The grid is read at a position, as two values that follow the size."""
        self._note(position, "grid")
        self.whole(position)
        return grid_size(self.editor, self.anatomy)

    def _note(self, position: int, fact: str) -> None:
        self.declare([fact], "reads")
        self.noted.append((position, fact, self.clause))

    def count(self) -> None:
        """The grid, or how many tokens there are, is read where the stream begins."""
        if self.active:
            self.whole(0)
            guard(self.editor, self.anatomy, self.clause)

    def whole(self, position: int) -> None:
        """Raises VR416 if training changes the tokens up to a position."""
        change = self.training.change(position)
        if change is not None:
            raise self._lost("the grid of patches", change)

    def _lost(self, what: str, change: Any) -> RewriteError:
        before, after = change.tokens
        return self.clause.error(
            "VR416",
            f"{self.clause.pass_name} needs {what}, and '{change.unit or 'the root'}' changes the "
            f"tokens in training: {before} become {after}",
            suggestion="build the model without it, such as patch_drop_rate=0",
        )


class Facts:
    """Facts about the sequence at one point, as a pass reads them; see `Tokens`."""

    def __init__(self, tokens: Tokens, position: int, reader: Reader | None) -> None:
        self._tokens, self._position, self._reader = tokens, position, reader

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class, registers, prompts."""
        if self._reader is not None:
            self._reader.prefix(self._position)
        return self._tokens.prefix

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width in patches, or None if the patches are no full grid."""
        if self._reader is not None and self._tokens.grid is not None:
            self._reader.grid(self._position)
        return self._tokens.grid

    @property
    def size(self) -> Value | None:
        """How many patches each token stands for, or None if each is one."""
        if self._reader is not None:
            self._reader.declare(["size"], "reads")
        return self._tokens.size

    @property
    def joined(self) -> int:
        """How many tokens joined the prefix since `size` was made."""
        return self._tokens.joined

    @property
    def patches(self) -> int | None:
        """Tokens that are no prefix, of the size that the model was captured with.

        For messages: what a pass makes has to fit other sizes too.
        """
        return self._tokens.patches


class WatchedStream(Around):
    """The model's own stream, as a pass sees it."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in ("grid", "tokens") and value is not None:
            super().__getattribute__("__dict__")["reader"].count()
        return value


def watched(stream: Around, reader: Reader) -> WatchedStream:
    """The same facts; reading those that hang on the size is noted."""
    new = object.__new__(WatchedStream)
    new.__dict__.update(vars(stream), reader=reader)
    return new


def grid_size(editor: Editor, anatomy: Anatomy) -> tuple[Place, Place] | None:
    """Where height and width in patches are read while the model runs, if it makes a map."""
    if anatomy.stream.patches is None or anatomy.stream.grid is None:
        return None
    place, (first, second), planned = _measured(anatomy)
    return sides(editor, place, (first, second), planned)


def sides(
    editor: Editor, place: Place, axes: tuple[int, int], planned: tuple[int, ...]
) -> tuple[Place, Place]:
    """Where the height and the width of a map are read while the model runs.

    Args:
        editor: of the model.
        place: of the map.
        axes: along which they lie.
        planned: what they are for the size that the model was captured with.
    """
    node, found = editor.node(place), []
    for axis, length, name in zip(axes, planned, ("height", "width"), strict=True):
        size = _size(node, axis)
        VALUE.put(size, length)
        HINT.put(size, HINT.get(size) or name)
        found.append(Place(editor.where(place).unit, size.name))
    return found[0], found[1]


def is_fixed(editor: Editor) -> bool:
    """Whether the model refuses all sizes but the one that it was captured with."""
    root = editor.unit("")
    assert root.template is not None
    return any(node.target is check_input for node in root.template.graph.nodes)


def guard(editor: Editor, anatomy: Anatomy, clause: ClauseRef) -> None:
    """Makes a model that takes any size refuse those with another grid than a pass is made for."""
    if is_fixed(editor):
        return  # it refuses them itself
    place, axes, planned = _measured(anatomy)
    node = editor.node(place)
    user = clause.pass_name
    known = (n for n in node.graph.nodes if n.target is check_grid)
    if any(n.args[1:] == (planned, user) for n in known):
        return
    sizes = [_size(node, axis) for axis in axes]
    with node.graph.inserting_after(sizes[-1]):
        made = node.graph.call_function(check_grid, (tuple(sizes), planned, user))
    noted(made, {GUARD: frozenset(), ORIGIN: clause.origin})


def _measured(anatomy: Anatomy) -> tuple[Place, tuple[int, ...], tuple[int, ...]]:
    """A value, the axes of it that hang on the size of the image, and how long they are."""
    stream = anatomy.stream
    if stream.patches is not None and stream.grid is not None:
        axes = (1, 2) if stream.layout == "nhwc" else (2, 3)
        return stream.patches, axes, stream.grid
    assert stream.tokens is not None
    return anatomy.blocks[0].input, (1,), (stream.tokens,)


def _size(node: fx.Node, axis: int) -> fx.Node:
    """The length of an axis, read right behind the node."""
    found = next((u for u in node.users if is_size(u) and u.args[1] == axis), None)
    last = node
    while is_size(last.next) and last.next.args[0] is node:
        last = last.next
    if found is None:
        with node.graph.inserting_after(last):
            return node.graph.call_method("size", (node, axis))
    if found is not last and not _behind(node, found):
        last.append(found)
    return found


def _behind(node: fx.Node, size: fx.Node) -> bool:
    """Whether a size is read among those that are read right behind their tensor."""
    after = node.next
    while is_size(after) and after.args[0] is node:
        if after is size:
            return True
        after = after.next
    return False
