"""Random tiny vision transformers, and the models of the zoo."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

DEAR = settings(max_examples=settings().max_examples * 2 // 5)
"""For properties of which an example takes most of a second: 10 of them, and many in `fuzz`."""


@st.composite
def vit_options(draw: Any) -> dict[str, Any]:
    """Constructor arguments of a small timm ViT: every switch that changes its forward."""
    heads = draw(st.sampled_from([1, 2, 4]))
    height, width = draw(st.sampled_from([(16, 16), (16, 24), (8, 32)]))
    class_token = draw(st.booleans())
    return {
        "img_size": (height, width),
        "patch_size": 8,
        "embed_dim": 16,
        "depth": draw(st.integers(1, 3)),
        "num_heads": heads,
        "mlp_ratio": draw(st.sampled_from([2, 4])),
        "num_classes": draw(st.sampled_from([3, 10])),
        "class_token": class_token,
        "global_pool": "token" if class_token else "avg",
        "reg_tokens": draw(st.sampled_from([0, 2])),
        "qk_norm": draw(st.booleans()),
        "init_values": draw(st.sampled_from([None, 0.1])),
        "pre_norm": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
        "drop_rate": draw(st.sampled_from([0.0, 0.2])),
        "attn_drop_rate": draw(st.sampled_from([0.0, 0.2])),
        "proj_drop_rate": draw(st.sampled_from([0.0, 0.2])),
        "drop_path_rate": draw(st.sampled_from([0.0, 0.3])),
    }


@st.composite
def tiny_vit(draw: Any) -> VisionTransformer:
    """A small ViT with weights that are nowhere zero."""
    torch.manual_seed(draw(st.integers(0, 9)))
    return spread(VisionTransformer(**draw(vit_options())))


def spread(model: Any) -> Any:
    """Moves every parameter off its initial value, so that nothing is zero or one by default."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def without_fused_attention(model: Any) -> Any:
    """With matrix products and a softmax for attention: what `torch.fx.symbolic_trace` can follow.

    Before torch 2.9, scaled_dot_product_attention refuses the proxies of that tracer.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


SMALL_VIT = {"depth": 3}
RATES = {"drop_rate": 0.1, "drop_path_rate": 0.3}
ALL_RATES = {**RATES, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}

# The models that must be captured, with arguments that keep every kind of block and little else.
BEYOND = frozenset({
    "vit_small_patch14_dinov2", "vit_base_patch16_siglip_224", "deit3_small_patch16_224",
    "flexivit_small", "swinv2_tiny_window8_256", "mvitv2_tiny", "hiera_tiny_224",
    "twins_svt_small", "maxvit_tiny_tf_224", "deit_base_distilled_patch16_224",
})  # fmt: skip
"""Of the zoo, models that cost most or are like another: `make zoo` goes through all of them."""

ZOO: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": {**SMALL_VIT, **ALL_RATES},
    "vit_small_patch14_dinov2": {**SMALL_VIT, **ALL_RATES, "img_size": 224},
    "vit_small_patch14_reg4_dinov2": {**SMALL_VIT, **ALL_RATES, "img_size": 224},
    "vit_base_patch16_siglip_224": {**SMALL_VIT, **ALL_RATES},
    "deit_base_distilled_patch16_224": {**SMALL_VIT, **ALL_RATES},
    "deit3_small_patch16_224": {**SMALL_VIT, **ALL_RATES},
    "beit_base_patch16_224": {**SMALL_VIT, **ALL_RATES},
    "eva02_tiny_patch14_224": {**SMALL_VIT, **ALL_RATES},
    "flexivit_small": {**SMALL_VIT, **ALL_RATES},
    "cait_xxs24_224": {**SMALL_VIT, **ALL_RATES},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 3, 1), **ALL_RATES},
    "swinv2_tiny_window8_256": {"depths": (2, 2, 3, 1), **ALL_RATES},
    "pvt_v2_b0": ALL_RATES,
    "mvitv2_tiny": RATES,
    "hiera_tiny_224": RATES,
    "crossvit_tiny_240": ALL_RATES,
    "twins_svt_small": {"depths": (2, 2, 3, 1), **ALL_RATES},
    "convnext_tiny": {"depths": (1, 1, 3, 1), **RATES},
    "xcit_nano_12_p16_224": {**SMALL_VIT, **ALL_RATES},
    "tiny_vit_5m_224": {"depths": (2, 2, 3, 2), "drop_rate": 0.1, "drop_path_rate": 0.3},
    "maxvit_tiny_tf_224": RATES,
}
