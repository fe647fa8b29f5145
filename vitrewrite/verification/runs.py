"""One model run in one situation, and what two of them differ by.

A run leaves the module as it was: detached parameters and copied buffers stand in for its own (cast
where another dtype is asked for), and modes, attributes and the random state come back afterwards.
So the user's own module can be run in training mode, statistics of its batch norms included.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..tracing.state import preserved
from ..tracing.undisturbed import seed

SEED = 0

Outcome = list[torch.Tensor] | Exception
"""The tensors of an output, in order, or why there are none."""


@dataclass(frozen=True)
class Situation:
    """How a model is called.

    Attributes:
        batch: number of images.
        training: in training mode, with the random state of `SEED`.
        dtype: of weights and inputs; by default the model's own.
        shapes: of the inputs without their batch; by default those that it was captured with.
        fused: whether torch's attention modules may take their own kernels, as they do in eval.
    """

    batch: int = 1
    training: bool = False
    dtype: torch.dtype | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    fused: bool = False

    def __str__(self) -> str:
        words = [f"{self.batch} image{'s' if self.batch > 1 else ''}"]
        if self.shapes is not None:
            words = ["input " + "x".join(map(str, self.shapes[0]))]
        if self.training:
            words.insert(0, "training at equal seed")
        if self.dtype is not None:
            words.append(str(self.dtype).removeprefix("torch."))
        return ", ".join(words)


class Casts:
    """Tensors in other dtypes, made once for all that share a tensor."""

    def __init__(self) -> None:
        # With what they were made of, so that nothing else comes to lie there.
        self._made: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The numbers of a tensor, which nobody writes into."""
        if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
            return tensor.to(dtype)  # where its numbers lie is its own affair
        version = 0 if tensor.is_inference() else tensor._version  # those have none
        place = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
        key = (*place, tensor.dtype, version, dtype)
        if key not in self._made:
            self._made[key] = tensor, tensor.to(dtype)
        return self._made[key][1]


@torch.no_grad()
def outcome(
    module: nn.Module,
    call: Callable[[nn.Module], Any],
    situation: Situation,
    still: Collection[nn.Module] = (),
    casts: Casts | None = None,
) -> Outcome:
    """What a module yields.

    Args:
        module: which; it is left as it was.
        call: calls it.
        situation: its mode and dtype.
        still: modules in it that are in eval mode all the same.
        casts: tensors in other dtypes, which models share that share their tensors.
    """
    with _standing_in(module, situation, casts), _same_ground(module, situation.fused):
        for child in module.modules():
            child.training = situation.training and child not in still
        seed(SEED)
        try:
            return list(tensors(call(module)))
        except Exception as error:  # a model may raise anything
            return error


@contextmanager
def _standing_in(module: nn.Module, situation: Situation, casts: Casts | None) -> Iterator[None]:
    """Detached parameters and copied buffers in place of the module's own.

    torch multiplies a transposed [B, N, C] by a weight in one of two ways, which round differently,
    and takes `requires_grad` of the weight as a hint, also where no gradients are computed: here no
    parameter has it.
    """
    made: dict[int, Any] = {}
    casts = Casts() if casts is None else casts

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if situation.dtype is None or not tensor.is_floating_point():
            return tensor.detach()
        return casts.of(tensor.detach(), situation.dtype)

    with preserved(module):
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(cast(parameter), requires_grad=False)
                    child._parameters[name] = made[id(parameter)]
            for name, buffer in child._buffers.items():
                if buffer is not None:
                    child._buffers[name] = made.setdefault(id(buffer), cast(buffer).clone())
        yield


@contextmanager
def _same_ground(module: nn.Module, fast: bool) -> Iterator[None]:
    """Random state put back, no fused kernels of attention modules, no warnings of the model's.

    The fused kernels, which `nn.MultiheadAttention` takes in eval mode only, round differently.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with seeds_kept(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(fast)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def seeds_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Torch's random state comes back, on the devices of a module too."""
    devices = {t.device for t in (*module.parameters(), *module.buffers()) if t.is_cuda}
    return torch.random.fork_rng(sorted(devices, key=str))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an output, nested in tuples, lists, dicts and objects, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors(vars(value))


def apart(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Largest difference of two outputs; infinite for other shapes, dtypes or numbers of tensors.

    Equal infinities are no difference; what is not a number differs from everything.
    """
    if len(first) != len(second):
        return math.inf
    return max((_apart(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not a.numel() or torch.equal(a, b):
        return 0.0
    wide = a.dtype if a.is_complex() else torch.promote_types(a.dtype, torch.float32)
    difference = torch.where(a == b, 0, (a.to(wide) - b.to(wide)).abs())
    largest = float(difference.max())
    return largest if math.isfinite(largest) else math.inf
