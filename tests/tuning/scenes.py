"""Scenes to segment: a red rectangle and a blue disc on noise, in the layout of ADE20K."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# A Mask2Former on a small ResNet, as `config.json` says it.
CONFIG: dict[str, Any] = {
    "architectures": ["Mask2FormerForUniversalSegmentation"], "model_type": "mask2former",
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48,
    "dim_feedforward": 48, "encoder_layers": 2, "decoder_layers": 4, "num_attention_heads": 4,
    "num_queries": 6, "num_labels": 3, "image_size": 64, "train_num_points": 256,
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 2, 1, 1], "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}  # fmt: skip
SPEC = """# LoRA in the decoder; what predicts, and the pixel decoder, are trained
model hf:tiny

insert lora(rank=4) at decoder.layers[*].cross_attn.{q, v} + decoder.layers[*].ffn.{fc1, fc2}
train head + decoder.mask_head + decoder.queries + pixel_decoder.layers

tune { steps = 30, batch = 4, lr = 1e-2, log_every = 1 }
"""


def scenes(folder: Path, side: int = 64, **counts: int) -> None:
    """Writes images and maps of classes 0 (noise), 1 and 2, so many for each split."""
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(draw.integers(0, 80, (side, side, 3), dtype=np.uint8))
            labels = Image.new("L", image.size, 0)
            shapes = (((230, 60, 40), "rectangle"), ((50, 90, 240), "ellipse"))
            for label, (colour, shape) in enumerate(shapes, 1):
                left, top = draw.integers(0, side * 9 // 16, 2).tolist()
                width, height = draw.integers(side // 4, side * 7 // 16, 2).tolist()
                box = (left, top, left + width, top + height)
                for picture, fill in ((image, colour), (labels, label)):
                    getattr(ImageDraw.Draw(picture), shape)(box, fill=fill)
            image.save(folder / "images" / split / f"{number:02}.png")
            labels.save(folder / "annotations" / split / f"{number:02}.png")


def model_folder(folder: Path) -> None:
    """Writes what `hf:FOLDER` names."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
