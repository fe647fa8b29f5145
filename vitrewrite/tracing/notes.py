"""What is known of a node beside what it computes: one typed note for each thing, in one place.

A note is a key of `fx.Node.meta`; what a later stage needs is written nowhere else. A note that is
not there says nothing. `docs/architecture.md` has a table of who writes and who reads each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from torch import fx

T = TypeVar("T")


class Note(Generic[T]):
    """One thing that is known of nodes.

    Attributes:
        name: its key.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, node: fx.Node) -> T:
        """What it says of a node.

        Raises:
            KeyError: if it says nothing.
        """
        found: T = node.meta[self.name]
        return found

    def get(self, node: fx.Node, default: Any = None) -> Any:
        """What it says of a node, or `default`."""
        return node.meta.get(self.name, default)

    def on(self, node: fx.Node) -> bool:
        """Whether it says something."""
        return self.name in node.meta

    def put(self, node: fx.Node, value: T) -> None:
        """Says it."""
        node.meta[self.name] = value

    def keep(self, node: fx.Node, value: T) -> None:
        """Says it, unless something is said."""
        node.meta.setdefault(self.name, value)

    def drop(self, node: fx.Node) -> Any:
        """Says nothing any more; what it said, or None."""
        return node.meta.pop(self.name, None)


# Written while tracing, read by every stage.
VALUE: Note[Any] = Note("val")  # the value on meta tensors; a size stays a number that is tracked
HINT: Note[Any] = Note("hint")  # its name in the source, or that a verb gave
LISTED: Note[str] = Note("listed")  # the name in the source of a list that it is in
KEY: Note[str] = Note("key")  # of a result: the field of a dataclass that the source reads
ARITY: Note[int] = Note("arity")  # of a call that returns a tuple: how many values
GUARD: Note[frozenset[int]] = Note("guard")  # of a check: the witnesses that it depends on
OWN_FIRST: Note[bool] = Note("own")  # of a choice of sizes: whether the model's own is first
OUTCOME: Note[bool] = Note("outcome")  # of a decision on sizes: how it fell under the example
ARGUMENT: Note[Any] = Note("argument")  # of a constant handed to a unit: its value, or "given"
PART: Note[tuple[int, ...]] = Note("part")  # of an input: where in a tuple that is one argument
ENTRY: Note[str] = Note("entry")  # of what belongs to the second half: the entry that it is
RESULT: Note[tuple[str, Any, int]] = Note("result")  # how an entry yields it; which; of how many

# Written by clauses, read by later ones, when all are through, and by emission.
ORIGIN: Note[str] = Note("origin")  # the clause that made it
WIRED: Note[bool] = Note("wired")  # of an input: a value of another unit that was threaded here
HELD: Note[bool] = Note("held")  # to be kept although nothing reads it yet
ROWS: Note[tuple[int, int]] = Note("rows")  # of attention: rows put before and behind k and v
PAIRS: Note[bool] = Note("pairs")  # of a bias of scores: one number per pair
SOFTMAX: Note[bool] = Note("softmax")  # of a call: makes the weights of an attention from scores
WRITTEN: Note[Any] = Note("written")  # of attention that was written out: how
ASIDE: Note[dict[int, str]] = Note("aside")  # of attention: where weights of single queries are

# Written and read by emission.
EFFECT: Note[bool] = Note("effect")  # of a call: whether it draws or changes anything
CHANGE: Note[bool] = Note("change")  # of a call: whether it changes a tensor in place
CALLEE: Note[str] = Note("callee")  # the text of what is called
PLACE: Note[tuple[Any, int]] = Note("place")  # of a child in a list: the list, and which it is
CHILD: Note[int] = Note("child")  # of a call in a loop: which child of the turn's owner
OTHER: Note[Any] = Note("other")  # of a call in a loop over several owners: the first turn's
TAKEN_AS: Note[tuple[str, ...]] = Note("taken")  # of a call: names of what it is handed there
ASSIGNED: Note[bool] = Note("assigned")  # printed as a statement of its own
OPTIONAL: Note[bool] = Note("optional")  # of an input: some modules of the class are not given it
POSITION: Note[int] = Note("position")  # its number among a skeleton's nodes


def copied(node: fx.Node, onto: fx.Node, *only: Note[Any]) -> None:
    """Gives a node the notes of another, all or only some, in place of its own."""
    names = {note.name for note in only}
    onto.meta = {k: v for k, v in node.meta.items() if not only or k in names}


def copied_without(node: fx.Node, onto: fx.Node, *but: Note[Any]) -> None:
    """Gives a node the notes of another but for some, in place of its own."""
    names = {note.name for note in but}
    onto.meta = {k: v for k, v in node.meta.items() if k not in names}


def shared(node: fx.Node, onto: fx.Node, *notes: Note[Any]) -> None:
    """Gives a node some notes of another beside its own."""
    onto.meta.update({n.name: node.meta[n.name] for n in notes if n.name in node.meta})


def noted(node: fx.Node, known: Mapping[Note[Any], Any]) -> None:
    """Says several things of a node, and nothing else."""
    node.meta = {note.name: value for note, value in known.items()}
