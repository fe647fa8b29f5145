"""The parser: runs the table of the grammar over the tokens of a statement."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from .build import Build, Word
from .source import SpecSource
from .table import JOINED, Rule, Table, load_table
from .tokens import VERBS, WORDS, Lexeme

_SIGNS = {"+": "PLUS", "-": "MINUS", "*": "STAR", "/": "SLASH", "//": "DOUBLE_SLASH"} | {
    **{sign: "COMPARE" for sign in ("<=", "<", ">=", ">", "==", "!=")},
    **{":": "COLON", "[": "LSQB", "]": "RSQB"},
}
_END = "$END"


class UnexpectedError(Exception):
    """A token that cannot stand where it does.

    Attributes:
        word: the token, or None at the end.
        failure: the state of the parser and the terminal: what mistakes have in common.
        expected: the terminals that could stand there.
    """

    def __init__(self, word: Word | None, state: int, expected: set[str]) -> None:
        super().__init__(word)
        self.word = word
        self.failure = state, word.type if word is not None else _END
        self.expected = expected


@functools.cache
def _table() -> tuple[Table, dict[str, str]]:
    table = load_table()
    return table, table.words | _SIGNS


_BUILD = Build()


def parse_words(words: Sequence[Word], start: str) -> Any:
    """The node that a start rule of the grammar makes of some tokens.

    Raises:
        UnexpectedError: they do not fit.
        SpecError: they fit but make no sense together.
    """
    table = _table()[0]
    first, last = table.starts[start]
    states: list[int] = [first]
    values: list[Any] = []
    for word in [*words, None]:
        terminal = word.type if word is not None else _END
        while (action := table.actions[states[-1]].get(terminal)) is not None and action < 0:
            _reduce(table.rules[-1 - action], states, values, table)
            if word is None and states[-1] == last:
                return values[-1]
        if action is None:
            raise UnexpectedError(word, states[-1], _expected(table, states))
        states.append(action)
        values.append(word)
    raise AssertionError(words)  # the end is never shifted


def _reduce(rule: Rule, states: list[int], values: list[Any], table: Table) -> None:
    taken = values[len(values) - rule.size :]
    del states[len(states) - rule.size :], values[len(values) - rule.size :]
    children: list[Any] = []
    for position in rule.children:
        if position >= JOINED:
            repeated = taken[position - JOINED]
            # Not copied where it comes first: a long repetition grows by one each time.
            children = [*children, *repeated] if children else repeated
        else:
            children.append(taken[position] if position >= 0 else None)
    if not rule.call:
        value: Any = children
    elif rule.single and len(children) == 1:
        value = children[0]
    else:
        value = getattr(_BUILD, rule.call)(*children)
    states.append(table.actions[states[-1]][rule.origin])
    values.append(value)


def _expected(table: Table, states: list[int]) -> set[str]:
    return {
        symbol
        for symbol in table.actions[states[-1]]
        if symbol.strip("_$").isupper() and _accepts(table, list(states), symbol)
    }


def _accepts(table: Table, states: list[int], terminal: str) -> bool:
    """Whether the terminal can be shifted, after the reductions it asks for."""
    while (action := table.actions[states[-1]].get(terminal)) is not None and action < 0:
        rule = table.rules[-1 - action]
        del states[len(states) - rule.size :]
        states.append(table.actions[states[-1]][rule.origin])
        if terminal == _END and states[-1] in {last for _, last in table.starts.values()}:
            return True
    return action is not None


def words(source: SpecSource, tokens: list[Lexeme], start: str) -> list[Word]:
    """The tokens as the grammar names them, without a comma before a closing bracket."""
    terminals = _table()[1]
    found: list[Word] = []
    for token, before, after in zip(tokens, [None, *tokens], [*tokens[1:], None], strict=False):
        if token.text == "," and before and before.text not in "([{," and _closes(after):
            continue
        # The name of an option, or a part of a path; what `let` defines is neither.
        is_option = after is not None and after.text == "=" and len(found) > 1
        is_name = (before is not None and before.text == ".") or is_option
        verb = start == "statement" and not found
        found.append(Word(_terminal(token, is_name, verb, terminals), token, source))
    return found


def _closes(token: Lexeme | None) -> bool:
    return token is not None and token.kind == "sign" and token.text in ")]}"


def _terminal(token: Lexeme, is_name: bool, verb: bool, terminals: dict[str, str]) -> str:
    if token.kind == "sign":
        return terminals.get(token.text, token.text)
    if token.kind != "name":
        return {"model": "MODEL_NAME", "shape": "STRING", "file": "PASS_FILE"}.get(
            token.kind, token.kind.upper()
        )
    reserved = token.text in VERBS if verb else token.text in WORDS and not is_name
    return terminals[token.text] if reserved else "NAME"
