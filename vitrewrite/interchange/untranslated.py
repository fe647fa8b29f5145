"""What an exporter could not translate: the operator, and the line of the model that it is in."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n +(?P<code>\S.*))?')
_OWN = str(Path(torch.__file__).parent)


def untranslated(error: BaseException) -> tuple[str, str]:
    """The operator that an error is about and `model.py:12: its line`; empty if not known."""
    for node in _nodes(error):
        return str(node.target), _line(node.stack_trace or "")
    return "", ""


def _nodes(error: BaseException | None) -> Iterator[fx.Node]:
    """The operators that torch's exporter was at: its errors name them, but not their lines."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, fx.Node) and node.op == "call_function":
                yield node
        error = error.__cause__


def _line(stack: str) -> str:
    """Where the model calls it: the innermost line that is not torch's."""
    for frame in reversed(list(_FRAME.finditer(stack))):
        if not frame["file"].startswith(_OWN):
            where = f"{Path(frame['file']).name}:{frame['line']}"
            return f"{where}: {frame['code'].strip()}" if frame["code"] else where
    return ""
