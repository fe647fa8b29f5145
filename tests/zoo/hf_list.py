"""The vision models of transformers, found in its own tables and built from small configurations.

A class counts if it takes `pixel_values` alone and runs. Configurations are made smaller in steps:
few layers, narrow, few pixels; the first that the class can be built from and run with is taken.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.auto import modeling_auto

from tests.zoo.subject import Inputs, Subject, images

_TABLES = (
    "IMAGE", "IMAGE_CLASSIFICATION", "IMAGE_SEGMENTATION", "SEMANTIC_SEGMENTATION",
    "INSTANCE_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION",
    "NORMAL_ESTIMATION", "POINTMAP_ESTIMATION", "POSE_ESTIMATION", "IMAGE_MATTING",
    "MASKED_IMAGE_MODELING", "BACKBONE", "IMAGE_TO_IMAGE", "KEYPOINT_DETECTION", "MASK_GENERATION",
    "VIDEO_CLASSIFICATION", "PRETRAINING",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "depth", "depths",
           "n_layer", "decoder_num_hidden_layers", "num_blocks", "num_encoder_blocks")  # fmt: skip
_WIDTHS = (
    "hidden_size", "intermediate_size", "d_model", "encoder_ffn_dim", "decoder_ffn_dim",
    "embed_dim", "hidden_sizes", "neck_hidden_sizes", "fusion_hidden_size", "decoder_hidden_size",
    "hidden_dim",
    "feature_size", "mask_feature_size", "encoder_feedforward_dim", "dim_feedforward",
    "embedding_size", "projection_dim", "decoder_intermediate_size", "hidden_act_dim",
    "encoder_hidden_dim", "decoder_hidden_dim", "mlp_dim", "n_embd", "fpn_hidden_size",
)  # fmt: skip
_LEVELS = ((8, 64, 2), (8, None, 2), (1, 64, 2), (1, None, 2), (1, None, 99))
"""What widths are divided by, the image size, and how many layers at most; as they are tried."""
_MOST = 40_000_000  # parameters of a model that is looked at


def names() -> list[str]:
    """Classes that take an image alone, in alphabetical order."""
    found: set[str] = set()
    for table in _TABLES:
        known = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
        for value in known.values():
            found.update([value] if isinstance(value, str) else value)
    found.update(n for n in dir(hf) if n.endswith(("VisionModel", "VisionTransformer")))
    return sorted(name for name in found if _takes_images(name))


def _takes_images(name: str) -> bool:
    cls = getattr(hf, name, None)
    if not inspect.isclass(cls) or not issubclass(cls, nn.Module):
        return False
    parameters = inspect.signature(cls.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind < 2]
    first = list(parameters)[1].name if len(parameters) > 1 else ""
    return first in ("pixel_values", "images", "image") and needed[1:] in ([], [first])


def subject(name: str) -> Subject:
    """A class, with the smallest configuration that it runs with."""

    def build() -> nn.Module:
        return _model(name, _fitting(name)[0])

    def inputs(batch: int, factor: float) -> Inputs:
        return images(*_fitting(name)[1])(batch, factor)

    return Subject("transformers", name, build, inputs)


@functools.cache
def _fitting(name: str) -> tuple[Any, tuple[int, ...]]:
    """The configuration, and the size of an image.

    Raises:
        RuntimeError: if the class runs with none.
    """
    why = ""
    for divisor, side, most in _LEVELS:
        try:
            config = _config(name, divisor, side, most)
            size = _image_size(config, side)
            with torch.device("meta"):
                count = sum(p.numel() for p in _model(name, config).parameters())
            if count > _MOST:
                raise ValueError(f"{count:,} parameters")
            torch.manual_seed(0)
            model = _model(name, config).eval()
            with torch.no_grad():
                model(images(*size)(1, 1)[""])
        except Exception as error:  # whatever a configuration that does not fit may raise
            why = f"{type(error).__name__}: {error}"
            continue
        return config, size
    raise RuntimeError(f"no configuration fits: {why}")


def _model(name: str, config: Any) -> nn.Module:
    model: nn.Module = getattr(hf, name)(config)
    return model


def _config(name: str, divisor: int, side: int | None, most: int) -> Any:
    cls = getattr(hf, name).config_class
    more: dict[str, Any] = {}
    given = inspect.signature(cls.__init__).parameters
    if "use_timm_backbone" in given:
        more = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
        more["backbone_config"] = _resnet()
    try:
        config = cls(**more)
    except Exception:  # one of those that refuse what they list
        config = cls()
    _shrink(config, divisor, side, most)
    return config


def _resnet() -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return hf.ResNetConfig(  # type: ignore[call-arg]
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=stages[3:]
    )


def _shrink(config: Any, divisor: int, side: int | None, most: int) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, hf.PretrainedConfig):
            _shrink(value, divisor, side, most)
        elif key in _LAYERS:
            setattr(config, key, _each(value, lambda v: min(v, most)))
        elif key in _WIDTHS:
            setattr(config, key, _each(value, lambda v: max(v // divisor, 8)))
        elif divisor > 1 and ("num" in key and "heads" in key):
            setattr(config, key, _each(value, _fewer_heads))
        elif key == "image_size" and side is not None:
            setattr(config, key, [side, side] if isinstance(value, (list, tuple)) else side)
        elif key in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob",
                     "attention_dropout", "dropout") and isinstance(value, float):  # fmt: skip
            setattr(config, key, 0.1)
    _fit_indices(config)


def _fit_indices(config: Any) -> None:
    """As many layers as levels are read, and each level from a layer of its own."""
    for name in ("out_indices", "backbone_out_indices"):
        known, layers = getattr(config, name, None), getattr(config, "num_hidden_layers", None)
        if known and isinstance(layers, int) and max(known) > layers - (name[0] == "b"):
            config.num_hidden_layers = len(known)
            first = 0 if name.startswith("backbone") else 1
            setattr(config, name, list(range(first, first + len(known))))


def _fewer_heads(heads: int) -> int:
    return next(h for h in (heads // 4, heads // 3, heads // 2, heads) if h)


def _each(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_each(v, change) for v in value]
    return change(value) if type(value) is int else value


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if isinstance(value, hf.PretrainedConfig):
            yield from _configs(value)


def _image_size(config: Any, side: int | None) -> tuple[int, ...]:
    channels = next((c.num_channels for c in _configs(config) if hasattr(c, "num_channels")), 3)
    for each in _configs(config):
        size = getattr(each, "image_size", None)
        if isinstance(size, int):
            size = (size, size)
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return _frames(config, channels, *size)
    return _frames(config, channels, side or 224, side or 224)


def _frames(config: Any, channels: int, height: int, width: int) -> tuple[int, ...]:
    frames = getattr(config, "num_frames", None)
    return (frames, channels, height, width) if frames else (channels, height, width)
