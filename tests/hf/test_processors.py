"""How images are prepared for a checkpoint of Hugging Face goes along with its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import vitrewrite as vr
from tests.cli.invoke import invoke
from tests.hf.test_names import TINY_VIT
from vitrewrite.errors import FileError
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.usage import Usage
from vitrewrite.models.image_processors import record_of

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY_VIT))
    return tmp_path


def processor(folder: Path, **values: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def usage(folder: Path) -> Usage:
    found = Usage.of(vr.apply(LORA, f"hf:{folder}"))
    assert found is not None
    return found


def test_what_stands_beside_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    own = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
        "size": {"height": 32, "width": 32},
    }
    processor(folder, **own)
    rewritten = vr.apply(LORA, f"hf:{folder}")
    written = vr.emit(rewritten, tmp_path / "out")
    found = json.loads((written / "preprocessing.json").read_text())
    assert (found["mean"], found["std"]) == (own["image_mean"], own["image_std"])
    assert (found["interpolation"], found["crop_mode"], found["stated"]) == (
        "bicubic",
        "squash",
        True,
    )
    assert "mean (0.1, 0.2, 0.3)" in (written / "model.py").read_text()
    assert Usage.of(load_folder(written)) == Usage.of(rewritten)
    # What transformers itself does with the picture.
    image = Image.effect_noise((61, 47), 90).convert("RGB")
    theirs = transformers.ViTImageProcessor(**own)(image, return_tensors="pt")["pixel_values"]
    known = Usage.of(rewritten)
    assert known is not None
    ours = known.preprocessing.normalised(known.preprocessing.plain(whole=False)(image))
    assert (ours - theirs[0]).abs().max() < 0.02  # resized by Pillow or by torch, on 8 bits


def test_scores_of_classes_are_found_in_what_it_returns(folder: Path, tmp_path: Path) -> None:
    found = usage(folder)
    assert (found.task, found.outputs) == ("classification", TINY_VIT["num_labels"])
    written = vr.emit(vr.apply(LORA, f"hf:{folder}"), tmp_path / "out")
    Image.new("RGB", (40, 50), (200, 40, 90)).save(tmp_path / "photo.png")
    seen = invoke("predict", written, tmp_path / "photo.png", "--json")
    assert seen.status == 0, seen.err
    assert len(seen.json["predictions"][0]["classes"]) == TINY_VIT["num_labels"]
    assert 'model(image)["logits"]' in (written / "README.md").read_text()


def test_else_what_transformers_does(folder: Path, tmp_path: Path) -> None:
    found = usage(folder)
    assert (found.mean, found.std, found.stated) == ((0.5,) * 3, (0.5,) * 3, False)
    assert (found.interpolation, found.crop_mode) == ("bilinear", "squash")
    written = vr.emit(vr.apply(LORA, f"hf:{folder}"), tmp_path / "out")
    assert Usage.of(load_folder(written)) == found
    assert "(a default: the model does not say)" in " ".join(
        (written / "README.md").read_text().split()
    )


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"size": {"shortest_edge": 256}, "do_center_crop": True,
      "crop_size": {"height": 224, "width": 224}},
     {"crop_pct": 0.875, "crop_mode": "center"}),
    ({"size": 224, "crop_pct": 0.9}, {"crop_pct": 0.9, "crop_mode": "center"}),
    ({"size": 256, "do_center_crop": True, "crop_size": 192}, {"crop_pct": 0.75}),
    ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ({"image_mean": 127.5, "image_std": 51, "do_rescale": False},
     {"mean": (0.5,) * 3, "std": (0.2,) * 3}),
    ({"rescale_factor": 1 / 127.5}, {"mean": (0.25,) * 3, "std": (0.25,) * 3}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_ways_to_say_it(tmp_path: Path, values: dict[str, Any], expected: dict[str, Any]) -> None:
    processor(tmp_path, **values)
    found = record_of("vit", tmp_path / "preprocessor_config.json")
    for key, value in expected.items():
        assert found[key] == (value if isinstance(value, str) else pytest.approx(value))


@pytest.mark.parametrize("text", ["", "[]", '{"image_std": [0, 1, 1]}', '{"resample": "x"}',
                                  '{"image_mean": "no"}'])  # fmt: skip
def test_what_makes_no_sense(folder: Path, text: str) -> None:
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(FileError, match="VR578"):
        vr.plan(LORA, f"hf:{folder}")


def test_a_recipe_states_it(folder: Path) -> None:
    made = vr.apply(LORA + "tune { inputs = unit }\n", f"hf:{folder}")
    found = Usage.of(made)
    assert found is not None
    assert (found.mean, found.stated) == ((0.0,) * 3, True)
    assert torch.equal(
        found.preprocessing.normalised(torch.full((3, 1, 1), 255.0)), torch.ones(3, 1, 1)
    )
