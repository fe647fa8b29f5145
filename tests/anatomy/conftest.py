"""Captured models and their anatomies, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
from torch import nn

from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.tracing import trace


@cache
def _model(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@cache
def _captured(name: str) -> nn.Module:
    return trace(_model(name))


@cache
def _anatomy(name: str) -> Anatomy:
    return analyse(_captured(name))


@pytest.fixture(scope="session")
def model() -> Callable[[str], nn.Module]:
    return _model


@pytest.fixture(scope="session")
def captured() -> Callable[[str], nn.Module]:
    return _captured


@pytest.fixture(scope="session")
def anatomy() -> Callable[[str], Anatomy]:
    return _anatomy
