"""What stands behind the `?` in `data=NAME?key=value&key=value`: which images of a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..text import did_you_mean, listing, shown


@dataclass(frozen=True)
class Choice:
    """Which images of a source are trained on and measured on.

    Attributes:
        images: how many are drawn of those to train on, before anything else.
        val: share of each class that is held out of these to measure on.
        fold: which of `folds` parts of each class is measured on.
        shots: images per class that are trained on, drawn of what is left.
        draw: which draw it is, of all of these.
    """

    images: int | None = None
    val: float | None = None
    fold: int | None = None
    folds: int | None = None
    shots: int | None = None
    draw: int = 0


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "images": (int, "a number of images"),
    "val": (float, "a share between 0 and 1"),
    "fold": (int, "a number from 0 to folds - 1"),
    "folds": (int, "2 or more"),
    "shots": (int, "a number of images per class"),
    "draw": (int, "0 or more"),
}
_LEAST = {"images": 1, "fold": 0, "folds": 2, "shots": 1, "draw": 0}


def parsed(name: str) -> tuple[str, Choice]:
    """The source and which of its images.

    Raises:
        DataError: VR750 for a key that there is not, a value it cannot have, or two that exclude
            each other.
    """
    source, _, text = name.partition("?")
    values: dict[str, Any] = {}
    for pair in text.split("&") if text else ():
        key, _, value = pair.partition("=")
        if key not in _KINDS:
            raise DataError(
                "VR750",
                f"data has no option {shown(key)}",
                notes=[f"options: {listing(_KINDS)}"],
                suggestion=did_you_mean(key, _KINDS),
            )
        if key in values:
            raise DataError("VR750", f"the option '{key}' of data is given twice")
        values[key] = _value(key, value)
    _check_together(values)
    return source, Choice(**values)


def _value(key: str, text: str) -> Any:
    kind, valid = _KINDS[key]
    try:
        value = kind(text)
        if value >= _LEAST[key] if key in _LEAST else 0 < value < 1:
            return value
    except ValueError:
        pass
    message = f"data cannot have {key}={shown(text)}"
    raise DataError("VR750", message, notes=[f"valid: {valid}"])


def _check_together(values: dict[str, Any]) -> None:
    given = [name for name in ("fold", "folds") if name in values]
    if len(given) == 1:
        message = f"data has {given[0]}={values[given[0]]} alone"
        raise DataError("VR750", message, suggestion="write fold=0&folds=5")
    if given and "val" in values:
        raise DataError("VR750", "data has val and fold, which both say what is measured on")
    if given and values["fold"] >= values["folds"]:
        message = f"data has no fold {values['fold']} of {values['folds']}"
        raise DataError("VR750", message, notes=[f"valid: 0..{values['folds'] - 1}"])
