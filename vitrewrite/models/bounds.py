"""What no model has: sizes that would take for ever to build, or all memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import MatchError

_LARGEST = 100_000_000
_LARGEST_OF = {
    **dict.fromkeys(("depth", "depths", "num_layers", "num_hidden_layers"), 2_000),
    **dict.fromkeys(
        ("hidden_size", "hidden_sizes", "embed_dim", "embed_dims", "intermediate_size", "dim"),
        1_000_000,
    ),
    **dict.fromkeys(("num_labels", "num_classes"), 1_000_000),
}


def refuse_huge(name: str, options: Mapping[str, Any]) -> None:
    """Refuses arguments of a constructor, or a configuration with all its parts.

    Raises:
        MatchError: VR316 for one that no model has.
    """
    for key, value in options.items():
        if isinstance(value, Mapping):
            refuse_huge(name, value)
            continue
        limit = _LARGEST_OF.get(key, _LARGEST)
        for number in value if isinstance(value, (list, tuple)) else (value,):
            whole = isinstance(number, int) or (isinstance(number, float) and key in _LARGEST_OF)
            if whole and abs(number) > limit:
                raise MatchError(
                    "VR316",
                    f"'{name}' cannot be built with {key}={str(value)[:30]}: "
                    f"no model has more than {limit:,}",
                )
