"""What a folder says of its use is what the model takes, and the lines in it run."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from vitrewrite.data import Preprocessing
from vitrewrite.data.labels import class_names, name_classes
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.readme import prepare_lines
from vitrewrite.folder.usage import Usage
from vitrewrite.tracing.about import tell

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}\n"


def tiny(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = VisionTransformer(**{**small, "num_classes": 3, **options})
    record: Any = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.875}
    model.pretrained_cfg = record
    return model


def photo(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rewritten = vr.apply(LORA, tiny())
    name_classes(rewritten.base, ("a cat", "a `dog`\n# Title"), whole=False)
    return vr.emit(rewritten, tmp_path_factory.mktemp("usage") / "out")


def test_what_is_written(written: Path) -> None:
    found = json.loads((written / "preprocessing.json").read_text())
    assert found["classes"] == ["a cat", "a `dog` # Title", "class 2"]
    assert (found["task"], found["outputs"], found["size"]) == ("classification", 3, [3, 32, 32])
    assert (found["mean"], found["std"]) == ([0.5] * 3, [0.25] * 3)
    assert (found["fixed"], found["stated"]) == (True, True)
    lock = json.loads((written / "lock.json").read_text())
    assert {"README.md", "preprocessing.json"} <= lock["files"].keys()
    source = (written / "model.py").read_text()
    assert "mean 0.5, std 0.25. Returns scores of 3 classes: a cat, a" in source
    readme = (written / "README.md").read_text()
    assert "insert lora(rank=2) at blocks[*].attn.{q, v}" in readme
    assert "   1  a `dog` # Title\n" in readme
    assert not re.search("^# Title", readme, re.MULTILINE)


def test_the_python_of_the_readme_runs(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (written / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(written)
    image = photo(50, 40)
    monkeypatch.syspath_prepend(str(written))
    monkeypatch.setattr(Image, "open", lambda name: image)
    space: dict[str, Any] = {}
    exec(code, space)  # what a user would type
    rewritten = load_folder(written)
    usage = Usage.of(rewritten)
    assert usage is not None
    pixels = usage.preprocessing.normalised(usage.preprocessing.plain(whole=False)(image))
    torch.testing.assert_close(space["image"][0], pixels)
    with torch.no_grad():
        expected = rewritten.module.eval()(pixels[None]).softmax(-1)[0]
    torch.testing.assert_close(space["probabilities"], expected)
    sys.modules.pop("model", None)


def test_it_is_the_same_when_the_folder_is_read(written: Path, tmp_path: Path) -> None:
    again = vr.emit(load_folder(written), tmp_path / "again")
    for name in ("README.md", "preprocessing.json", "model.py"):
        assert (again / name).read_bytes() == (written / name).read_bytes()
    lowered = vr.emit(vr.lower(load_folder(written)), tmp_path / "lowered")
    name = "preprocessing.json"
    assert (lowered / name).read_bytes() == (written / name).read_bytes()
    assert "It is lowered" in (lowered / "README.md").read_text()


@pytest.mark.parametrize(
    ("mode", "part", "size"),
    [("center", 0.9, (24, 24)), ("squash", 1.0, (24, 32)), ("squash", 0.8, (24, 24)),
     ("border", 0.9, (24, 24)), ("center", 0.9, (24, 32))],
)  # fmt: skip
def test_each_way_to_crop_has_python(mode: str, part: float, size: tuple[int, int]) -> None:
    config = {"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3, "interpolation": "bicubic"}
    wanted = Preprocessing((3, *size), {**config, "crop_pct": part, "crop_mode": mode})
    usage = replace(Usage.of(vr.apply(LORA, tiny())), size=wanted.size, **wanted.config)  # type: ignore[type-var]
    from torchvision.transforms import v2

    space: dict[str, Any] = {"torch": torch, "v2": v2}
    exec("\n".join(prepare_lines(usage)), space)
    image = photo(61, 47)
    expected = wanted.normalised(wanted.plain(whole=False)(image))
    torch.testing.assert_close(space["prepare"](image), expected)


def test_where_names_of_classes_come_from() -> None:
    root = vr.apply(LORA, timm.create_model("vit_tiny_patch16_224", depth=1)).base
    assert class_names(root, 1000) == ()  # a head that was drawn at random means nothing
    names = class_names(root, 1000, learnt=True)
    assert names[0].startswith("tench")
    assert class_names(root, 10, learnt=True) == ()
    tell(root, config=type("Config", (), {"id2label": {0: "wall", 1: "LABEL_1"}}))
    assert class_names(root, 3) == ("wall", "class 1", "class 2")
    tell(root, pretrained_cfg=None)
    wanted = Preprocessing.of(root)
    name_classes(root, ["x", "y"], wanted.config, whole=True)
    assert class_names(root, 3) == ("x", "y", "class 2")
    assert Preprocessing.of(root).config == {**wanted.config, "crop_pct": 1.0}


def test_what_takes_no_image_says_what_it_takes(tmp_path: Path) -> None:
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    spec = "train every parameter\n"
    made = vr.apply(spec, vr.capture(Tokens(), torch.zeros(1, 4, 8)))
    folder = vr.emit(made, tmp_path / "out")
    assert not (folder / "preprocessing.json").exists()
    assert "It takes tensors 1x4x8" in (folder / "README.md").read_text()
