"""What a spec that cannot be carried out is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import vitrewrite as vr


def expect_refusal(
    spec: str, model: nn.Module, code: str, words: str, how: Callable[..., Any] = vr.plan
) -> None:
    """Has a spec refused by `how`, with a code and with words in what is printed."""
    with pytest.raises(vr.VitrewriteError) as caught:
        how(spec, model)
    assert code in caught.value.render()
    assert words in caught.value.render()
