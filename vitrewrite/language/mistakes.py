"""What to say about a malformed statement, driven by a table of malformed examples.

Each example is parsed as a spec would be. What Lark's parser could do where it gives up on it, and
the kind of token that it met there, are the mistake; a spec that fails in the same way gets its
message. What no example covers gets a message that lists what could stand there.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from lark import UnexpectedToken

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import shown

from .parser import END, Failure, failure, parse_tokens
from .source import SpecSource
from .tokens import VERBS, WORDS, Lexeme, statements
from .words import Word

_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
_TERMINALS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "PASS_FILE": "a file of a pass",
    "MODEL_NAME": "the name of a model",
    "COMPARE": "a comparison",
}
_SIGNS = {
    **{"COMMA": ",", "EQUAL": "=", "LBRACE": "{", "RBRACE": "}", "LPAR": "(", "RPAR": ")"},
    **{"DOT": ".", "__ANON_0": "..", "AMPERSAND": "&", "PLUS": "+", "MINUS": "-", "STAR": "*"},
    **{"SLASH": "/", "DOUBLE_SLASH": "//", "COLON": ":", "LSQB": "[", "RSQB": "]"},
}


class Mistake(NamedTuple):
    """A way to be wrong: what to say, how to do it right, and statements that are wrong so."""

    code: str
    message: str
    help: str | None
    examples: tuple[str, ...]


@functools.cache
def mistakes() -> tuple[Mistake, ...]:
    """The rows of `mistakes.txt`."""
    text = Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8")
    rows = [row.splitlines() for row in text.strip().split("\n\n")]
    return tuple(_row(lines) for lines in rows if not lines[0].startswith("#"))


def _row(lines: list[str]) -> Mistake:
    code, message = lines[0].split(" ", 1)
    rest = [line.strip() for line in lines[1:]]
    helps = [line.removeprefix("help: ") for line in rest if line.startswith("help: ")]
    examples = tuple(line for line in rest if not line.startswith("help: "))
    return Mistake(code, message, helps[0] if helps else None, examples)


_ANY_VERB = ("VR115", "VR116", "VR120")  # options, selectors, expressions


@functools.cache
def _table() -> dict[tuple[str, Failure], Mistake]:
    """The mistakes by verb and failure, and by failure alone under the verb ""."""
    table: dict[tuple[str, Failure], Mistake] = {}
    for mistake in mistakes():
        for example in mistake.examples:
            failed = _fail(example)
            table.setdefault((example.split()[0], failed), mistake)
            if mistake.code in _ANY_VERB:
                table.setdefault(("", failed), mistake)
    return table


def _fail(example: str) -> Failure:
    source = SpecSource("<example>", example)
    tokens = next(iter(statements(source))).tokens
    try:
        parse_tokens(source, tokens, "statement")
    except UnexpectedToken as error:
        return failure(error)
    message = f"this example of a mistake is none: {example}"
    raise AssertionError(message)


def mistake_of(error: UnexpectedToken, verb: str, in_brackets: bool) -> Mistake | None:
    """The row of the table that knows how a statement with this verb failed."""
    failed = failure(error)
    found = _table().get((verb, failed)) or _table().get(("", failed))
    # The parser's states do not tell `x = 3 4` from `p(x=3 4)`.
    return None if found and found.code == "VR115" and not in_brackets else found


def explained(error: UnexpectedToken, source: SpecSource, tokens: list[Lexeme]) -> SpecError:
    """The error a user sees for what the parser did not expect."""
    word = error.token
    if isinstance(word, Word):
        span, token = word.span, str(word)
        before = [each.text for each in tokens if each.start < word.start]
    else:  # the place is just behind the last token
        end = tokens[-1].end if tokens else 0
        span, token = source.span(end, end + 1), "the end"
        before = [each.text for each in tokens]
    opened, closed = (sum(text in signs for text in before) for signs in (_OPENING, _CLOSING))
    in_brackets = opened > closed
    mistake = mistake_of(error, tokens[0].text if tokens else "", in_brackets)
    if mistake is not None:
        message = mistake.message.replace("{token}", shown(token, 30))
        help_ = _list_meant(span) or mistake.help
        return SpecError(mistake.code, message, span=span, suggestion=help_)
    return _unforeseen(error, token, span)


# `size=1, 2` and `size=(1, 2)`: a list without its brackets.
_ITEM = r"-?[\d.]+[\w%]*"
_BARE_LIST = re.compile(rf"([A-Za-z_]\w*)\s*=\s*\(?\s*({_ITEM}(?:\s*,\s*{_ITEM})+)\s*,?\s*\)?")


def _list_meant(place: Span) -> str | None:
    """How to write the list at a place, if there is one without brackets."""
    for match in _BARE_LIST.finditer(place.text):
        if match.start() < place.column <= match.end():
            items = ", ".join(item.strip() for item in match[2].split(","))
            return f"a list is written in brackets: {match[1]}=[{items}]"
    return None


def _unforeseen(error: UnexpectedToken, token: str, span: Span) -> SpecError:
    expected = sorted(map(_described, error.accepts - {END}))
    notes = [f"expected {_either(expected)}"] if 0 < len(expected) <= 8 else []
    if error.token.type == END:
        return SpecError("VR113", "the statement is not finished", span=span, notes=notes)
    if token in WORDS | set(VERBS) and "a name" in expected:
        message = f"{shown(token)} is a word of the language and cannot be a name here"
        return SpecError("VR119", message, span=span)
    suggestion = f"start a new line before {shown(token)}" if token in VERBS else _list_meant(span)
    message = f"unexpected {shown(token)}"
    return SpecError("VR112", message, span=span, notes=notes, suggestion=suggestion)


def _described(terminal: str) -> str:
    if terminal in _SIGNS:
        return f"'{_SIGNS[terminal]}'"
    return _TERMINALS.get(terminal, f"'{terminal.lower()}'")


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
