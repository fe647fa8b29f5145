"""The tokens of a statement as the grammar names them."""

from __future__ import annotations

from lark import Token

from vitrewrite.errors import Span

from .source import SpecSource
from .tokens import Lexeme


class Word(Token):
    """A token of the grammar which knows where it stands."""

    source: SpecSource
    start: int
    end: int

    @classmethod
    def of(cls, type: str, token: Lexeme, source: SpecSource) -> Word:
        """The word of a piece of text."""
        word = cls(type, token.text)
        word.source, word.start, word.end = source, token.start, token.end
        return word

    @property
    def span(self) -> Span:
        """Its place."""
        return self.source.span(self.start, self.end)
