"""Two ways that a forward goes at unlike sizes, put together to one program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from .guards import check_size, is_guard
from .notes import HINT, VALUE, copied
from .numbers import plain
from .operators import is_impure, is_inplace
from .sizes import by_size, chosen, is_choice, own_side


class UnlikeError(Exception):
    """Two ways cannot be one program."""


class Join:
    """Puts the way of the example into the graph of the other way.

    Args:
        own: the graph of the example's way.
        other: that of the witness' way, in which everything holds under the example too.
        same: what both do before the decision, nodes of `other` by those of `own`.
        condition: what decides, a node of `other`.
        outcome: how the example decides.
        lost: nodes of `own` from which on its witness is not carried, so that what is decided
            there is not known to be guarded.
        doubt: the node of `own` from which on something was decided there.
    """

    def __init__(
        self,
        own: fx.Graph,
        other: fx.Graph,
        same: dict[fx.Node, fx.Node],
        condition: fx.Node,
        outcome: bool,
        lost: frozenset[fx.Node],
        doubt: fx.Node | None = None,
    ) -> None:
        self.own, self.other = own, other
        self.same, self.condition, self.outcome, self.lost = same, condition, outcome, lost
        self.before = set(same.values())
        self.pairs: dict[fx.Node, fx.Node] = {}  # what both do after it
        self.taken: set[fx.Node] = set()
        self.choices: dict[fx.Node, list[tuple[Any, ...]]] = {}
        mine = list(own.nodes)
        self.sure = set(mine if doubt is None else mine[: mine.index(doubt) + 1])
        self.numbers: dict[fx.Node, str] = {}
        self.epochs: dict[fx.Node, int] = {}
        self.changes = {g: [n for n in g.nodes if is_inplace(n.target)] for g in (own, other)}
        self.position = {n: i for i, n in enumerate(other.nodes)}

    def run(self) -> fx.Graph:
        """The graph of both.

        Raises:
            UnlikeError: if there is none.
        """
        end = self.other.output_node()
        waiting = [(self.own.output_node(), end), *self._effects()]
        edits: list[tuple[fx.Node, Any, Any]] = []
        while waiting:
            mine, theirs = waiting.pop()
            args = self._match(mine.args, theirs.args, waiting)
            kwargs = self._match(dict(mine.kwargs), dict(theirs.kwargs), waiting)
            if mine not in self.sure and _differs((args, kwargs)):
                raise UnlikeError
            edits.append((theirs, args, kwargs))
        self._check_effects()
        made: dict[Any, Any] = {}
        for node, args, kwargs in sorted(edits, key=lambda e: self.position[e[0]]):
            node.args = self._resolved(args, node, made)
            node.kwargs = self._resolved(kwargs, node, made)
        self._guards(end)
        self._in_order()
        return self.other

    def _effects(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """What does more than compute, in the order in which both ways do it.

        Raises:
            UnlikeError: if they do not do the same.
        """
        if len(self.changes[self.own]) != len(self.changes[self.other]):
            raise UnlikeError
        mine, theirs = (
            [n for n in g.nodes if _has_effect(n) and n not in known]
            for g, known in ((self.own, self.same), (self.other, self.before))
        )
        for one, other in zip(mine, theirs, strict=False):
            if one not in self.pairs and self._alike(one, other):
                self.pairs[one] = other
                self.taken.add(other)
                yield one, other

    # -- what is alike ------------------------------------------------------------------------

    def _match(self, mine: Any, theirs: Any, waiting: list[Any]) -> Any:
        """`theirs`, with a `_Choice` wherever the ways differ."""
        if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node):
            return self._match_nodes(mine, theirs, waiting)
        if type(mine) is type(theirs) and isinstance(mine, (tuple, list)):
            if len(mine) == len(theirs):
                return type(mine)(
                    self._match(a, b, waiting) for a, b in zip(mine, theirs, strict=True)
                )
        elif isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
            return {k: self._match(mine[k], v, waiting) for k, v in theirs.items()}
        elif isinstance(mine, slice) and isinstance(theirs, slice):
            parts = ((getattr(s, p) for p in ("start", "stop", "step")) for s in (mine, theirs))
            return slice(*(self._match(a, b, waiting) for a, b in zip(*parts, strict=True)))
        elif self._same_value(mine, own_side(theirs) if is_choice(theirs) else theirs):
            return theirs
        return _Choice(mine, theirs)

    def _match_nodes(self, mine: fx.Node, theirs: fx.Node, waiting: list[Any]) -> Any:
        if self.same.get(mine) is theirs or self.pairs.get(mine) is theirs:
            return theirs
        if mine.target is by_size and self._same_value(mine, theirs):
            return theirs
        if theirs.target is by_size and self._same_value(mine, own_side(theirs)):
            return theirs  # the choice that the forward makes later on, as the example makes it
        if self._alike(mine, theirs):
            self.pairs[mine] = theirs
            self.taken.add(theirs)
            waiting.append((mine, theirs))
            return theirs
        return _Choice(mine, theirs)

    def _same_value(self, mine: Any, theirs: Any) -> bool:
        """Whether two values are computed alike, step by step."""
        if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node):
            if self.same.get(mine) is theirs or self.pairs.get(mine) is theirs:
                return True
            pure = mine.op not in ("placeholder", "call_module") and not is_impure(mine)
            if not pure or (mine.op, mine.target) != (theirs.op, theirs.target):
                return False
            inner = (mine.args, dict(mine.kwargs)), (theirs.args, dict(theirs.kwargs))
            return self._same_value(*inner)
        if isinstance(mine, (tuple, list)) and isinstance(theirs, (tuple, list)):
            alike = len(mine) == len(theirs)
            return alike and all(map(self._same_value, mine, theirs))
        if isinstance(mine, dict) and isinstance(theirs, dict):
            alike = mine.keys() == theirs.keys()
            return alike and all(self._same_value(v, theirs[k]) for k, v in mine.items())
        return type(mine) is type(theirs) and bool(mine == theirs)

    def _alike(self, mine: fx.Node, theirs: fx.Node) -> bool:
        free = mine not in self.same and mine not in self.pairs
        free = free and theirs not in self.before and theirs not in self.taken
        free = free and self._changes_before(mine) == self._changes_before(theirs)
        same = (mine.op, mine.target) == (theirs.op, theirs.target) and mine.op != "placeholder"
        plain_ = mine.op not in ("get_attr", "output") and mine.target is not by_size
        alike = _like(mine.args, theirs.args) and _like(dict(mine.kwargs), dict(theirs.kwargs))
        return free and same and plain_ and alike

    def _check_effects(self) -> None:
        """What does more than compute has to be done in both ways."""
        for graph, known in ((self.own, {*self.same, *self.pairs}), (self.other, self._theirs())):
            for node in graph.nodes:
                if (node.op == "call_module" or _has_effect(node)) and node not in known:
                    raise UnlikeError

    def _theirs(self) -> set[fx.Node]:
        return {*self.before, *self.taken}

    # -- what differs -------------------------------------------------------------------------

    def _resolved(self, value: Any, user: fx.Node, made: dict[Any, Any]) -> Any:
        if isinstance(value, _Choice):
            key = (_key(value.mine), _key(value.theirs))
            if key not in made:
                made[key] = self._choice(value, user)
            return made[key]
        if isinstance(value, (tuple, list)):
            return type(value)(self._resolved(v, user, made) for v in value)
        if isinstance(value, dict):
            return {k: self._resolved(v, user, made) for k, v in value.items()}
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return slice(*(self._resolved(v, user, made) for v in parts))
        return value

    def _choice(self, choice: _Choice, user: fx.Node) -> Any:
        mine, theirs = choice.mine, choice.theirs
        if not _equal(_value(mine), _value(theirs)):
            raise UnlikeError
        copied = self._copied(mine, user)
        with self.other.inserting_before(user):
            yes, no = (copied, theirs) if self.outcome else (theirs, copied)
            found = chosen(self.other, self.condition, yes, no, self.outcome)
        if isinstance(found, fx.Node):
            VALUE.keep(found, _value(theirs))
            hint = _hint(mine) or _hint(theirs)
            if hint and found.target is by_size:
                HINT.put(found, hint)
        return found

    def _copied(self, value: Any, user: fx.Node) -> Any:
        """A value of the own way in the graph of the other, before `user`."""
        if not isinstance(value, fx.Node):
            return fx.node.map_arg(value, lambda n: self._copied(n, user))
        if value in self.same or value in self.pairs:
            return self.same.get(value) or self.pairs[value]
        if value in self.lost or value.op in ("placeholder", "call_module") or is_impure(value):
            raise UnlikeError
        args = fx.node.map_arg(value.args, lambda n: self._copied(n, user))
        kwargs = fx.node.map_arg(dict(value.kwargs), lambda n: self._copied(n, user))
        first, before = self._place(value, user)
        key = _key_of(value.op, value.target, args, kwargs, self._number)
        equal = self._equal_to(key, first, before)
        if equal is not None:
            self.same[value] = equal
            return equal
        with self.other.inserting_before(before):
            node = self.other.create_node(value.op, value.target, args, kwargs)
        copied(value, node)
        self.same[value] = node
        return node

    def _place(self, value: fx.Node, user: fx.Node) -> tuple[fx.Node | None, fx.Node]:
        """Between which changes in place a value of the own way is to be computed."""
        count, changes = self._changes_before(value), self.changes[self.other]
        later = changes[count] if count < len(changes) else user
        if later not in self.position or self.position[later] > self.position.get(user, 0):
            later = user
        return (changes[count - 1] if count else None), later

    def _changes_before(self, node: fx.Node) -> int:
        """How many changes in place come before a node of either graph."""
        if node not in self.epochs:
            count = 0
            for each in node.graph.nodes:
                self.epochs[each] = count
                count += is_inplace(each.target)
        return self.epochs[node]

    def _equal_to(self, key: str, first: fx.Node | None, before: fx.Node) -> fx.Node | None:
        """What is computed in the same way behind `first` and before another node."""
        node: fx.Node
        behind = first is None
        for node in self.other.nodes:
            if node is before:
                return None
            if (behind or node.op == "get_attr") and self._number(node) == key:
                return node
            behind = behind or node is first
        return None

    def _number(self, node: fx.Node) -> str:
        """Equal for nodes that compute the same."""
        if node not in self.numbers:
            own = node.op in ("placeholder", "call_module") or is_impure(node)
            key = _key_of(node.op, node.target, node.args, dict(node.kwargs), self._number)
            self.numbers[node] = node.name if own else key
        return self.numbers[node]

    def _guards(self, end: fx.Node) -> None:
        """What the own way takes for granted has to hold where it is gone."""
        for guard in [n for n in self.own.nodes if is_guard(n) and n not in self.same]:
            held = self._copied(guard.args[0], end)
            if any(is_guard(u) for u in held.users):
                continue
            with self.other.inserting_before(end):
                yes, no = (held, True) if self.outcome else (True, held)
                held = chosen(self.other, self.condition, yes, no, self.outcome)
                new = self.other.call_function(check_size, (held, guard.args[1]))
            copied(guard, new)

    def _in_order(self) -> None:
        """Puts what is read in front of who reads it, where nothing is changed in place."""
        order: dict[fx.Node, None] = {}

        def place(node: fx.Node) -> None:
            for read in node.all_input_nodes:
                if read not in order:
                    place(read)
            order[node] = None

        nodes = list(self.other.nodes)
        for node in nodes:
            place(node) if node not in order else None
        if list(order) == nodes:
            return
        if any(is_impure(n) and not is_guard(n) for n in nodes if n.op not in _ENDS):
            raise UnlikeError
        end = self.other.output_node()
        for node in order:
            if node is not end:
                end.prepend(node)


_ENDS = ("placeholder", "output")


def _has_effect(node: fx.Node) -> bool:
    return is_impure(node) and not is_guard(node) and node.op not in _ENDS


class _Choice:
    """Where the ways have different values."""

    def __init__(self, mine: Any, theirs: Any) -> None:
        self.mine, self.theirs = mine, theirs


def _key_of(op: str, target: Any, args: Any, kwargs: Any, number: Callable[[fx.Node], str]) -> str:
    """What a node computes, as a short text."""
    held = fx.node.map_arg((args, kwargs), lambda n: number(n))
    text = repr((op, target if isinstance(target, str) else id(target), held))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _differs(value: Any) -> bool:
    """Whether arguments have a choice in them."""
    if isinstance(value, dict):
        return any(map(_differs, value.values()))
    if isinstance(value, slice):
        return any(map(_differs, (value.start, value.stop, value.step)))
    return (
        any(map(_differs, value))
        if isinstance(value, (tuple, list))
        else (isinstance(value, _Choice))
    )


def _key(value: Any) -> Any:
    return value if isinstance(value, fx.Node) else repr(value)


def _hint(value: Any) -> Any:
    return HINT.get(value) if isinstance(value, fx.Node) else None


def _like(mine: Any, theirs: Any) -> bool:
    """Whether arguments are the same but for what nodes are, and numbers that follow a size."""
    if isinstance(mine, fx.Node) or isinstance(theirs, fx.Node):
        both = isinstance(mine, fx.Node) and isinstance(theirs, fx.Node)
        return both or _equal(_value(mine), _value(theirs))
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, (tuple, list)):
        return len(mine) == len(theirs) and all(map(_like, mine, theirs))
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(_like(v, theirs[k]) for k, v in mine.items())
    if isinstance(mine, slice):
        return all(_like(getattr(mine, p), getattr(theirs, p)) for p in ("start", "stop", "step"))
    return bool(mine == theirs)


def _value(value: Any) -> Any:
    return plain(VALUE.get(value)) if isinstance(value, fx.Node) else value


def _equal(a: Any, b: Any) -> bool:
    """Whether one can stand for the other at the size of the example."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.shape, a.dtype) == (b.shape, b.dtype)
    number = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return number and a == b
