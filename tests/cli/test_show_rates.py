"""`show rates`: what is painted is what the gates of the model say, on merged tokens too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import vitrewrite as vr
from vitrewrite.report.rates import RatesPicture

from .invoke import invoke

DISPATCH = "model test_vit\ninsert dispatch() at blocks[*].mlp_branch\n"


@pytest.mark.parametrize("lowered", [False, True])
def test_patches_are_those_that_the_gates_let_pass(lowered: bool) -> None:
    """The maps are the gates that the entry of the model yields; without gathering and with it."""
    torch.manual_seed(0)
    image = torch.rand(3, 160, 160)
    made = vr.apply(DISPATCH)
    with torch.no_grad():
        _, gates = made.module.eval().dynamic(image[None])
    shown = RatesPicture.of(vr.lower(made) if lowered else made, image, image)
    assert [layer.name for layer in shown.layers] == [f"blocks[{i}].mlp_branch" for i in range(6)]
    for layer, gate in zip(shown.layers, gates, strict=True):
        assert torch.equal(layer.active.flatten(), gate[0, 1:] > 0.5)
        assert layer.rate == pytest.approx(float(gate[0, 1:].mean()))


def test_a_merged_token_stands_for_its_patches() -> None:
    """Behind a merge all patches of a token are painted alike, and rates count tokens."""
    image = torch.rand(3, 160, 160)
    both = DISPATCH + "insert merge.bdm() after blocks[2].attn\n"
    shown = RatesPicture.of(vr.apply(both), image, image)
    counts = [layer.active.numel() for layer in shown.layers]
    assert counts == [100] * 6
    shares = [round(layer.rate * (100 if i < 2 else 50), 4) for i, layer in enumerate(shown.layers)]
    assert all(share == int(share) for share in shares)


def test_two_gates_of_a_block_have_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command prints each gate and writes a PNG."""
    monkeypatch.chdir(tmp_path)
    spec = "model test_vit\ninsert dispatch() at blocks[0].{attn_branch, mlp_branch}\n"
    (tmp_path / "two.peft").write_text(spec)
    Image.new("RGB", (90, 60), (200, 20, 20)).save("red.png")
    done = invoke("show", "rates", "two.peft", "--image", "red.png", "--out", "r.png")
    assert "blocks[0].attn_branch" in done.out
    assert "blocks[0].mlp_branch" in done.out
    with Image.open("r.png") as picture:
        assert picture.width == 1240


def test_a_model_without_gates_is_refused(tmp_path: Path) -> None:
    """It says what is missing."""
    (tmp_path / "lora.peft").write_text("model test_vit\ninsert lora() at blocks[*].attn.q\n")
    done = invoke("show", "rates", str(tmp_path / "lora.peft"), "--out", str(tmp_path / "x.png"))
    assert done.status == 1
    assert "VR301 'lora' has no gates for tokens" in done.err
