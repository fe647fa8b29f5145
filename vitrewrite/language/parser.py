"""The parser: Lark, with a lexer that gives it the tokens of one statement.

Importing Lark and building its tables take a tenth of a second, so this module is imported when
the first statement is parsed, not before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lark import Lark, Token, UnexpectedToken
from lark.lexer import Lexer

from .build import Build
from .source import SpecSource
from .tokens import VERBS, WORDS, Lexeme
from .words import Word

_GRAMMAR = Path(__file__).with_name("grammar.lark")
_STARTS = ["statement", "sum", "model_ref"]
_SIGNS = {"+": "PLUS", "-": "MINUS", "*": "STAR", "/": "SLASH", "//": "DOUBLE_SLASH"} | {
    **{sign: "COMPARE" for sign in ("<=", "<", ">=", ">", "==", "!=")},
    **{":": "COLON", "[": "LSQB", "]": "RSQB"},
}
_KINDS = {"model": "MODEL_NAME", "shape": "STRING", "file": "PASS_FILE"}
END = "$END"  # what Lark calls the end of the tokens

# What the parser could do where it gave up, and the terminal that it met there.
Failure: TypeAlias = tuple[frozenset[tuple[str, Any]], str]


class _Stretch(NamedTuple):
    """What is parsed: the tokens of one statement, or of an expression."""

    source: SpecSource
    tokens: list[Lexeme]
    start: str


class _Lexer(Lexer):
    """Names the tokens as the grammar does, and leaves out a comma before a closing bracket."""

    def __init__(self, known: Any) -> None:
        quoted = {each.pattern.value: each.name for each in known.terminals}
        self._terminals: dict[str, str] = quoted | _SIGNS

    def lex(self, given: Any, _: Any = None) -> Iterator[Token]:
        tokens = given.tokens
        around = zip(tokens, [None, *tokens], [*tokens[1:], None], strict=False)
        for number, (token, before, after) in enumerate(around):
            if token.text == "," and before and before.text not in "([{," and _closes(after):
                continue
            # The name of an option, or a part of a path; what `let` defines is neither.
            is_option = after is not None and after.text == "=" and number > 1
            is_name = (before is not None and before.text == ".") or is_option
            is_verb = number == 0 and given.start == "statement"
            yield Word.of(self._terminal(token, is_name, is_verb), token, given.source)

    def _terminal(self, token: Lexeme, is_name: bool, is_verb: bool) -> str:
        if token.kind == "sign":
            return self._terminals.get(token.text, token.text)
        if token.kind != "name":
            return _KINDS.get(token.kind, token.kind.upper())
        reserved = token.text in VERBS if is_verb else token.text in WORDS and not is_name
        return self._terminals[token.text] if reserved else "NAME"


def _closes(token: Lexeme | None) -> bool:
    return token is not None and token.kind == "sign" and token.text in ")]}"


@functools.cache
def _lark() -> Lark:
    text = _GRAMMAR.read_text(encoding="utf-8")
    # The transformer works while parsing: no tree is built, and nothing here is recursive.
    return Lark(text, parser="lalr", lexer=_Lexer, start=_STARTS, transformer=Build())


def parse_tokens(source: SpecSource, tokens: list[Lexeme], start: str) -> Any:
    """The node that a start rule of the grammar makes of some tokens.

    Raises:
        UnexpectedToken: they do not fit.
        SpecError: they fit but make no sense together.
    """
    given: Any = _Stretch(source, tokens, start)  # what a lexer of one's own takes is its affair
    return _lark().parse(given, start)


def failure(error: UnexpectedToken) -> Failure:
    """What two malformed statements share if the parser gives up on them for the same reason."""
    choices = error.interactive_parser.choices()  # type: ignore[no-untyped-call]
    return frozenset(choices.items()), error.token.type
