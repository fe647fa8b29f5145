"""Arguments of a model that it was captured for: `flag=True`, and nothing else."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from .literals import constant, quoted
from .wrap import WIDTH, wrap


def fixed_arguments(
    constants: Mapping[str, Any], example: Any, taken: Container[str]
) -> tuple[list[str], list[str]]:
    """How the head of the forward has them, and the lines that check them.

    Args:
        constants: by name.
        example: the other arguments; if it is a dict, these may stand between the constants, which
            then have to be given by name.
        taken: names that mean something else in the source.
    """
    head, checks = ["*"] if constants and isinstance(example, dict) else [], list[str]()
    for wish, value in constants.items():
        name, code = f"{wish}_" if wish in taken else wish, constant(value)
        head.append(f"{name}={code}")
        other = "is not" if value is None or isinstance(value, bool) else "!="
        said = quoted(f"captured for {wish}={value!r}, got ")
        error = wrap(f"raise ValueError({said} + repr({name}))", WIDTH - 12)
        checks += [f"if {name} {other} {code}:", *(f"    {line}" for line in error)]
    return head, checks
