"""timm's vision transformers, found by building each on meta: one per distinct configuration.

A model counts if an attention runs in its forward. Of those whose modules are configured alike but
for numbers (widths, depths, sizes), the smallest stands for all.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.zoo.subject import Inputs, Subject, images

DEPTH = 2  # blocks of a stage at most
_WIDE = 512  # channels
_MOST = 120_000_000  # parameters of a model that is looked at
_DEPTHS = ("depth", "depths", "layers", "conv_depths", "transformer_depths")
_RATES = {"drop_rate": 0.1, "drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}


def subject(name: str) -> Subject:
    """A model of timm, with few blocks."""

    @functools.cache
    def size() -> tuple[int, ...]:
        with torch.device("meta"):
            return input_size(small(name))

    def inputs(batch: int, factor: float) -> Inputs:
        return images(*size())(batch, factor)

    return Subject("timm", name, lambda: small(name), inputs)


def small(name: str, **more: Any) -> nn.Module:
    """The model with at most `DEPTH` blocks a stage, and every rate above 0 that it takes."""
    options, cutting = {**_RATES, **more}, True
    while True:
        try:
            with _shallow() if cutting else nullcontext():
                model: nn.Module = timm.create_model(name, **options)
                return model
        except (TypeError, AssertionError, IndexError) as error:
            unknown = [rate for rate in _RATES if rate in options and f"'{rate}'" in str(error)]
            if not unknown and not cutting:
                raise
            if unknown:  # an option that this family does not have
                del options[unknown[0]]
            else:  # a family whose depths have to fit to each other
                cutting = False


def input_size(model: nn.Module) -> tuple[int, ...]:
    """Channels, height and width."""
    size: Any = model.pretrained_cfg["input_size"]
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return (size[0], *own) if isinstance(own, tuple) else tuple(size)


def names() -> list[str]:
    """One name per distinct configuration of module classes, in timm's order."""
    smallest: dict[Hashable, tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            model = small(name).eval()
        if not _attends(model):
            continue
        count = sum(p.numel() for p in model.parameters())
        if count > _MOST:
            continue
        cost = count + _pixels(model)
        key = configuration(model)
        smallest[key] = min(smallest.get(key, (cost, name)), (cost, name))
    chosen = {name for _, name in smallest.values()}
    return [name for name in timm.list_models() if name in chosen]


def _pixels(model: nn.Module) -> int:
    _, height, width = input_size(model)
    return 100 * height * width


def configuration(model: nn.Module) -> Hashable:
    """What the modules of a model are, but for numbers and how many there are of each."""
    return frozenset(_kind(module) for module in model.modules())


def _kind(module: nn.Module) -> Hashable:
    switches = tuple(
        (name, value)
        for name, value in sorted(module.__dict__.items())
        if (value is None or isinstance(value, (bool, str))) and name != "training"
    )
    state = (*module._parameters.items(), *module._buffers.items())
    tensors = tuple((name, tensor is None) for name, tensor in state)
    return (type(module).__qualname__, type(module).__module__, switches, tensors)


class _Seen(TorchFunctionMode):
    """Notes whether an attention runs: torch's own, or a product with a softmax of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[int] = set()
        self.soft: set[int] = set()
        self.found = False
        self.keep: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if func in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
            self.found = True
        if name in ("matmul", "__matmul__", "bmm", "einsum", "baddbmm"):
            self._note(result)
            self.found = self.found or any(id(a) in self.soft for a in args)
        elif args and id(args[0]) in self.products and isinstance(result, torch.Tensor):
            self._note(result)
            if name == "softmax":
                self.soft.add(id(result))
        return result

    def _note(self, value: Any) -> None:
        self.products.add(id(value))
        self.keep.append(value)


def _attends(model: nn.Module) -> bool:
    seen = _Seen()
    try:
        with torch.no_grad(), seen:
            model(torch.empty(2, *input_size(model), device="meta"))
    except Exception:  # it needs values: then it is told when it is looked at
        return True
    return seen.found


@contextmanager
def _shallow() -> Iterator[None]:
    """Lets timm build with fewer blocks: what a model's entry asks for is cut on its way."""
    changed = []
    for module in list(sys.modules.values()):
        known = getattr(module, "__dict__", {}).get("build_model_with_cfg")
        if known is not None and module.__name__.startswith("timm."):
            changed.append((module, known))
            module.build_model_with_cfg = _cutting(known)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, known in changed:
            module.build_model_with_cfg = known  # type: ignore[attr-defined]


def _cutting(build: Callable[..., Any]) -> Callable[..., Any]:
    def built(cls: Any, variant: str, pretrained: bool, **kwargs: Any) -> Any:
        kwargs = {k: _cut(v) if k in _DEPTHS else v for k, v in kwargs.items()}
        kwargs |= _narrow(kwargs)
        for key, config in kwargs.items():
            if dataclasses.is_dataclass(config) and not isinstance(config, type):
                fields = {f.name for f in dataclasses.fields(config)} & set(_DEPTHS)
                cut = {name: _cut(getattr(config, name)) for name in fields}
                cut |= _narrow(vars(config))
                kwargs[key] = dataclasses.replace(config, **cut)
        return build(cls, variant, pretrained, **kwargs)

    return built


def _narrow(options: dict[str, Any]) -> dict[str, Any]:
    """A quarter of the heads of a wide model, each as wide as it was."""
    width, heads = options.get("embed_dim"), options.get("num_heads")
    if type(width) is not int or type(heads) is not int or width < _WIDE or heads < 4:
        return {}
    return {"embed_dim": width // heads * (heads // 4), "num_heads": heads // 4}


def _cut(depth: Any) -> Any:
    if isinstance(depth, (tuple, list)):
        return type(depth)(_cut(d) for d in depth)
    return min(depth, DEPTH) if isinstance(depth, int) else depth
