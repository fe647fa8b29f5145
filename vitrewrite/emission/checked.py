"""The source of a rewritten model is run before anybody gets it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import EmitError
from ..text import first_line
from ..tracing.leaves import is_inserted, is_torch_class
from ..tracing.tree import leaves
from ..tracing.undisturbed import same_randomness, seed
from . import layers
from .twin import emitted_twin, running

_CHECKED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Modules whose text has been run, by the text."""


def check_text(text: str, module: nn.Module, example: Sequence[Any]) -> None:
    """Makes the model of a text, gives it the module's state and compares one forward, in eval.

    A text that was found good for the module is not run again.

    Args:
        text: of a `model.py`.
        module: what it was printed from; it is not changed.
        example: inputs; only their shapes and dtypes matter.

    Raises:
        EmitError: VR806 or VR807 as `emitted_twin`; VR808 if the outputs differ, VR809 if the
            module itself does not run.
    """
    if _CHECKED.get(module) == text:
        return
    twin = emitted_twin(text, module.state_dict())
    if other := _other_setting(module, twin):
        raise _differs(f"makes {other}")
    inputs = _inputs(module, example)
    wanted = _output(module, inputs)
    with _like(twin, module), running(text):
        found = _run(twin, inputs)
    if wrong := _difference(wanted, found):
        raise _differs(f"computes something else than the model: {wrong}")
    found_good(text, module)


def _differs(how: str) -> EmitError:
    return EmitError(
        "VR808",
        f"the source that was printed {how}",
        suggestion="nothing was written; please report the model and the spec",
    )


def _other_setting(module: nn.Module, twin: nn.Module) -> str:
    """The first layer that has another option in a twin, in words: a rate, a stride, an epsilon.

    One forward in eval would not show what acts in training alone.
    """
    known = dict(twin.named_modules(remove_duplicate=False))
    for path, own in module.named_modules(remove_duplicate=False):
        other = known.get(path)
        if other is None or is_inserted(own):
            continue
        for name, value in _settings(own, other).items():
            found = _settings(other, other).get(name)
            if not _is_same(value, found):
                return f"'{path}' with {name} = {found} instead of {value}"
    return ""


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Have no options, and may be empty."""


def _settings(module: nn.Module, twin: nn.Module) -> dict[str, Any]:
    """The options of a layer of torch, or what an instance of a printed class was made with."""
    if is_torch_class(type(module)):
        holds = module._modules or isinstance(module, _CONTAINERS)
        return {} if holds else layers.arguments(module)
    plain = (bool, int, float, str)
    names = (k for k, v in twin.__dict__.items() if k[0] != "_" and isinstance(v, plain))
    return {k: module.__dict__[k] for k in names if k in module.__dict__ and k != "training"}


def _is_same(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)


def found_good(text: str, module: nn.Module) -> None:
    """Notes that a text makes the module, so that it is not run again."""
    _CHECKED[module] = text


def _inputs(module: nn.Module, example: Sequence[Any]) -> tuple[Any, ...]:
    """A batch of two, random where the input is; zeros for indices, which are always in range."""
    tensors = (*module.parameters(), *module.buffers())
    device = next((t.device for t in tensors), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def one(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = (2, *value.shape[1:]) if value.dim() else ()
        if not (value.is_floating_point() or value.is_complex()):
            return torch.zeros(shape, dtype=value.dtype, device=device)
        made = torch.randn(shape, generator=generator, dtype=torch.float32)
        return made.to(device=device, dtype=value.dtype)

    return tuple(map(one, example))


def _output(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    try:
        return _run(module, inputs)
    except Exception as error:  # of the model, or of a pass
        message = f"the model itself does not run: {first_line(error)}"
        raise EmitError("VR809", message) from error


@torch.no_grad()
def _run(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The output in eval mode, with the module left in the modes that it was in."""
    trained = [m for m in module.modules() if m.training]
    with same_randomness():
        seed(0)  # for what draws in eval mode, too
        try:
            return module.eval()(*(v.clone() if isinstance(v, torch.Tensor) else v for v in inputs))
        finally:
            for each in trained:
                each.training = True


@contextmanager
def _like(twin: nn.Module, module: nn.Module) -> Iterator[None]:
    """Lets the same parameters be trained: torch chooses kernels by that, which round differently.

    It is asked for also where no gradients are computed.
    """
    wanted = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in twin.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(wanted[name].requires_grad)
    yield


def _difference(wanted: Any, found: Any) -> str:
    """What differs, in words; equal are also two values that are not numbers."""
    pairs = list(zip(leaves(wanted), leaves(found), strict=False))
    if len(pairs) != len(list(leaves(wanted))) or len(pairs) != len(list(leaves(found))):
        return "another number of outputs"
    for a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{tuple(b.shape)} {b.dtype} instead of {tuple(a.shape)} {a.dtype}"
        if a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num()):
            continue
        error = float((a.nan_to_num().float() - b.nan_to_num().float()).abs().max())
        if a.device.type == "cpu" or error > 1e-4 * float(a.nan_to_num().abs().max()):
            return f"difference {error:.3g}"
    return ""
