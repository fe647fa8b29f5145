"""Weights as people have them: every form gives what timm's own loading gives, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import vitrewrite as vr
from vitrewrite import models
from vitrewrite.errors import VitrewriteError

NAME = "vit_tiny_patch16_224"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 5}
State = dict[str, torch.Tensor]


def made(name: str = NAME, **options: Any) -> nn.Module:
    torch.manual_seed(7)
    return timm.create_model(name, **{**SMALL, **options})


def loaded(path: Path, told: list[str] | None = None, **options: Any) -> State:
    given = {**SMALL, **options}
    return models.create(NAME, given, weights=str(path), seed=3, told=told).state_dict()


def safetensors(state: State, folder: Path, name: str = "w.safetensors") -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, folder / name)
    return folder / name


def saved(value: Any, folder: Path, name: str) -> Path:
    torch.save(value, folder / name)
    return folder / name


def sharded(state: State, folder: Path) -> Path:
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        safetensors({k: state[k] for k in keys}, folder, file)
    index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def prefixed(prefix: str) -> Callable[[State, Path], Path]:
    return lambda s, f: saved({f"{prefix}{k}": v for k, v in s.items()}, f, "w.pth")


WHOLE: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": safetensors,
    "pth": lambda s, f: saved(s, f, "w.pth"),
    "pt": lambda s, f: saved(s, f, "w.pt"),
    "bin": lambda s, f: saved(s, f, "w.bin"),
    "old zipless": lambda s, f: old(s, f),
    "nested ckpt": lambda s, f: saved({"epoch": 3, "state_dict": s, "lr": 0.1}, f, "w.ckpt"),
    "DeiT's": lambda s, f: saved({"model": s}, f, "w.pth"),
    "averaged": lambda s, f: saved({"model": zeros(s), "model_ema": s}, f, "w.pth"),
    "module.": prefixed("module."),
    "model.": prefixed("model."),
    "backbone.": prefixed("backbone."),
    "MoCo v3's": prefixed("module.base_encoder."),
    "sharded": sharded,
    "folder": lambda s, f: safetensors(s, f, "model.safetensors").parent,
    "an extra key": lambda s, f: safetensors({**s, "decoder.weight": torch.ones(2)}, f),
}


def zeros(state: State) -> State:
    return {k: torch.zeros_like(v) for k, v in state.items()}


def old(state: State, folder: Path) -> Path:
    torch.save(state, folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


@pytest.mark.parametrize("form", WHOLE)
def test_all_tensors_arrive(form: str, tmp_path: Path) -> None:
    state = made().state_dict()
    found = loaded(WHOLE[form](state, tmp_path))
    assert all(torch.equal(found[k], v) for k, v in state.items())


def test_half_precision_is_read_as_the_models(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in made().state_dict().items()}
    told: list[str] = []
    found = loaded(safetensors(state, tmp_path), told)
    assert all(torch.equal(found[k], v.float()) for k, v in state.items())
    assert "float16 read as float32" in told[0]


@pytest.mark.parametrize("classes", [9, 0])
def test_another_head_or_none_is_newly_initialised(classes: int, tmp_path: Path) -> None:
    state = made(num_classes=classes).state_dict()
    told: list[str] = []
    found = loaded(safetensors(state, tmp_path), told)
    fresh = models.create(NAME, SMALL, seed=3).state_dict()
    for name, tensor in found.items():
        source = fresh if name.startswith("head.") else state
        assert torch.equal(tensor, source[name]), name
    expected = f"has {classes} classes" if classes else "has none"
    assert f"'head' is newly initialised: the checkpoint {expected}" in told[0]


@pytest.mark.filterwarnings("ignore")  # of timm's own functions
@pytest.mark.parametrize(
    ("name", "small", "here", "there"),
    [
        (NAME, SMALL, {"img_size": 32}, {"img_size": 64}),
        ("swin_tiny_patch4_window7_224",
         {"embed_dim": 12, "depths": (1, 2), "num_heads": (2, 4), "num_classes": 5},
         {"img_size": 32, "window_size": 4}, {"img_size": 64, "window_size": 8}),
        ("beit_base_patch16_224",
         {"embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5},
         {"img_size": 32}, {"img_size": 64}),
    ],
)  # fmt: skip
def test_another_grid_is_resampled_as_timm_does(
    name: str, small: dict[str, Any], here: Any, there: Any, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    state = timm.create_model(name, **{**small, **here}).state_dict()
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    path = safetensors(state, tmp_path)
    expected = timm.create_model(name, **{**small, **there})
    module = __import__(type(expected).__module__, fromlist=["checkpoint_filter_fn"])
    timm.models.load_checkpoint(
        expected, str(path), strict=False, filter_fn=module.checkpoint_filter_fn
    )
    told: list[str] = []
    found = models.create(name, {**small, **there}, weights=str(path), told=told).state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(found[key], tensor), key
    assert any("resampled by timm" in line for line in told)


def test_grey_images(tmp_path: Path) -> None:
    path = safetensors(made().state_dict(), tmp_path)
    found = loaded(path, in_chans=1)["patch_embed.proj.weight"]
    assert torch.equal(found, made().state_dict()["patch_embed.proj.weight"].sum(1, keepdim=True))


# -- Hugging Face ---------------------------------------------------------------------------------

hf = pytest.importorskip("transformers")
_SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 16, "intermediate_size": 96, "num_labels": 5,
}  # fmt: skip
_TIMM = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 5}
PAIRS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**_SIZES)), NAME, _TIMM),
    "deit": (
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_SIZES)),
        "deit_tiny_distilled_patch16_224", _TIMM,
    ),
    "beit": (
        lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**_SIZES, use_relative_position_bias=True)
        ),
        "beit_base_patch16_224", _TIMM,
    ),
    "dinov2": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**{**_SIZES, "patch_size": 14, "image_size": 28})),
        "vit_small_patch14_dinov2", {**_TIMM, "img_size": 28, "num_classes": 0},
    ),
    "clip": (
        lambda: hf.CLIPVisionModelWithProjection(
            hf.CLIPVisionConfig(**{**_SIZES, "projection_dim": 5})
        ),
        "vit_base_patch16_clip_quickgelu_224", _TIMM,
    ),
    "swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[2, 1],
                          num_heads=[2, 4], window_size=4, num_labels=5)
        ),
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (2, 1), "num_heads": (2, 4), "img_size": 32,
         "window_size": 4, "num_classes": 5},
    ),
}  # fmt: skip


@pytest.fixture(params=PAIRS)
def pair(request: Any) -> tuple[nn.Module, str, dict[str, Any]]:
    """A model of Hugging Face, and how timm's of the same architecture is made."""
    make, name, options = PAIRS[request.param]
    torch.manual_seed(5)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, name, options


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits, or the class token where there is no head."""
    found: Any = model.eval()(x)
    if isinstance(found, torch.Tensor):
        return found
    for name in ("logits", "image_embeds"):
        if getattr(found, name, None) is not None:
            result: torch.Tensor = getattr(found, name)
            return result
    last: torch.Tensor = found.last_hidden_state[:, 0]
    return last


@torch.no_grad()
def test_files_of_hugging_face_fit_timms_model(pair: Any, tmp_path: Path) -> None:
    theirs, name, options = pair
    theirs.save_pretrained(tmp_path)
    told: list[str] = []
    mine = models.create(name, options, weights=str(tmp_path), told=told)
    x = torch.randn(2, 3, options["img_size"], options["img_size"])
    torch.testing.assert_close(outputs(mine, x), outputs(theirs, x), rtol=2e-3, atol=2e-3)
    assert any("names of Hugging Face taken for timm's" in line for line in told)
    assert not any("newly initialised" in line for line in told)


@torch.no_grad()
def test_files_of_timm_fit_hugging_faces_model(pair: Any, tmp_path: Path) -> None:
    theirs, name, options = pair
    torch.manual_seed(9)
    source = timm.create_model(name, **options)
    path = safetensors(source.state_dict(), tmp_path)
    told = models.load_checkpoint(theirs, path).told
    x = torch.randn(2, 3, options["img_size"], options["img_size"])
    torch.testing.assert_close(outputs(theirs, x), outputs(source, x), rtol=2e-3, atol=2e-3)
    assert any("names of timm taken for Hugging Face's" in line for line in told)


# -- what is said, and what is refused ------------------------------------------------------------


def test_plan_and_report_tell_what_is_adapted(tmp_path: Path) -> None:
    path = saved({"state_dict": made(num_classes=9).state_dict()}, tmp_path, "w.ckpt")
    options = ", ".join(f"{k}={v}" for k, v in SMALL.items())
    spec = vr.parse(f"model {NAME}({options})\ninsert lora(rank=2) at blocks[*].attn.q\n")
    plan = vr.plan(spec, weights=str(path))
    line = "'head' is newly initialised: the checkpoint has 9 classes"
    assert line in str(plan)
    rewritten = vr.apply(spec, weights=str(path))
    assert any(line in each for each in rewritten.report["warnings"])
    assert plan.to_json()["warnings"] == rewritten.report["warnings"]


class Code:
    """What no checkpoint may hold."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def truncated(state: State, folder: Path) -> Path:
    path = saved(state, folder, "w.pth")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def not_a_number(state: State, folder: Path) -> Path:
    odd = torch.full_like(state["norm.bias"], torch.nan)
    return safetensors({**state, "norm.bias": odd}, folder)


def another(state: State, folder: Path) -> Path:
    return safetensors(timm.create_model("deit_tiny_patch16_224").state_dict(), folder)


REFUSED: dict[str, tuple[Callable[[State, Path], Path], str, str]] = {
    "a program": (lambda s, f: saved({"model": s, "x": Code()}, f, "w.pth"), "VR711", "run code"),
    "cut short": (truncated, "VR711", "cut short"),
    "missing": (lambda s, f: f / "none.pth", "VR711", "no such file"),
    "an empty folder": (lambda s, f: f, "VR711", "no weights in it"),
    "numbers": (lambda s, f: saved({"epoch": 3}, f, "w.pth"), "VR711", "no tensors"),
    "a tensor": (lambda s, f: saved(torch.ones(2), f, "w.pth"), "VR711", "Tensor"),
    "NaN": (not_a_number, "VR716", "norm.bias"),
    "another model": (another, "VR712", "vit_tiny"),
    "half of it": (
        lambda s, f: safetensors({k: v for k, v in s.items() if "blocks.1" not in k}, f),
        "VR712", "missing: blocks.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_checkpoint_of_the_model_is_refused(form: str, tmp_path: Path) -> None:
    make, code, said = REFUSED[form]
    path = make(made().state_dict(), tmp_path)
    with pytest.raises(VitrewriteError) as error:
        loaded(path)
    assert error.value.code == code
    assert said in error.value.render()
