"""The model that an emitted text builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def emitted_twin(text: str, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Executes the text of `model.py`, builds its model and loads a state, strictly."""
    space: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(text, "model.py", "exec", dont_inherit=True), space)
    twin: nn.Module = space["build"]()
    twin.load_state_dict(dict(state))
    return twin
