"""The folder in which all of a page runs, and what stands for what is not there.

Pages speak of folders, photographs and weights that a reader has. Here small ones stand for them,
and where training would take hours, a plan of the same command.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from tests.tuning.scenes import CONFIG, SPEC, scenes

TINY = """
import timm


def vit(num_classes=10, depth=12, **more):
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, num_heads=2, depth=depth,
        num_classes=num_classes, **more,
    )
"""
GATES = """replace blocks[*].mlp with uffn(keep=16)
"""
QUERIES = """insert synqt() at blocks[*]
train head
"""
SHORT = "tune.steps=2 tune.batch=2"
SUBSTITUTES = [
    (r"^(.*) tune (tiny\.peft|esta|esta_angles)\b", r"\1 plan \2"),  # hours
    (r"^(vitrewrite plan .*) --out \S+$", r"\1"),
    (r"weights=(?!checkpoint)\S+ ?", ""),  # what a reader has, or the network
    (r"data=(FOLDER|DATA|SOURCE|TARGET|digits)", "data=few"),
    (r"tune seg.peft data=few", "tune seg.peft data=scenes tune.steps=2"),
    (r"(tune lora_qv .*)tune\.epochs=5", rf"\1model=tiny.py:vit {SHORT}"),
    (r"lora_qv data=few (--out|tune.shard)", rf"lora_qv data=few model=tiny.py:vit {SHORT} \1"),
    (r"(profile|apply) spt_lora model=vit_base", r"\1 spt_lora model=tiny.py:vit"),
    (r"tune synqt ", f"tune queries.peft model=tiny.py:vit {SHORT} "),
]  # fmt: skip
LEFT_OUT = {
    "python3 -m venv ": "by `make fresh`",
    ". env/": "by `make fresh`",
    "pip install ": "by `make fresh`",
    "vitrewrite lower tiny ": "of a run that takes hours",
    "vitrewrite show angles ": "of runs that take hours",
}
PRELUDES = {
    "README.md": """
import timm
model = timm.create_model("vit_base_patch16_224", num_classes=10)
import subprocess, sys
subprocess.run([sys.executable, "-m", "vitrewrite", "profile", "spt_lora", "model=tiny.py:vit",
    "data=few", "--activations", "blocks[*]", "--samples", "2", "--out", "vit_base.safetensors"],
    check=True)
""",
    "docs/deltas.md": """
import subprocess, sys, peft, timm, torch
import vitrewrite as vr
images = torch.randn(4, 3, 224, 224)
model = timm.create_model("vit_base_patch16_224", num_classes=10)
rewritten = vr.apply("lora_qv", model)
for name in ("pets", "cars", "food"):
    vr.save(rewritten, f"{name}.safetensors")
vr.emit(rewritten, "tuned")
convert = [sys.executable, "-m", "vitrewrite", "convert", "tuned", "--to", "peft"]
subprocess.run(convert, check=True)
""",
    "docs/training-loops.md": """
import lightning, torch
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy
import vitrewrite as vr
from tiny import vit
model, epochs = vit(), 1
images = [(torch.randn(3, 32, 32), number) for number in range(4)]
loader = torch.utils.data.DataLoader(images, batch_size=2)
spec = "insert lora(rank=2) at blocks[*].attn.{q, v}\\ntrain head\\n"
rewritten = vr.apply(spec, model)
""",
}
"""What a page takes for granted before its Python."""

ELSEWHERE = {
    ("README.md", "class BlockWithMerge(Block):"): "tests/test_examples.py",
    ("README.md", "        for block in self.blocks[:6]:"): "tests/test_examples.py",
    ("docs/architecture.md", "def forward(self, x):"): "printed source",
    ("docs/writing-a-pass.md", ""): "tests/test_docs.py",
}
"""Blocks that are looked at elsewhere, by page and first line."""


def elsewhere(page: str, text: str) -> str | None:
    """Who looks at a block, if it is not run here."""
    first = text.partition("\n")[0]
    if "..." in text.replace("`...`", "") and "$ " not in text and "param" not in text:
        return "abbreviated"
    return ELSEWHERE.get((page, first)) or ELSEWHERE.get((page, ""))


def substituted(line: str) -> str:
    """A command, with what stands for what is not there."""
    for pattern, other in SUBSTITUTES:
        line = re.sub(pattern, other, line)
    return line


def photographs(folder: Path) -> None:
    """Writes what the first hour starts from: 200 photographs of five flowers, and a checkpoint.

    The checkpoint is a timm model's of another size and with another head. The flowers are told
    by their colours, which a model learns that never saw any.
    """
    draw = np.random.default_rng(0)
    for number, flower in enumerate(("daisy", "iris", "lily", "rose", "tulip")):
        (folder / "flowers" / flower).mkdir(parents=True)
        for name in range(40):
            pixels = draw.integers(0, 80, (120, 160, 3), dtype=np.uint8)
            pixels[..., number % 3] += np.uint8(40 + 30 * number)
            Image.fromarray(pixels).save(folder / "flowers" / flower / f"{name}.jpg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224")
    torch.save({"model": model.state_dict()}, folder / "checkpoint.pth")


def prepare(folder: Path) -> None:
    """Writes all that the commands of pages read."""
    (folder / "tiny.py").write_text(TINY)
    (folder / "found.peft").write_text(GATES)
    (folder / "queries.peft").write_text(QUERIES)
    (folder / "bad.peft").write_text("insert lroa(rank=8) at blocks[*].attn.{q, v}\n")
    (folder / "tiny.peft").write_text("model vit_tiny\ntrain head\n")
    (folder / "seg.peft").write_text(SPEC)
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    scenes(folder / "scenes", training=4, validation=2)
    photographs(folder)
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    places = [folder / "PHOTO.jpg", *(folder / "photos" / f"{n}.jpg" for n in "ab")]
    for split in ("train", "val"):
        for number in range(10):
            (folder / "few" / split / f"class{number}").mkdir(parents=True)
            places.append(folder / "few" / split / f"class{number}" / "image.png")
    for place in places:
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(place)
