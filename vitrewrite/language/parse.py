"""Parsing: one statement at a time, so that every malformed one has its own error."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .model import AnyStatement
from .problems import Problems
from .source import SpecSource
from .tokens import VERBS, Lexeme, Sentence, statements, unknown_character


def parse_source(source: SpecSource, problems: Problems, doubtful: set[str]) -> list[AnyStatement]:
    """The statements of a source; those that are malformed go to `problems` instead.

    Names that malformed statements seem to define are added to `doubtful`.
    """
    found = []
    with problems.catch():
        source.refuse_odd_characters()
        for statement in statements(source):
            if not statement.tokens:
                continue
            before = len(problems.errors)
            with problems.catch():
                found.append(parse_statement(statement))
            if len(problems.errors) > before:
                doubtful.update(_defined(statement.tokens))
    return found


def _defined(tokens: list[Lexeme]) -> list[str]:
    # Also for a misspelt verb: `parm rank: int = 8` is one error, not one for each use of `rank`.
    return [token.text for token in tokens[1:2] if token.kind == "name"]


def parse_statement(statement: Sentence) -> AnyStatement:
    """The node of one statement.

    Raises:
        SpecError: VR104 to VR120, what is malformed.
    """
    _refuse_bad_tokens(statement, "statement")
    node: AnyStatement = _parse(statement.source, statement.tokens, "statement")
    return dataclasses.replace(node, span=statement.span)


def _parse(source: SpecSource, tokens: list[Lexeme], start: str) -> Any:
    from lark import UnexpectedToken  # which only a spec needs

    from .parser import parse_tokens

    try:
        return parse_tokens(source, tokens, start)
    except UnexpectedToken as error:
        from .mistakes import explained  # only a failing run pays for it

        raise explained(error, source, tokens) from None


def _refuse_bad_tokens(statement: Sentence, start: str) -> None:
    tokens = statement.tokens
    for token in tokens:
        span = statement.source.span(token.start, token.end)
        if token.kind == "odd":
            raise unknown_character(token.text, span)
        if token.kind == "odd_number":
            message = f"malformed number {shown(token.text)}"
            notes = ["numbers look like 8, 0.31M, 13.4G, 1% or 1e-5"]
            raise SpecError("VR106", message, span=span, notes=notes)
        if token.kind == "open_string":
            raise SpecError("VR105", "string is never closed", span=span)
        if start == "statement" and token is tokens[0] and token.text not in VERBS:
            raise _unknown_verb(token.text, span)
    if statement.error:
        raise statement.error


def _unknown_verb(text: str, span: Span) -> SpecError:
    notes = [f"a statement starts with one of: {listing(VERBS, 20)}"]
    suggestion = did_you_mean(text.lower(), VERBS)
    return SpecError(
        "VR111", f"no verb {shown(text)}", span=span, notes=notes, suggestion=suggestion
    )


def parse_text(source: SpecSource, start: str) -> Any:
    """The node that a start rule makes of a whole text.

    Raises:
        SpecError: what is malformed.
    """
    source.refuse_odd_characters()
    found = [statement for statement in statements(source) if statement.tokens]
    if len(found) != 1:
        message = "there must be one line" if found else "there is nothing"
        raise SpecError("VR112", message, span=source.span(0, len(source.text)))
    _refuse_bad_tokens(found[0], start)
    return _parse(source, found[0].tokens, start)
