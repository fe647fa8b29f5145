"""What an exporter could not translate: the operator, and the line of the model that it is in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

_NODE = re.compile(r"%(?P<name>\w+)[^\n]*?\[target=(?:torch\.ops\.)?(?P<operator>[\w.]+)\]")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n +(?P<code>\S.*))?')
_OWN = str(Path(torch.__file__).parent)


def untranslated(error: BaseException, program: torch.export.ExportedProgram) -> tuple[str, str]:
    """The operator that an error is about and `model.py:12: its line`; empty if not known."""
    for text in map(str, _causes(error)):
        if found := _NODE.search(text):
            operator = found["operator"]
            return operator, _line(program, found["name"], operator)
    return "", ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(program: torch.export.ExportedProgram, name: str, operator: str) -> str:
    """Where the model calls it: the innermost line that is not torch's."""
    nodes = [node for node in program.graph.nodes if str(node.target) == operator]
    # Decomposing mostly keeps names; another node of that operator fails for the same reason.
    nodes.sort(key=lambda node: node.name != name)
    for node in nodes:
        frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
        for frame in reversed(frames):
            if not frame["file"].startswith(_OWN):
                where = f"{Path(frame['file']).name}:{frame['line']}"
                return f"{where}: {frame['code'].strip()}" if frame["code"] else where
    return ""
