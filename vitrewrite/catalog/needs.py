"""When an option has an effect: conditions on the other options, such as `optimiser == 'sgd'`.

They are written as Python and read without running anything, since `catalog` and `check` must not
import torch: names of options, texts, numbers, comparisons, `in`, `and`, `or`, `not`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Compare, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name,
    ast.Load, ast.Constant, ast.Tuple,
)  # fmt: skip


def names_in(condition: str) -> set[str]:
    """The options that a condition is about.

    Raises:
        ValueError: if it is no condition.
    """
    try:
        tree = ast.parse(condition, mode="eval")
    except SyntaxError as error:
        raise ValueError(error.msg) from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise ValueError(f"a {type(node).__name__} is none of its parts")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def holds(condition: str, values: Mapping[str, Any]) -> bool:
    """Whether options have an effect where the others are `values`."""
    names_in(condition)
    return bool(eval(condition, {"__builtins__": {}}, dict(values)))
