"""Small models of Hugging Face, each with every kind of part that its family has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf
from torch import nn

VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SEGMENTER: dict[str, Any] = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48,
    "dim_feedforward": 48, "encoder_layers": 2, "num_attention_heads": 4, "num_queries": 6,
    "num_labels": 5, "image_size": 64,
}  # fmt: skip
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _swin(**more: Any) -> Any:
    options = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "window_size": 4,
               "depths": [2, 1, 2, 1], "num_heads": [1, 2, 4, 4], **more}  # fmt: skip
    return hf.SwinConfig(**options)


def _resnet() -> Any:
    return hf.ResNetConfig(  # type: ignore[call-arg]
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 2, 1, 1],
        hidden_act="relu",
        layer_type="bottleneck",
        out_features=STAGES,
    )


def mask2former(backbone: str, **more: Any) -> nn.Module:
    """A Mask2Former whose published parts are all there, at a tenth of their width."""
    swin = _swin(out_features=STAGES, drop_path_rate=0.3, window_size=5)  # pads every stage
    config = hf.Mask2FormerConfig(
        backbone_config=swin if backbone == "swin" else _resnet(), **{**SEGMENTER, **more}
    )
    return hf.Mask2FormerForUniversalSegmentation(config)


@dataclass(frozen=True)
class Member:
    """A model, and the image sizes that it can be run at once it is captured for the first."""

    build: Callable[[], nn.Module]
    sizes: tuple[tuple[int, int], ...]
    random: bool = True  # whether training draws random numbers


ZOO = {
    "vit": Member(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, **DROPS)), ((32, 32),)),
    "dinov2": Member(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT, **DROPS, drop_path_rate=0.3)), ((32, 32),)
    ),
    "dinov2-other-size": Member(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT)), ((48, 64), (64, 40)), random=False
    ),
    "clip": Member(
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT, attention_dropout=0.1)), ((32, 32),)
    ),
    "blip": Member(
        lambda: hf.BlipVisionModel(hf.BlipVisionConfig(**VIT, attention_dropout=0.1)), ((32, 32),)
    ),
    "swin": Member(
        lambda: hf.SwinForImageClassification(_swin(depths=[2, 2], num_heads=[1, 2], **DROPS)),
        ((64, 64), (96, 64), (64, 128)),
    ),
    "segformer": Member(
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(  # type: ignore[call-arg]
                hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 1, 1], decoder_hidden_size=16,
                num_attention_heads=[1, 2, 2, 4], drop_path_rate=0.3, image_size=64,
            )
        ),
        ((64, 64), (96, 64)),
    ),
    "mask2former-r50": Member(
        lambda: mask2former("resnet"), ((64, 64), (96, 64), (64, 128)), random=False
    ),
    "mask2former-swin": Member(lambda: mask2former("swin"), ((64, 64), (128, 64), (64, 128))),
    "mask2former-aux": Member(
        lambda: mask2former("resnet", output_auxiliary_logits=True), ((64, 64), (64, 96)),
        random=False,
    ),
    "mask2former-everything": Member(
        lambda: mask2former(
            "resnet", output_auxiliary_logits=True, output_hidden_states=True,
            output_attentions=True,
        ),
        ((64, 64),), random=False,
    ),
}  # fmt: skip
