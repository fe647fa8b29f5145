"""Models that a spec names, with arguments for their constructors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from vitrewrite.catalog.models import refuse_unknown
from vitrewrite.errors import MatchError, Span

from .declarations import written
from .expressions import Literal, literal
from .inputs import INPUT, checked
from .selectors import Option, values_of
from .values import Value, show


def stated(option: Option) -> Option:
    """An argument of a model, checked if it is its input.

    Raises:
        SpecError: VR231.
    """
    value = option.value
    if option.name != INPUT or not isinstance(value, Literal):
        return option
    return replace(option, value=Literal(checked(value.value, value.span), value.span))


def arguments_of(options: tuple[Option, ...]) -> dict[str, Value]:
    """The arguments of a resolved model, its input left out."""
    return {name: value for name, value in values_of(options).items() if name != INPUT}


def input_of(options: tuple[Option, ...]) -> str | None:
    """What a resolved model is called with, if that is stated."""
    found = [literal(option.value) for option in options if option.name == INPUT]
    return str(found[0]) if found else None


@dataclass(frozen=True)
class ModelRef:
    """A model by name, with arguments for its constructor.

    Attributes:
        label: what a `stitch` clause calls it, if it says so.
    """

    name: str
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)
    label: str = ""

    def __str__(self) -> str:
        plain = self.name and not set(self.name) & set(" \t(),#'\"\\") and self.name != "with"
        name = self.name if plain else show(self.name)
        text = written(name, self.options) if self.options else name
        return f"{self.label}={text}" if self.label else text

    def extended(self, more: tuple[Option, ...]) -> ModelRef:
        """With other arguments, which replace those of the same name."""
        options = {option.name: option for option in (*self.options, *more)}
        return replace(self, options=tuple(options.values()))

    def stated(self) -> ModelRef:
        """With its input in the one form that `inputs.read_shapes` reads.

        Raises:
            SpecError: VR231 if what is stated is none.
        """
        return replace(self, options=tuple(map(stated, self.options)))

    def place_of(self, text: str) -> Span:
        """Where the argument stands that a text is about; if that is not clear, the model."""
        arguments = [o for o in self.options if o.name != INPUT]
        named = [o for o in arguments if re.search(rf"\b{re.escape(o.name)}\b", text)]
        guilty = named or arguments
        return guilty[0].span if len(guilty) == 1 else self.span

    def refuse_unknown(self) -> None:
        """Refuses a name that nobody knows, without building anything.

        Raises:
            MatchError: VR310, at this place.
        """
        try:
            refuse_unknown(self.name)
        except MatchError as error:
            error.span = self.span
            raise

    @property
    def values(self) -> dict[str, Value]:
        """The arguments of a resolved model, for its constructor."""
        return arguments_of(self.options)

    @property
    def input(self) -> str | None:
        """What it is called with, if that is stated."""
        return input_of(self.options)
