"""What a model is called with, and the variations of it that a trace runs under."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import CaptureError
from ..language.inputs import Shape, read_shapes, show_shapes
from ..text import a_or_an
from . import tree
from .about import about, is_root
from .notes import VALUE
from .unit import Unit

# Unlike each other and unlike any size in a model, so that a batch that got built in shows.
BATCHES = (5, 7)
SCALES = (2, 3)  # of height and width, for the witness of the image size
CONTROL_BATCH = 22  # unlike the first batch modulo every number up to 11


@dataclass(frozen=True)
class Aspects:
    """In what a trace that checks another differs from it.

    Attributes:
        batch: the batch size, if it is another one.
        scaled: whether images are as large as under the witness of their size.
        dtype: what the model and its inputs are cast to, if anything.
    """

    batch: int | None = None
    scaled: bool = False
    dtype: torch.dtype | None = None


def example_input(model: nn.Module) -> Any:
    """What the model was captured with, or an input of the size that it says it is for.

    A file may say it of the models in it, as emitted files do: `INPUT = "1x3x64x64"`.

    Raises:
        CaptureError: if it does not say.
    """
    if (known := _kept(model)) is not None:
        return _again(model, known)
    stated = getattr(inspect.unwrap(type(model).forward), "__globals__", {}).get("INPUT")
    if isinstance(stated, str):
        with suppress(ValueError):
            return stated_input(model, stated)
    size = image_size(model)
    if size is None or min(size) < 1:
        raise CaptureError(
            "VR601",
            f"{a_or_an(type(model).__name__)} does not say what its input is",
            suggestion="pass example=, a tensor such as torch.zeros(1, 3, 224, 224)",
            shell="give its input, such as input=1x3x224x224",
        )
    return torch.empty(1, *size, dtype=_dtype(model), device="meta")


def _kept(model: nn.Module) -> Any:
    """What a result of ours was captured with."""
    if isinstance(model, Unit):
        return about(model).example if is_root(model) else None
    return model.meta.get("example") if isinstance(model, fx.GraphModule) else None


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def stated_input(model: nn.Module, text: str | None) -> Any:
    """Tensors on meta as `input=` states them; None if it states nothing.

    Raises:
        ValueError: if it states none.
    """
    if text is None:
        return None
    found = tuple(
        torch.empty(
            s.sizes, dtype=getattr(torch, s.dtype) if s.dtype else _dtype(model), device="meta"
        )
        for s in read_shapes(text)
    )
    return found if len(found) > 1 else found[0]


def statement(model: nn.Module, example: Any) -> str | None:
    """What `stated_input` makes an example of; None for keywords and for what is no tensor.

    Args:
        model: what is called with it.
        example: as `trace` takes it.
    """
    args, kwargs = as_arguments(example)
    if kwargs or not all(isinstance(v, torch.Tensor) and v.dim() > 1 for v in args):
        return None
    plain = _dtype(model)
    return show_shapes(
        [
            Shape(tuple(v.shape), "" if v.dtype == plain else str(v.dtype).removeprefix("torch."))
            for v in args
        ]
    )


def _again(model: nn.Module, known: Any) -> Any:
    """What a captured model was captured with, in the dtype that it has now.

    Keywords of the original are those of the captured model, as far as its forward has them.
    """
    own = _dtype(model)
    args, kwargs = as_arguments(known)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    floating = {v.dtype for v in tensors if v.is_floating_point()}
    if floating and own not in floating:

        def cast(value: Any) -> Any:
            floats = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(own) if floats else value

        return tree.map_leaves(cast, known)
    return known


def image_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width from timm's or Hugging Face's own records."""
    config: Any = getattr(model, "config", None)
    for each in (config, getattr(config, "backbone_config", None)):
        side = getattr(each, "image_size", None)
        sides = (side, side) if isinstance(side, int) else side
        if isinstance(sides, (tuple, list)) and len(sides) == 2:
            return int(getattr(each, "num_channels", 3)), *map(int, sides)  # type: ignore[return-value]
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    embed = getattr(model, "patch_embed", None)
    image = getattr(embed, "img_size", None) or getattr(model, "img_size", None)
    channels = getattr(model, "in_chans", None) or (size[0] if size else 3)
    if isinstance(image, (tuple, list)) and len(image) == 2:
        return int(channels), *map(int, image)  # type: ignore[return-value]
    return tuple(size) if size else None


def as_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or a dict."""
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def batch_of(example: Any) -> int:
    """The batch size of an example: the first length of its first tensor."""
    args, kwargs = as_arguments(example)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


def variant(tensor: torch.Tensor, batch: int, which: int | None) -> torch.Tensor:
    """A meta tensor like `tensor`: the primary one (`which` None) or that of a witness."""
    shape = _shape(tensor, batch, BATCHES[which == 0], scaled=which == 1)
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def control(tensor: torch.Tensor, batch: int, aspects: Aspects) -> torch.Tensor:
    """A meta tensor like `tensor`, for a trace that checks another."""
    shape = _shape(tensor, batch, aspects.batch or BATCHES[0], scaled=aspects.scaled)
    cast = aspects.dtype is not None and tensor.is_floating_point()
    return torch.empty(shape, dtype=aspects.dtype if cast else tensor.dtype, device="meta")


def _shape(tensor: torch.Tensor, batch: int, new: int, *, scaled: bool) -> list[int]:
    shape = list(tensor.shape)
    if shape and shape[0] == batch:
        shape[0] = new
    if scaled and len(shape) >= 4:
        shape[-2:] = [shape[-2] * SCALES[0], shape[-1] * SCALES[1]]
    elif scaled and len(shape) == 3:
        shape[1] *= SCALES[0]
    return shape


def dtype_of(model: nn.Module, example: Any) -> torch.dtype | None:
    """The floating dtype of a model, or else of what it is called with."""
    args, kwargs = as_arguments(example)
    given = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
    kinds = (t.dtype for t in (*model.parameters(), *given) if t.is_floating_point())
    return next(kinds, None)


def other_dtype(model: nn.Module, example: Any) -> torch.dtype | None:
    """A floating dtype that a model is not in; None if it is in none."""
    kind = dtype_of(model, example)
    return None if kind is None else torch.bfloat16 if kind == torch.float32 else torch.float32


def example_of_one(root: nn.Module, example: Any = None) -> tuple[torch.Tensor, ...]:
    """The model's input on meta, with a batch of one."""
    known = about(root).example if example is None else example
    args, kwargs = as_arguments(known)
    batch = batch_of(known)
    return tuple(
        torch.empty(
            [1 if n == batch and i == 0 else n for i, n in enumerate(v.shape)],
            dtype=v.dtype,
            device="meta",
        )
        for v in (*args, *kwargs.values())
    )


def noted_example(root: nn.Module) -> tuple[torch.Tensor, ...]:
    """What the values that are noted in a model were made of: the sizes among them are of these."""
    template: Any = getattr(root, "template", None)
    nodes = [] if template is None else [n for n in template.graph.nodes if n.op == "placeholder"]
    known = tuple(VALUE.get(node) for node in nodes)
    if known and all(isinstance(value, torch.Tensor) for value in known):
        return tuple(value.to("meta") for value in known)
    return primary_example(root)


def primary_example(root: nn.Module) -> tuple[torch.Tensor, ...]:
    """What the model was captured with, on meta."""
    args, kwargs = as_arguments(about(root).example)
    return tuple(v.to("meta") for v in (*args, *kwargs.values()))
