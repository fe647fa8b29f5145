"""The user's own model: the object that was given, or the model of that name built again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .. import models
from ..errors import VitrewriteError
from ..tracing import inputs
from ..tracing.about import about

if TYPE_CHECKING:
    import torch

    from ..rewrite.rewritten import Rewritten


def own_model(rewritten: Rewritten) -> nn.Module | str:
    """The module whose forward was captured, or why it is not to be had."""
    if rewritten.original is not None:
        return rewritten.original
    name = rewritten.model_name
    if rewritten.weights_request == "given":
        return f"a {name} object was given, which no name builds again"
    if not rewritten.buildable:
        return f"building '{name}' runs code that was not named here"
    try:
        model = models.create(name, rewritten.model_options, initialise=False)
        models.load_state(model, rewritten.base.state_dict(), name, share=True)
    except VitrewriteError as error:
        return error.message
    return model


def call_own(rewritten: Rewritten, model: nn.Module, values: tuple[torch.Tensor, ...]) -> Any:
    """Calls the user's module as it was called for the capture, keywords as keywords."""
    known = about(rewritten.base)
    args, kwargs = inputs.as_arguments(known.example)
    given = iter(values)
    positional = [next(given) for _ in args]
    return model(*positional, **{key: next(given) for key in kwargs}, **known.constants)
