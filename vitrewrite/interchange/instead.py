"""Functions of torch that are another one while a model is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .attention import attended
from .lengths import spread

Instead = Mapping[Callable[..., Any], Callable[..., Any]]
FOR_ALL: Instead = {torch.linspace: spread}
FOR_ONNX: Instead = {**FOR_ALL, F.scaled_dot_product_attention: attended}


class Replaced(TorchFunctionMode):
    """While it is entered, each function in a table is the one that stands behind it.

    Those call the originals themselves: a mode is left while it handles a call.
    """

    def __init__(self, instead: Instead) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What torch does, or what the table has for it."""
        return self.instead.get(func, func)(*args, **(kwargs or {}))
