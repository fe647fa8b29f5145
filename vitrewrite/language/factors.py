"""`lr(decoder) = 0.1` in `tune`: what a setting is multiplied by for the parameters at sites."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vitrewrite.catalog.signatures import OptionInfo
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .expressions import Expression, Literal, literal
from .selectors import Selector
from .types import typed

KNOWN = ("lr", "weight_decay")
"""Settings that parts of a model can have their own factor of."""


@dataclass(frozen=True)
class Factor:
    """`name(sites) = value`; of several, the first one that takes a parameter holds for it."""

    name: str
    sites: Selector
    value: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({self.sites}) = {self.value}"

    @property
    def number(self) -> float:
        """The value of a resolved factor."""
        value = literal(self.value)
        assert isinstance(value, (int, float))
        return float(value)


def checked(factor: Factor) -> Factor:
    """The factor with a number; one whose value could not be resolved is wrong already.

    Raises:
        SpecError: VR234 for a setting that has no parts, VR203 or VR204 for what is no factor.
    """
    if factor.name not in KNOWN:
        raise SpecError(
            "VR234",
            f"{shown(factor.name)} is one for the whole model",
            span=factor.span,
            notes=[f"can differ by part: {listing(KNOWN)}"],
            suggestion=did_you_mean(factor.name, KNOWN),
        )
    if not isinstance(factor.value, Literal):
        return factor
    info = OptionInfo(factor.name, "float", False, False, True, minimum=0)
    label, span = f"tune.{factor.name}({factor.sites})", factor.value.span
    return replace(factor, value=Literal(typed(factor.value.value, info, label, span), span))
