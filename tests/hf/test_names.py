"""Models of Hugging Face by name: shipped, from a folder, from the hub without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.invoke import invoke
from vitrewrite import models
from vitrewrite.catalog.models import shipped
from vitrewrite.errors import FileError, MatchError
from vitrewrite.models import hugging_face
from vitrewrite.tracing.inputs import example_input

TINY_VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8, "num_labels": 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` writes it."""
    (tmp_path / "config.json").write_text(json.dumps(TINY_VIT))
    model = models.create(f"hf:{tmp_path}", seed=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


SHIPPED = {
    "hf:mask2former-r101": (63.033495, 512), "hf:mask2former-r50": (44.041367, 512),
    "hf:mask2former-swin-b": (106.924239, 640), "hf:mask2former-swin-l": (215.491851, 640),
    "hf:mask2former-swin-t": (47.441169, 512),
}  # fmt: skip
"""Millions of parameters, and the side of the images."""


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_have_the_published_size(name: str) -> None:
    model: Any = models.create(name, meta=True)
    millions, side = SHIPPED[name]
    found = sum(p.numel() for p in model.parameters())
    if "swin" in name and not any("swin.layernorm" in n for n, _ in model.named_parameters()):
        # Before Swin's backbone was a whole Swin in transformers, it had no norm behind its stages.
        found += 2 * model.config.backbone_config.hidden_size
    assert found / 1e6 == millions
    assert all(p.is_meta for p in model.parameters())
    assert example_input(model).shape == (1, 3, side, side)
    assert model.class_predictor.out_features == 151


def test_shipped_models_are_listed() -> None:
    shown = invoke("list", "models").out
    assert shipped() == list(SHIPPED)
    for name in shipped():
        assert f"{name}" in shown
    assert "Mask2FormerForUniversalSegmentation on resnet, 150 classes" in shown


def test_arguments_override_the_configuration(folder: Path) -> None:
    model = models.create(f"hf:{folder}", {"num_hidden_layers": 1, "num_labels": 7}, meta=True)
    assert model.classifier.out_features == 7
    assert model.config.num_hidden_layers == 1


def test_weights_of_a_folder(folder: Path) -> None:
    name = f"hf:{folder}"
    state = models.create(name, seed=3).state_dict()
    loaded = models.create(name, weights="pretrained", seed=5).state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
    other = models.create(name, seed=5).state_dict()
    assert not torch.equal(other["classifier.weight"], state["classifier.weight"])
    again = models.create(name, weights=str(folder / "model.safetensors")).state_dict()
    assert all(torch.equal(again[k], v) for k, v in state.items())


def test_weights_that_lack_something(folder: Path) -> None:
    state = models.create(f"hf:{folder}").state_dict()
    state.pop("vit.layernorm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match="VR712"):
        models.create(f"hf:{folder}", weights="pretrained")


def test_a_pickle_is_never_read(folder: Path) -> None:
    state = models.create(f"hf:{folder}").state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(FileError, match="VR710"):
        models.create(f"hf:{folder}", weights="pretrained")


def test_of_a_model_for_images_and_text_the_tower_is_built(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
             "patch_size": 8, "intermediate_size": 48}  # fmt: skip
    for kind, expected in (("clip", "CLIPVisionModel"), ("blip", "BlipVisionModel")):
        config = {"model_type": kind, "architectures": ["X"], "vision_config": tower}
        (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": {}}))
        assert type(models.create(f"hf:{tmp_path}", meta=True)).__name__ == expected


BAD = [
    ("hf:mask2former-r5", {}, "VR310", "did you mean 'hf:mask2former-r50'?"),
    ("hf:./nothing", {}, "VR310", "no folder"),
    ("hf:mask2former-r50", {"num_lables": 3}, "VR311", "did you mean 'num_labels'?"),
    ("hf:mask2former-r50", {"hidden_dim": 100}, "VR311", "hidden_dim=100"),
    ("hf:mask2former-r50", {"num_queries": "many"}, "VR311", "num_queries"),
]


@pytest.mark.parametrize(("name", "options", "code", "text"), BAD)
def test_bad_names_and_arguments(
    monkeypatch: Any, name: str, options: dict[str, Any], code: str, text: str
) -> None:
    def offline(*_: Any) -> str:
        raise OSError("no network here")

    monkeypatch.setattr(hugging_face, "download", offline)
    with pytest.raises(MatchError) as caught:
        models.create(name, options, meta=True)
    assert caught.value.code == code
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_bad_configurations(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MatchError, match="VR310"):
        models.create(f"hf:{tmp_path}", meta=True)


def test_without_transformers(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MatchError, match="VR313") as caught:
        models.create("hf:mask2former-r50", meta=True)
    assert "vitrewrite[mask2former]" in str(caught.value)


def test_shipped_weights_are_not_pretended() -> None:
    with pytest.raises(FileError, match="VR710"):
        models.create("hf:mask2former-r50", weights="pretrained")
