"""What the tests of training share: a folder with a tiny model and a spec, and one of images."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """
from timm.models.vision_transformer import VisionTransformer


def build(**options):
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**small, "in_chans": 1, "num_classes": 10, **options})
"""
LORA = """# LoRA on a tiny model; all of the rest is trained too, because its weights are random
model tiny.py:build

insert lora(rank=2) at blocks[*].attn.{q, v}
train head + blocks + norm + patch_embed + pos_embed + cls_token

tune { epochs = 2, batch = 32, lr = 3e-3, warmup_epochs = 0.2, log_every = 5 }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `tiny.py` and `lora.peft` in it and nothing else."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "lora.peft").write_text(LORA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(here: Path) -> Path:
    """A folder of 2 classes with 12 images each: dark ones and bright ones."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label, (name, low) in enumerate((("dark", 0), ("light", 160))):
        folder = here / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(low, low + 90, (20 + label, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return here / "pictures"
