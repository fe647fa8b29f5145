"""State of any shape as JSON and named tensors: what checkpoints are made of, without pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_TENSOR = "tensor"


def pack(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """The value with every tensor replaced by its name; the tensors go to `tensors`.

    Args:
        value: dicts with string keys, lists, numbers, strings, booleans, None and tensors.
        path: what names start with.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path, "shape": list(value.shape), "dtype": str(value.dtype)[6:]}
    if isinstance(value, dict):
        return {_key(k): pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint: {path}")


def _key(key: object) -> str:
    if isinstance(key, str) and key != _TENSOR:
        return key
    raise TypeError(f"{key!r} cannot be a key in a checkpoint")


def unpack(value: Any, get: Callable[[str], torch.Tensor]) -> Any:
    """What `pack` was given, with tensors from `get(name)`; tuples come back as lists."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return get(value[_TENSOR])
        return {k: unpack(v, get) for k, v in value.items()}
    if isinstance(value, list):
        return [unpack(v, get) for v in value]
    return value


def named(value: Any) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shapes and dtypes of the tensors in what `pack` returned, by name."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return {value[_TENSOR]: (value["shape"], getattr(torch, value["dtype"]))}
        value = list(value.values())
    found: dict[str, tuple[list[int], torch.dtype]] = {}
    for item in value if isinstance(value, list) else ():
        found |= named(item)
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one; all ranks must ask for it together."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What an optimiser remembers of each parameter, by the parameter's name."""
    pairs = (
        (name, optimiser.state[p])
        for group in optimiser.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
        if p in optimiser.state
    )
    return {name: dict(state) for name, state in pairs}


def counts(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """The steps that an optimiser counts by group rather than by parameter.

    Some count in an integer, some (LAMB) in a tensor, which is a float here.
    """
    steps = {g["name"]: g["step"] for g in optimiser.param_groups if "step" in g}
    return {k: v if type(v) is int else float(v) for k, v in steps.items()}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, state: dict[str, dict[str, Any]], steps: dict[str, float]
) -> None:
    """Gives an optimiser over the same parameters the state of another."""
    known = optimiser.state_dict()
    names = [name for group in optimiser.param_groups for name in group["names"]]
    known["state"] = {i: state[name] for i, name in enumerate(names) if name in state}
    optimiser.load_state_dict(known)
    for group in optimiser.param_groups:
        if group["name"] in steps:
            step = steps[group["name"]]
            group["step"] = torch.tensor(step) if isinstance(step, float) else step
