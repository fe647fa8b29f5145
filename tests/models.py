"""Random tiny vision transformers, and the models of the zoo."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer


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
