"""`show tokens`: groups are those that the merges make, drawn as the authors draw them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitrewrite as vr
from vitrewrite.report.tokens import DROPPED, TokenMap

from .invoke import invoke

MODEL = "model test_vit\n"
BDM = "insert merge.bdm() after blocks[2].attn\n"
TOME = "insert merge.tome(r=16) after blocks[0:4].attn\n"


def groups_by_hand(spec: str, pixels: torch.Tensor) -> torch.Tensor:
    """Which patches are in one token: those that a change of one token's input reaches.

    The merges are run again on one-hot tokens: a token holds the patches whose columns it has.
    """
    made = vr.apply(MODEL + spec)
    held: list[torch.Tensor] = []

    def follow(module: torch.nn.Module, given: tuple[torch.Tensor, ...], result: object) -> None:
        x, k, *size = given
        one_hot = torch.eye(x.shape[1])[None] if not held else held[-1]
        held.append(module.forward(one_hot, k, *size)[0])  # type: ignore[operator]

    changers = [m for m in made.module.modules() if hasattr(m, "traced")]
    hooks = [m.register_forward_hook(follow) for m in changers]
    with torch.no_grad():
        made.module.eval()(pixels[None])
    for hook in hooks:
        hook.remove()
    return (held[-1][0] > 0).float().argmax(dim=0)[1:] - 1


@pytest.mark.parametrize("spec", [BDM, TOME, TOME + "prepend prompt(count=3) to blocks[0]\n"])
def test_groups_are_those_of_the_merges(spec: str) -> None:
    """Against one-hot tokens that are merged themselves; joined prompts move nothing."""
    torch.manual_seed(0)
    pixels = torch.randn(3, 160, 160)
    found = TokenMap.of(vr.apply(MODEL + spec), pixels)
    assert found.groups.shape == (10, 10)
    if "prompt" not in spec:
        assert torch.equal(found.groups.flatten(), groups_by_hand(spec, pixels))
    same = found.groups.flatten()[:, None] == found.groups.flatten()
    assert int(same.sum()) > 100  # some patches share a token
    assert found.tokens[0] - found.tokens[-1] == (50 if "bdm" in spec else 64)


def test_counting_starts_anew_where_all_patches_are_back() -> None:
    """Behind an unmerge the second merge alone says who shares a token."""
    back = "insert unmerge() after blocks[2]\n"
    again = "insert merge.bdm(split=row) after blocks[4].attn\n"
    pixels = torch.randn(3, 160, 160)
    found = TokenMap.of(vr.apply(MODEL + BDM + back + again), pixels).groups.flatten()
    assert found.unique().numel() == 50


def test_painting_is_that_of_the_card() -> None:
    """Mean colours inside, seeded outlines, the rim of the image an edge; dropped patches fade."""
    image = torch.rand(3, 8, 8)
    groups = torch.tensor([[0, 0], [1, DROPPED]])
    made = TokenMap("t", groups, (5, 3)).painted(image)
    outline = random.Random(0)
    colours = [torch.tensor([outline.random() for _ in range(3)]) for _ in range(2)]
    assert torch.allclose(made[:, 0, 0], colours[0])
    assert torch.allclose(made[:, 1, 1], image[:, :4].mean(dim=(1, 2)))
    assert torch.allclose(made[:, 7, 0], colours[1])
    assert torch.allclose(made[:, 6, 2], image[:, 4:, :4].mean(dim=(1, 2)))
    assert torch.allclose(made[:, 4:, 4:], 0.2 * image[:, 4:, 4:] + 0.8)


def test_two_specs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes a PNG, and says how many tokens are left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.peft").write_text(MODEL + BDM)
    (tmp_path / "two.peft").write_text(MODEL + TOME)
    Image.new("RGB", (90, 60), (200, 20, 20)).save("red.png")
    done = invoke("show", "tokens", "one.peft", "two.peft", "--image", "red.png", "--out", "t.png")
    assert "one: tokens 101, 51\ntwo: tokens 101, 85, 69, 53, 37" in done.out
    with Image.open("t.png") as picture:
        assert picture.width == 1240


def test_a_model_that_keeps_its_tokens_is_refused(tmp_path: Path) -> None:
    """It says what is missing."""
    (tmp_path / "lora.peft").write_text(MODEL + "insert lora() at blocks[*].attn.q\n")
    done = invoke("show", "tokens", str(tmp_path / "lora.peft"), "--out", str(tmp_path / "x.png"))
    assert done.status == 1
    assert "VR301 'lora' merges and drops no tokens" in done.err
