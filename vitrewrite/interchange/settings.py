"""Names of layers as `adapter_config.json` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""


def chosen(targets: Sequence[str], names: Iterable[str], *, dots: bool = True) -> list[str] | str:
    """The layers as a list, or as a regular expression where PEFT would take others for them too.

    In a list PEFT looks for the end of each layer's name.

    Args:
        targets: the layers.
        names: of all modules.
        dots: whether an end begins at a dot.
    """
    ends = tuple(f".{target}" if dots else target for target in targets)
    if ends and any(name.endswith(ends) and name not in targets for name in names):
        return f"(?:{'|'.join(map(re.escape, targets))})"
    return list(targets)


def anchored(target: str, names: Iterable[str]) -> str:
    """The key of a layer in a pattern, which PEFT takes for the end of a name, too."""
    if any(name.endswith(f".{target}") for name in names):
        return f"^{re.escape(target)}"
    return target


def value_for(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of a layer by patterns, as PEFT looks it up: the first that fits its end.

    Raises:
        ValueError: for a pattern that is no regular expression.
    """
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression") from error
    return default
