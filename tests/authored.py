"""Passes that a test writes, installed as those of another package."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vitrewrite import catalog

HEAD = """
from dataclasses import dataclass
from typing import Any, ClassVar
import torch
from torch import nn
from vitrewrite.authoring import Pass, option
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, **passes: str) -> None:
    """Makes passes known by name, each the text of a module without its imports.

    Names must differ between tests: Python keeps the modules.
    """
    entries = []
    for name, text in passes.items():
        (folder / f"authored_{name}.py").write_text(HEAD + text)
        module = f"authored_{name}"
        entries.append(SimpleNamespace(name=name, module=module, value=module))
    monkeypatch.setattr(catalog, "_installed", lambda: tuple(entries))
    monkeypatch.syspath_prepend(folder)


def branch(name: str, cls: str, forward: str, claims: str = "()", more: str = "") -> str:
    """A pass for linear layers whose module has a vector `scale`, drawn as zeros."""
    return f'''
class {cls}Module(nn.Module):
    inserted_by = "{name}"
    changes = (1,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.zeros(width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.zeros_(self.scale)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return {forward}


@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear",)
    claims: ClassVar[tuple[str, ...]] = {claims}

    def rewrite(self, linear: Any) -> None:
        linear.parallel({cls}Module(linear.out_features))

    def delta(self, module: Any) -> list[dict[str, torch.Tensor]]:
        return [dict(module.named_parameters())]
{more}
'''
