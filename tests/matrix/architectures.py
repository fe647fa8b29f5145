"""The architectures of the matrix, built small with random weights that are always the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

CLASSES = 5
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_STAGES = {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "img_size": 32}


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


def _hf_clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
        )
    )


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "ViT": _timm("vit_tiny_patch16_224", **_VIT),
    "DeiT distilled": _timm("deit_tiny_distilled_patch16_224", **_VIT),
    "BEiT": _timm("beit_base_patch16_224", **_VIT),
    "EVA-02": _timm("eva02_tiny_patch14_224", **_VIT),
    "DINOv2 reg": _timm("vit_small_patch14_reg4_dinov2", **_VIT),
    "DINOv3": _timm("vit_small_patch16_dinov3", **_VIT),
    "Swin": _timm("swin_tiny_patch4_window7_224", window_size=4, **_STAGES),
    "SwinV2": _timm("swinv2_tiny_window8_256", window_size=4, **_STAGES),
    "ConvNeXt": _timm("convnext_tiny", dims=(8, 16, 32, 64), depths=(1, 1, 2, 1)),
    "PVTv2": _timm("pvt_v2_b0", depths=(1, 1, 1, 1)),
    "HF ViT": _hf_vit,
    "HF CLIP": _hf_clip,
}
"""By the name that the table has."""


def built(name: str) -> nn.Module:
    """One of them, in eval mode, without disturbing generators of others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ARCHITECTURES[name]().eval()


def example(name: str) -> torch.Tensor | None:
    """What one is called with, where it does not say so, or says something large."""
    side = {"HF ViT": 32, "HF CLIP": 32, "ConvNeXt": 64, "PVTv2": 64}.get(name)
    return None if side is None else torch.zeros(1, 3, side, side)
