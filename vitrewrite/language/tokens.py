"""From text to statements: tokens, then groups of tokens that make one statement each.

A statement ends at the end of its line, unless a bracket is open. Because that needs no grammar,
a malformed statement does not spoil the ones after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import shown

from .source import SpecSource

VERBS = (
    *("model", "param", "let", "include", "insert", "prepend", "replace", "stitch", "add", "drop"),
    *("train", "freeze", "require", "row", "tune"),
)
# Words with a meaning inside a statement; as the name of an option or after a dot they are free.
WORDS = frozenset(
    {"at", "before", "after", "to", "with", "in", "every", "where", "and", "or", "not", "if"}
    | {"optional", "within", "of", "excluding", "by"}
)
DEPTH_LIMIT = 16
_CLOSING = {")": "(", "]": "[", "}": "{"}
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t]+)
  | (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<file>(?:\.{0,2}/)[^\s:()"',\#]*\.py:[A-Za-z_][A-Za-z0-9_]*)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<number>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[kKMG%]?(?!\w|\.[0-9]))
  | (?P<shape>[0-9]+(?:x[0-9]+)+(?::[a-z]+[0-9]*)?(?!\w|\.[0-9]))
  | (?P<odd_number>[0-9](?:\w|\.(?!\.))*)
  | (?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
  | (?P<open_string>["'][^\n]*)
  | (?P<sign>\.\.|//|[<>=!]=|[-+*/&=:,.()\[\]{}<>])
  | (?P<odd>.)
    """,
    re.VERBOSE,
)


class Lexeme(NamedTuple):
    """A piece of text: its kind (a group of the token pattern, or `model`) and place.

    A `file` is a pass in a file, `./gate.py:Gate`.
    """

    kind: str
    text: str
    start: int
    end: int


@dataclass
class Sentence:
    """The lexemes of one statement, or of one line without any."""

    source: SpecSource
    lexemes: list[Lexeme] = field(default_factory=list)  # with its comments and line ends
    error: SpecError | None = None  # a bracket that does not match

    @property
    def tokens(self) -> list[Lexeme]:
        """What the grammar sees."""
        return [token for token in self.lexemes if token.kind not in ("comment", "newline")]

    @property
    def span(self) -> Span:
        """From the first token to the last."""
        tokens = self.tokens
        return self.source.span(tokens[0].start, tokens[-1].end)


def statements(source: SpecSource) -> Iterator[Sentence]:
    """All statements of a source in order, and the lines that hold only a comment or nothing."""
    lexemes = [
        Lexeme(match.lastgroup or "", match[0], match.start(), match.end())
        for match in _TOKEN.finditer(source.text)
        if match.lastgroup != "space"
    ]
    position = 0
    while position < len(lexemes):
        statement, position = _statement(source, lexemes, position)
        statement.lexemes = _with_model_names(statement.lexemes)
        yield statement


def _statement(source: SpecSource, lexemes: list[Lexeme], position: int) -> tuple[Sentence, int]:
    statement = Sentence(source)
    brackets: list[Lexeme] = []
    while position < len(lexemes):
        token = lexemes[position]
        if token.kind == "newline" and not brackets:
            position += 1
            break
        if brackets and _starts_statement(lexemes, position):
            break
        statement.lexemes.append(token)
        position += 1
        if token.kind == "sign" and statement.error is None:
            statement.error = _track(source, brackets, token)
    if brackets and statement.error is None:
        message = f"'{brackets[-1].text}' is never closed"
        span = source.span(brackets[-1].start, brackets[-1].end)
        statement.error = SpecError("VR108", message, span=span)
    return statement, position


def _track(source: SpecSource, brackets: list[Lexeme], token: Lexeme) -> SpecError | None:
    """Keeps the stack of open brackets; returns what is wrong with this one."""
    span = source.span(token.start, token.end)
    if token.text in "([{":
        brackets.append(token)
        if len(brackets) > DEPTH_LIMIT:
            brackets.clear()
            message = f"brackets are nested deeper than {DEPTH_LIMIT}"
            return SpecError("VR110", message, span=span, suggestion="name parts of it with 'let'")
    elif token.text in _CLOSING:
        if not brackets:
            return SpecError("VR109", f"'{token.text}' closes nothing", span=span)
        opened = brackets.pop()
        if opened.text != _CLOSING[token.text]:
            brackets.clear()
            message = f"'{token.text}' does not close '{opened.text}'"
            notes = [f"'{opened.text}' is at {source.span(opened.start, opened.end)}"]
            return SpecError("VR109", message, span=span, notes=notes)
    return None


def _starts_statement(lexemes: list[Lexeme], position: int) -> bool:
    """Whether a new statement begins here although a bracket is still open."""
    if lexemes[position].text not in VERBS or lexemes[position - 1].kind != "newline":
        return False
    following = lexemes[position + 1] if position + 1 < len(lexemes) else None
    return following is not None and following.kind in ("name", "number", "string")


def _with_model_names(lexemes: list[Lexeme]) -> list[Lexeme]:
    """Joins what makes up a model's name, such as `hf:mask2former-r50`, to one lexeme."""
    verb = next((token.text for token in lexemes if token.kind != "newline"), "")
    if verb not in ("model", "stitch"):
        return lexemes
    joined: list[Lexeme] = []
    depth, expected = 0, False
    for token, after in zip(lexemes, [*lexemes[1:], None], strict=True):
        if expected and token.kind == "name" and after is not None and after.text == "=":
            pass  # what a base is called
        elif expected and _in_model_name(token) and token.text != "with":
            token = token._replace(kind="model")
        elif joined and _continues(joined[-1], token):
            token = Lexeme("model", joined[-1].text + token.text, joined.pop().start, token.end)
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "sign" else 0
        # Only the verb itself, the commas between models and what they are called announce a name.
        expected = (not joined) or (verb == "stitch" and depth == 0 and token.text in (",", "="))
        joined.append(token)
    return joined


def _in_model_name(token: Lexeme) -> bool:
    apart = token.kind in ("comment", "newline", "string", "open_string")
    return not apart and token.text not in "(),"


def _continues(name: Lexeme, token: Lexeme) -> bool:
    return name.kind == "model" and name.end == token.start and _in_model_name(token)


def unknown_character(text: str, span: Span) -> SpecError:
    """The error for a character that means nothing in the language."""
    means = _LOOKALIKES.get(text)
    suggestion = f"write {means}" if means else None
    return SpecError(
        "VR104", f"unexpected character {shown(text)}", span=span, suggestion=suggestion
    )


_LOOKALIKES = {
    "\u2264": "<=",
    "\u2265": ">=",
    "\u2260": "!=",
    "\u2013": "-",
    "\u2014": "-",
    "\u2212": "-",
    "\u00d7": "*",
    "\u00b7": "*",
    "\u201c": 'strings in "straight quotes"',
    "\u201d": 'strings in "straight quotes"',
    "\u2018": 'strings in "straight quotes"',
    "\u2019": 'strings in "straight quotes"',
    "\u2026": "..",
    "\u00a0": "a plain space",
    ";": "each statement on its own line",
    "|": "'+' to join selectors, 'or' in conditions",
    "!": "'not' in conditions, '!=' to compare",
    "%": "the percent sign right after a number, as in 1%",
    "\\": "nothing: a statement goes on over lines inside brackets",
    "^": "'*' to multiply; there are no powers",
    "$": "names without a sign in front",
    "@": "'at'",
}
