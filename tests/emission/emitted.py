"""Tiny modules, and what becomes of them when they are emitted and loaded again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitrewrite as vr

INPUT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def module(forward: Callable[..., Any], /, **parts: Any) -> nn.Module:
    """A module of given parts: children, parameters and buffers."""

    class Made(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(self, x)

    made = Made()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            made._modules[name] = part
        elif isinstance(part, nn.Parameter):
            made.register_parameter(name, part)
        else:
            made.register_buffer(name, part)
    return made


def linear() -> nn.Linear:
    return nn.Linear(8, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(x)


def class_named(name: str) -> type[nn.Module]:
    """A class with a name of its own, which uses `torch`, `F` and `math`."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.fc(x)) * self.w + torch.sin(x)

    def init(self: Any) -> None:
        nn.Module.__init__(self)
        self.fc = linear()
        self.w = nn.Parameter(torch.randn(8))

    return type(name, (nn.Module,), {"__init__": init, "forward": forward})


def loaded(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("emitted", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    result: nn.Module = source.load(folder / "weights.safetensors")
    return result


def check(model: nn.Module, folder: Path, example: torch.Tensor = INPUT) -> nn.Module:
    """Emits a model and loads it: the same outputs, keys, dtypes, and things with two names."""
    model.eval()
    rewritten = vr.apply("# no clauses\n", model, example=example)
    vr.emit(rewritten, folder)
    twin = loaded(folder)
    with torch.no_grad():
        wanted, found = model(example), twin(example)
    pairs = zip(wanted, found, strict=True) if isinstance(wanted, tuple) else [(wanted, found)]
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    before, after = model.state_dict(), twin.state_dict()
    assert list(before) == list(after)
    assert {k: v.dtype for k, v in before.items()} == {k: v.dtype for k, v in after.items()}
    assert len(list(model.parameters())) == len(list(twin.parameters()))
    assert len(list(model.modules())) >= len(list(twin.modules()))
    return twin
