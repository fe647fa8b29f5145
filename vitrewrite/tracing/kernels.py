"""What torch's usual layers and functions make of shapes.

Their own meta kernels are decompositions in Python, which take a millisecond or more, for results
that have the shape of an argument. Only the plain case is here: contiguous tensors of one floating
dtype. Whatever else there is goes to torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Shape = tuple[int, ...]


def of_layer(
    layer: nn.Module, *args: Any, cls: type[nn.Module] | None = None
) -> torch.Tensor | None:
    """The output of a layer whose state is on meta, or None if torch has to say.

    Args:
        layer: a leaf.
        args: what it is called with.
        cls: the layer of torch's that it computes like; by default its own class.
    """
    shape_of = _LAYERS.get(cls or type(layer))
    if shape_of is None or len(args) != 1:
        return None
    x = args[0]
    state = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
    if not _plain(x, *(t for t in state if t.is_floating_point())):
        return None
    return _empty(shape_of(layer, x.shape), x)


def of_recurrent(layer: nn.Module, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    """Outputs and last states of a recurrent layer, of which torch runs every step, or None.

    Args:
        layer: `nn.RNN`, `nn.LSTM` or `nn.GRU`.
        dtype: that of its weights.
        args: a batch of sequences; whatever else is given, torch has to say.
        kwargs: likewise.
    """
    known = type(layer) in (nn.RNN, nn.LSTM, nn.GRU) and len(args) == 1 and not kwargs
    if not known or not _plain(*args) or args[0].dim() != 3:
        return None
    x, made = args[0], torch.empty
    assert isinstance(layer, nn.RNNBase)
    first, second = (x.transpose(0, 1) if layer.batch_first else x).shape[:2]
    ways, width = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
    if x.shape[2] != layer.input_size or dtype != x.dtype:
        return None
    output = made((first, second, ways * width), dtype=dtype, device="meta")
    hidden, cell = (
        made((ways * layer.num_layers, second, w), dtype=dtype, device="meta")
        for w in (width, layer.hidden_size)
    )
    output = output.transpose(0, 1) if layer.batch_first else output
    return output, (hidden, cell) if type(layer) is nn.LSTM else hidden


def of_function(target: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The result of a function on meta tensors, or None if torch has to say."""
    shape_of = _FUNCTIONS.get(target)
    if shape_of is None or not args or not _plain(args[0]):
        return None
    try:
        shape = shape_of(*args, **kwargs)
    except TypeError:  # called in some other way
        return None
    return _empty(shape, args[0])


def _pointwise(x: torch.Tensor, y: Any) -> Shape | None:
    if not isinstance(y, torch.Tensor):
        return x.shape if type(y) in (int, float) else None
    if not _plain(x, y):
        return None
    if x.shape == y.shape:
        return x.shape
    fits = len(x.shape) == len(y.shape) and all(
        b in (1, a) for a, b in zip(x.shape, y.shape, strict=True)
    )
    return x.shape if fits else None


def _norm(
    x: torch.Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 0.0
) -> Shape | None:
    own = tuple(normalized_shape)
    state = [t for t in (weight, bias) if t is not None]
    fits = tuple(x.shape[-len(own) :]) == own and all(tuple(t.shape) == own for t in state)
    return x.shape if fits and _plain(x, *state) else None


def _roll(x: torch.Tensor, shifts: Any, dims: Any) -> Shape | None:
    several = isinstance(shifts, tuple) and isinstance(dims, tuple) and len(shifts) == len(dims)
    return x.shape if several and all(-x.dim() <= d < x.dim() for d in dims) else None


def _grid_sample(
    x: torch.Tensor, grid: Any, mode: Any = "", padding_mode: Any = "", align_corners: Any = None
) -> Shape | None:
    fits = _plain(x, grid) and x.dim() == grid.dim() == 4 and x.shape[0] == grid.shape[0]
    return (*x.shape[:2], *grid.shape[1:3]) if fits and grid.shape[3] == 2 else None


def _interpolate(
    x: torch.Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "",
    align_corners: Any = None,
) -> Shape | None:
    given = isinstance(size, (tuple, list)) and len(size) == 2 and scale_factor is None
    fits = given and x.dim() == 4 and all(type(s) is int and s > 0 for s in size)
    return (*x.shape[:2], *size) if fits and mode in ("bilinear", "bicubic") else None


_FUNCTIONS: dict[Any, Callable[..., Shape | None]] = {
    operator.add: _pointwise,
    operator.sub: _pointwise,
    operator.mul: _pointwise,
    operator.truediv: _pointwise,
    torch.roll: _roll,
    F.layer_norm: _norm,
    F.grid_sample: _grid_sample,
    F.interpolate: _interpolate,
}


def _plain(x: Any, *others: Any) -> bool:
    """Whether nothing about these tensors is special."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or 0 in x.shape:
        return False
    return x.is_contiguous() and all(
        isinstance(t, torch.Tensor) and t.dtype == x.dtype and t.is_contiguous() for t in others
    )


def _empty(shape: Shape | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if shape is None else torch.empty(shape, dtype=like.dtype, device="meta")


def _same(_: nn.Module, shape: Shape) -> Shape | None:
    return shape


def _linear(layer: Any, shape: Shape) -> Shape | None:
    fits = len(shape) > 1 and shape[-1] == layer.weight.shape[1]
    return (*shape[:-1], layer.weight.shape[0]) if fits else None


def _layer_norm(layer: Any, shape: Shape) -> Shape | None:
    own = tuple(layer.normalized_shape)
    return shape if tuple(shape[-len(own) :]) == own else None


def _channels(shape: Shape, width: int) -> Shape | None:
    return shape if len(shape) == 4 and shape[1] == width else None


_LAYERS: dict[type[nn.Module], Callable[[Any, Shape], Shape | None]] = {
    nn.Linear: _linear,
    nn.BatchNorm2d: lambda layer, shape: _channels(shape, layer.num_features),
    nn.GroupNorm: lambda layer, shape: _channels(shape, layer.num_channels),
    nn.LayerNorm: _layer_norm,
    nn.GELU: _same,
    nn.ReLU: _same,
    nn.SiLU: _same,
}
