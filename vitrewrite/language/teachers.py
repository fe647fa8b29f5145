"""`teacher = MODEL(weights=...)` in `tune`: which model a run learns from."""

from __future__ import annotations

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import shown

from .expressions import Expression, Literal, Name, map_expressions
from .model import Model
from .parse import parse_text
from .references import ModelRef
from .scope import Scope
from .source import SpecSource


def teacher_ref(text: str, span: Span | None = None) -> ModelRef:
    """The model that a text names; a word in its arguments needs no quotes.

    Args:
        text: such as `regnety_160(weights=pretrained)`; `base` and entries are names alone.
        span: where it stands.

    Raises:
        SpecError: VR233 if it names none.
    """
    scope = Scope()

    def value(given: Expression) -> Expression:
        words = (given.id,) if isinstance(given, Name) else ()
        return Literal(scope.evaluate(given, words), given.span)

    try:
        statement = parse_text(SpecSource("<teacher>", f"model {text}"), "statement")
        assert isinstance(statement, Model)
        return map_expressions(statement.ref, value)
    except SpecError as error:
        raise SpecError(
            "VR233",
            f"{shown(text)} names no teacher: {error.message}",
            span=span,
            suggestion="write 'base', an entry of the model, or NAME(weights=pretrained)",
        ) from error
