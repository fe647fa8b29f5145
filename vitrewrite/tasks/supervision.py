"""Models that return, when asked to, what only their loss needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..catalog.models import HUGGING_FACE
from ..errors import Span
from ..language.expressions import Literal
from ..language.model import Spec
from ..language.selectors import Option
from ..models import hugging_face

_NOWHERE = Span("", 1, 1, 1, 1)


def supervised(spec: Spec, model: Any = None) -> Spec:
    """The spec, so that its model returns every prediction that the loss supervises.

    A query decoder predicts after every layer; by default it returns the last prediction only.
    What the spec or an override says about it holds.

    Args:
        spec: names the model.
        model: a name or a module, if not the spec's own; a module is what it is.

    Raises:
        MatchError: VR310 to VR313 if the model cannot be had.
    """
    own = spec.model if model is None else None
    name = own.name if own is not None else model
    if not isinstance(name, str) or not name.startswith(HUGGING_FACE):
        return spec
    given = {**(own.values if own is not None else {}), **spec.model_arguments}
    more = [
        Option(key, Literal(value, _NOWHERE), _NOWHERE)
        for key, value in hugging_face.supervised(name).items()
        if key not in given
    ]
    return replace(spec, model_overrides=(*spec.model_overrides, *more))
