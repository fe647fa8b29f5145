"""The bases that papers start from, and the layouts of their authors' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import vitrewrite as vr
from vitrewrite import models

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def vit(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("vit_base_patch16_224", num_classes=0, **TINY).state_dict()


def moco(encoder: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As MoCo v3's authors save: two encoders with projectors, a predictor, an optimiser."""
    state = {f"module.base_encoder.{k}": v for k, v in encoder.items()}
    state["module.base_encoder.head.0.weight"] = torch.zeros(64, 48)
    state |= {f"module.momentum_encoder.{k}": v + 1 for k, v in encoder.items()}
    state["module.predictor.0.weight"] = torch.zeros(64, 64)
    return {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {"state": {}}}


def mae(encoder: dict[str, torch.Tensor]) -> dict[str, Any]:
    more = {"mask_token": torch.zeros(1, 1, 48), "decoder_pos_embed": torch.zeros(1, 197, 32)}
    return {"model": {**encoder, **more}}


@pytest.mark.parametrize(
    ("base", "layout", "told"),
    [
        ("vit_base_moco_v3", moco, ["without 'module.base_encoder.'", "'head' is newly"]),
        ("vit_base_mae", mae, ["'head' is newly", "'fc_norm' is newly", "decoder_pos_embed"]),
        ("vit_base_in21k", dict, ["'head' is newly"]),
    ],
)
def test_vits(base: str, layout: Any, told: list[str], tmp_path: Path) -> None:
    encoder = vit()
    torch.save(layout(encoder), file := tmp_path / "x.pth.tar")
    lines: list[str] = []
    model = models.create(base, TINY, weights=str(file), told=lines)
    state = model.state_dict()
    shared = encoder.keys() & state.keys()
    assert len(shared) >= len(encoder) - 2
    assert all(torch.equal(state[name], encoder[name]) for name in shared)
    assert all(any(part in line for line in lines) for part in told), lines
    assert model.get_classifier().out_features == 1000


def test_swin_of_22k_classes(tmp_path: Path) -> None:
    given = timm.create_model("swin_base_patch4_window7_224", num_classes=21841, **SWIN)
    torch.save({"model": given.state_dict()}, file := tmp_path / "x.pth")
    model = models.create("swin_base_in22k", SWIN, weights=str(file))
    own, theirs = model.state_dict(), given.state_dict()
    assert all(torch.equal(own[k], v) for k, v in theirs.items() if not k.startswith("head"))


def jax_file(path: Path, width: int = 48, heads: int = 3, classes: int = 7) -> Path:
    """A checkpoint with the names and layout of ViT-B_16.npz."""
    draw = np.random.default_rng(0).standard_normal
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width), "embedding/kernel": (16, 16, 3, width), "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, 197, width),
        "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, classes), "head/bias": (classes,),
    }  # fmt: skip
    for block in range(2):
        name = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{name}/{norm}/scale": (width,), f"{name}/{norm}/bias": (width,)}
        inner = f"{name}/MultiHeadDotProductAttention_1"
        for role in ("query", "key", "value"):
            shapes[f"{inner}/{role}/kernel"] = (width, heads, width // heads)
            shapes[f"{inner}/{role}/bias"] = (heads, width // heads)
        shapes |= {f"{inner}/out/kernel": (heads, width // heads, width)}
        shapes |= {f"{inner}/out/bias": (width,)}
        for layer, (rows, columns) in enumerate([(width, 4 * width), (4 * width, width)]):
            shapes[f"{name}/MlpBlock_3/Dense_{layer}/kernel"] = (rows, columns)
            shapes[f"{name}/MlpBlock_3/Dense_{layer}/bias"] = (columns,)
    np.savez(path, **{k: draw(shape).astype("float32") for k, shape in shapes.items()})
    return path


def test_the_original_files_are_read_as_timm_reads_them(tmp_path: Path) -> None:
    file = jax_file(tmp_path / "ViT-B_16.npz")
    reference = timm.create_model("vit_base_patch16_224", num_classes=7, **TINY)
    reference.load_pretrained(str(file))
    model = models.create("vit_base_in21k", {**TINY, "num_classes": 7}, weights=str(file))
    wanted = reference.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())


def test_the_original_files_hold_numbers_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", cls=np.array([{"a": 1}], dtype=object))
    with pytest.raises(vr.VitrewriteError, match="VR711"):
        models.create("vit_base_in21k", TINY, weights=str(tmp_path / "x.npz"))


def test_what_was_adapted_is_kept(tmp_path: Path) -> None:
    file = jax_file(tmp_path / "x.npz")
    rewritten = vr.apply(
        "model vit_base_in21k(num_classes=3)\ntrain head", weights=str(file), model_options=TINY
    )
    vr.emit(rewritten, tmp_path / "out")
    for name, key in (("lock.json", "notes"), ("report.json", "warnings")):
        (line,) = json.loads((tmp_path / "out" / name).read_text())[key]
        assert "'head' is newly initialised: the checkpoint has 7 classes" in line
