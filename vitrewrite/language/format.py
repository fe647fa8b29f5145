"""The formatter: canonical spaces and indents around the same tokens, comments included.

Because only blanks change, the meaning cannot. Line breaks inside brackets stay where they are.
"""

from __future__ import annotations

from .parse import parse_statement
from .problems import all_together
from .source import text_source
from .tokens import WORDS, Lexeme, Sentence, statements

_INDENT = "    "


def format_text(text: str, file: str = "<text>") -> str:
    """The text of a spec in canonical layout.

    Args:
        text: what to format.
        file: its name, for errors.

    Raises:
        VitrewriteError: its syntax is wrong; names and values are not checked.
    """
    source = text_source(text, file)
    with all_together() as problems:
        source.refuse_odd_characters()
        found = list(statements(source))
        for statement in found:
            if statement.tokens:
                with problems.catch():
                    parse_statement(statement)
    lines: list[str] = []
    for statement in found:
        for line in _lines(statement):
            if line or (lines and lines[-1]):  # at most one empty line in a row
                lines.append(line)
    return "\n".join(lines).strip("\n") + "\n" if any(lines) else ""


def _lines(statement: Sentence) -> list[str]:
    line = _Line(bool(statement.tokens) and statement.tokens[0].text == "tune")
    for token in statement.lexemes:
        if token.kind == "newline":
            line.end()
        elif token.kind == "comment":
            line.comment(token.text.rstrip())
        else:
            line.token(token)
    line.end()
    return line.done


class _Line:
    """Writes the tokens of one statement."""

    def __init__(self, spaced_braces: bool) -> None:
        self.done: list[str] = []
        self._text = ""
        self._open: list[str] = []  # brackets
        self._before: Lexeme | None = None
        self._first: Lexeme | None = None  # the verb
        self._unary = False  # whether the token before is a sign in front of its operand
        self._spaced_braces = spaced_braces

    def end(self) -> None:
        if self._text or not self._open or not self.done:
            self.done.append(self._text)
        self._text = ""

    def comment(self, text: str) -> None:
        self._text += f"  {text}" if self._text else _INDENT * len(self._open) + text

    def token(self, token: Lexeme) -> None:
        closing = token.kind == "sign" and token.text in ")]}"
        if closing and self._open:
            self._open.pop()
        if not self._text:
            self._text = _INDENT * len(self._open)
        elif self._before and self._spaced(self._before, token):
            self._text += " "
        self._text += token.text
        self._unary = token.text == "-" and (self._before is None or _before_operand(self._before))
        if token.kind == "sign" and token.text in "([{":
            self._open.append(token.text)
        self._first = self._first or token
        self._before = token

    def _spaced(self, before: Lexeme, token: Lexeme) -> bool:
        if self._unary:
            return False
        left, right = _sign(before), _sign(token)
        if left == "{" or right == "}":
            outermost = len(self._open) == (left == "{")  # those of `tune`, not of a selector
            return self._spaced_braces and outermost and left + right != "{}"
        if right in (",", ")", "]", ".", "..", ":") or left in ("(", "[", ".", ".."):
            return False
        if left == ":":
            return "[" not in self._open
        if "=" in (left, right):
            named = self._first is not None and self._first.text == "stitch"
            return self._open in ([], ["{"]) and not named
        if right in ("(", "["):
            # A call or an index, unless it opens an operand.
            return before is self._first or _before_operand(before)
        return True


def _sign(token: Lexeme) -> str:
    return token.text if token.kind == "sign" else ""


def _before_operand(token: Lexeme) -> bool:
    """Whether what follows this token starts an operand."""
    if token.kind == "sign":
        return token.text not in (")", "]", "}")
    return token.kind == "name" and token.text in WORDS
