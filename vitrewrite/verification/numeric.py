"""Numbers behind the claims: differences between models that should be equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..editing.narrowing import piece
from ..emission.realise import realise
from ..rewrite.initial import draw
from ..tracing.unit import duplicate
from .runs import Casts, Outcome, Situation, apart, outcome

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten


def sample(
    rewritten: Rewritten,
    batch: int = 2,
    seed: int = 0,
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Random inputs of the model's own shapes, or of `shapes`, to which the batch is added.

    The images of a smaller batch are the first ones of a larger one.
    """
    example = rewritten.result.example
    device = next((p.device for p in rewritten.module.parameters()), torch.device("cpu"))
    found = []
    for k, value in enumerate(example):
        shape = value.shape[1:] if shapes is None else shapes[k]
        images = torch.empty(
            (batch, *shape), dtype=value.dtype
        )  # fails at once if there are too many
        for i, image in enumerate(images):
            image.copy_(_image(shape, value.dtype, 10_000 * seed + 100 * k + i))
        found.append(images.to(device))
    return tuple(found)


def _image(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Numbers of a normal distribution; of an input of integers zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)


def difference(first: nn.Module, second: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest absolute difference of the outputs, in eval mode."""
    return apart(*_outputs(first, second, inputs))


def relative(first: nn.Module, second: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest difference of the outputs over the largest output of the first, in eval mode."""
    return over_largest(*_outputs(first, second, inputs))


def over_largest(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Largest difference of two outputs over the largest number in the first."""
    scale = max((float(t.abs().max()) for t in first if t.numel()), default=0.0)
    return apart(first, second) / (scale or 1.0)


def _outputs(
    first: nn.Module, second: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    a, b = (given(outcome(m, lambda m: m(*inputs), Situation())) for m in (first, second))
    return a, b


def given(result: Outcome) -> list[torch.Tensor]:
    """The tensors of an output.

    Raises:
        Exception: what the model raised instead.
    """
    if isinstance(result, Exception):
        raise result
    return result


def tensors(value: Any, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The tensors in an output, nested in tuples, lists and dicts, in order and in one dtype."""
    if isinstance(value, torch.Tensor):
        return [value.to(dtype)]
    items = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list, tuple))
    return [t for item in items for t in tensors(item, dtype)] if nested else []


# -- copies with other parameters -----------------------------------------------------------------


def at_start(rewritten: Rewritten) -> Rewritten:
    """The model as it is drawn at first: itself if it is so still, else a copy.

    Args:
        rewritten: not a lowered one.
    """
    twin = _copy(rewritten, lambda old, inserted: old.detach().clone() if inserted else old)
    draw(twin.result, rewritten.seed)
    base = rewritten.base.state_dict()
    for name in rewritten.result.base_trained & base.keys():
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(piece(twin.result.editor, name, base[name].detach()))
        twin.module.get_submodule(owner)._parameters[leaf] = parameter
    now, then = (m.module.state_dict() for m in (rewritten, twin))
    same = all(_alike(t, now[k]) for k, t in then.items() if _moves(k, twin))
    return rewritten if same else twin


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether kernels make the same of two tensors: they round by where in a cache line one is."""
    places = [t.data_ptr() % _LINE if t.device.type == "cpu" else 0 for t in (one, other)]
    return places[0] == places[1] and torch.equal(one, other)


_LINE = 64  # bytes


def starts_equal(rewritten: Rewritten) -> bool:
    """Whether every clause claims, at every site, to leave the output as it is at first."""
    claim = "same_output_at_init"
    added = [s for s in rewritten.result.steps if s.change != "~"]
    made = all(claim in s.claims and not s.waived.get(claim) for s in added)
    return made and not rewritten.lowered


def _moves(name: str, rewritten: Rewritten) -> bool:
    """Whether training may change a tensor."""
    paths = tuple(f"{i.path}." for i in rewritten.result.editor.insertions)
    return name.startswith(paths) or name in rewritten.result.base_trained


def randomised(
    rewritten: Rewritten,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    casts: Casts | None = None,
) -> Rewritten:
    """A copy whose inserted parameters are all random, so that no branch is zero.

    The units of a copy keep their printed classes. What is in another dtype already is shared.
    """
    generator = torch.Generator().manual_seed(seed)
    casts = casts or Casts()

    def value(old: nn.Parameter, inserted: bool) -> torch.Tensor:
        new = old.detach()
        if inserted:
            spread = 0.3 / max(old.shape[-1], 1) ** 0.5
            new = (torch.randn(old.shape, generator=generator) * spread).to(new)
        if dtype is None:
            return new
        return new.to(dtype) if inserted else casts.of(new, dtype)

    return _copy(rewritten, value, dtype)


def _copy(rewritten: Rewritten, value: Any, dtype: torch.dtype | None = None) -> Rewritten:
    """A copy with parameters of `value(old, whether a pass put it in)`."""
    own = {id(p) for i in rewritten.result.editor.insertions for p in i.module.parameters()}

    def parameter(old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(value(old, id(old) in own), requires_grad=old.requires_grad)

    def buffer(old: torch.Tensor) -> torch.Tensor:
        return old.to(dtype) if dtype and old.is_floating_point() else old.clone()

    root = duplicate(rewritten.module, parameter, buffer)
    result = replace(rewritten.result, root=root, editor=rewritten.result.editor.on(root))
    return replace(rewritten, module=root, result=result)


# -- lowering and claims --------------------------------------------------------------------------


def lowering_error(
    rewritten: Rewritten, dtype: torch.dtype = torch.float32, casts: Casts | None = None
) -> float:
    """Relative error of the lowered model with random inserted parameters, on one image."""
    twin = randomised(rewritten, dtype=dtype, casts=casts)
    return over_largest(*(eager(m, rewritten, dtype) for m in (twin.module, lowered_of(twin))))


def lowered_of(twin: Rewritten) -> nn.Module:
    """The lowered form of a copy."""
    from ..rewrite.lowering import lowered_tree

    lowered, _ = lowered_tree(twin)
    realise(lowered)
    return lowered


def eager(module: nn.Module, rewritten: Rewritten, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output for one image in a dtype, in eval mode."""
    values = (v.to(dtype) if v.is_floating_point() else v for v in sample(rewritten, 1))
    return given(outcome(module, lambda m: m(*values), Situation()))


def measure_claim(rewritten: Rewritten, metric: str) -> Any:
    """The number that `identity`, `lowers` or `max_error` is about."""
    if metric == "identity":
        own = rewritten.original or rewritten.base
        return difference(own, rewritten.module, sample(rewritten, 1))
    return lowering_error(rewritten)
