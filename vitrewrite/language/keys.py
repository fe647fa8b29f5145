"""Keys of overrides that mean the same for every spec; light, for words are completed from it."""

from __future__ import annotations

from .inputs import INPUT

# Keys that say what to do with a spec; the command line and the API take them, not the spec.
RESERVED = ("model", "weights", "data", "seed", "device", INPUT)
# Constructor arguments of models that need no `model.` in front, if no param has the name.
MODEL_ARGUMENTS = (
    *("num_classes", "img_size", "patch_size", "in_chans", "depth", "embed_dim", "num_heads"),
    *("mlp_ratio", "global_pool", "class_token", "reg_tokens", "qkv_bias", "init_values"),
    *("drop_rate", "drop_path_rate", "dynamic_img_size"),
    *("num_labels", "image_size", "output_auxiliary_logits"),  # of Hugging Face
)
