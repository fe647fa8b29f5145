"""`show attention`: the maps are the probabilities that the model computes, patch by patch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitrewrite as vr
from vitrewrite.report.attention import AttentionPicture, Maps

from .invoke import invoke

TINY = "vit_tiny_patch16_224(img_size=64, depth=4, embed_dim=48, num_heads=3, num_classes=10)"
SWIN = (
    "swin_tiny_patch4_window7_224(img_size=56, depths=[2, 2], embed_dim=24, num_heads=[2, 4], "
    "num_classes=10)"
)


def maps(spec: str, size: int = 64, lowered: bool = False, **given: Any) -> tuple[Maps, ...]:
    torch.manual_seed(0)
    image = torch.rand(3, size, size)
    made = vr.apply(spec)
    return AttentionPicture.of(vr.lower(made) if lowered else made, [(image, image)], **given).maps


def probabilities(name: str, block: int, size: int = 64, **options: Any) -> torch.Tensor:
    """[batch, heads, queries, keys] of timm's own attention, by its layers."""
    made = vr.apply(f"model {name}\n")
    found: list[torch.Tensor] = []
    module: Any = made.base
    attention = module.get_submodule(f"blocks.{block}.attn")
    layer = attention.qkv
    layer.register_forward_hook(lambda m, given, out: found.append(out))
    torch.manual_seed(0)
    with torch.no_grad():
        made.base.eval()(torch.rand(3, size, size)[None])
    q, k, _ = found[0].unflatten(-1, (3, 3, -1)).unbind(2)
    scores = q.transpose(1, 2) @ k.transpose(1, 2).mT / math.sqrt(q.shape[-1])
    return scores.softmax(-1)


def test_maps_are_the_rows_of_the_softmax() -> None:
    """Row 1, column 2 of a grid of 4 x 4 is token 7, behind the class token."""
    for each in maps(f"model {TINY}\n", blocks=[0, 3], query=(1, 2)):
        expected = probabilities(TINY, each.block)[0, :, 7, 1:]
        torch.testing.assert_close(each.heads.flatten(1), expected)
        assert each.heads.shape == (3, 4, 4)


@pytest.mark.parametrize("lowered", [False, True])
def test_blocks_keep_their_numbers_and_adapters_their_say(lowered: bool) -> None:
    plain = maps(f"model {TINY}\n", blocks=[0])
    spec = f"model {TINY}\ninsert lora() at blocks[*].attn.q\ndrop blocks[1]\n"
    first, third = maps(spec, lowered=lowered, blocks=[0, 2])
    torch.testing.assert_close(first.heads, plain[0].heads)
    assert third.block == 2


def test_images_are_averaged() -> None:
    made = vr.apply(f"model {TINY}\n")
    a, b = torch.rand(3, 64, 64), torch.rand(3, 64, 64)
    both = AttentionPicture.of(made, [(a, a), (b, b)], [3])
    each = [AttentionPicture.of(made, [(x, x)], [3]).maps[0].heads for x in (a, b)]
    torch.testing.assert_close(both.maps[0].heads, (each[0] + each[1]) / 2)


def test_a_window_is_seen_where_it_is() -> None:
    """All of a probability is in the query's window of 7 x 7; shifted ones wrap, and are masked."""
    plain, shifted, third = maps(f"model {SWIN}\n", 56, blocks=[0, 1, 2], query=(8, 1))
    assert plain.heads.shape == (2, 14, 14)
    for each in (plain, shifted, third):
        torch.testing.assert_close(each.heads.flatten(1).sum(1), torch.ones(len(each.heads)))
    seen = plain.heads[0] > 0
    assert seen[7:14, 0:7].all()
    assert int(seen.sum()) == 49
    moved = (shifted.heads[0] > 1e-12).nonzero()
    assert moved.min(0)[0].tolist() == [3, 0]  # shifted by three: rows 3 to 9, columns to 2
    assert moved.max(0)[0].tolist() == [9, 2]
    assert third.query == (4, 0)  # of a grid that is half as fine


def test_a_window_has_the_probabilities_of_the_model() -> None:
    """Against timm's own partition of scores that are made by hand."""
    made = vr.apply(f"model {SWIN}\n")
    found: list[torch.Tensor] = []
    attention: Any = made.base.get_submodule("layers.0.blocks.0.attn")
    attention.qkv.register_forward_hook(lambda m, given, out: found.append(out))
    image = torch.rand(3, 56, 56)
    (shown,) = AttentionPicture.of(made, [(image, image)], [0], (8, 1)).maps
    with torch.no_grad():
        made.base.eval()(image[None])
    q, k, _ = found[-1].unflatten(-1, (3, 2, -1)).unbind(2)
    scores = q.transpose(1, 2) @ k.transpose(1, 2).mT / math.sqrt(q.shape[-1])
    table = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    weights = (scores + table.view(49, 49, 2).permute(2, 0, 1)).softmax(-1)
    expected = weights[2, :, 7 * 1 + 1].view(2, 7, 7)  # the window below the first
    torch.testing.assert_close(shown.heads[:, 7:14, 0:7], expected)


def test_patches_of_a_token_share_what_it_gets() -> None:
    spec = f"model {TINY}\ninsert merge.tome(r=2) after blocks[*].attn\n"
    for each in maps(spec, blocks=[0, 3]):
        total = each.heads.flatten(1).sum(1)
        assert (total < 1).all()
        assert (total > 0.8).all()


def test_what_is_no_map_of_patches_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")

    def refused(*words: str) -> str:
        done = invoke("show", "attention", *words, "--out", out)
        assert done.status in (1, 2)
        return done.err

    conv = "convnext_atto(depths=[1, 1, 1, 1])"
    assert "VR490 blocks[0] does not attend" in refused(conv, "--block", "0")
    assert "VR490 no block of" in refused(conv)
    assert "VR491 blocks[0] attends over channels" in refused("xcit_nano_12_p16_224(depth=2)")
    pooled = "pvt_v2_b0(depths=[1, 1, 1, 1])"
    assert "VR491 the attention of blocks[0]" in refused(pooled, "--block", "0")
    assert "VR492 there is no patch 4,0" in refused(TINY, "--query", "4,0")
    assert "VR493 there is no blocks[4]" in refused(TINY, "--block", "0,4")
    assert "'a' is no list of numbers" in refused(TINY, "--block", "a")
    assert "its row and its column" in refused(TINY, "--query", "3")
    (tmp_path / "d.peft").write_text(f"model {TINY}\ndrop blocks[1]\n")
    told = refused(str(tmp_path / "d.peft"), "--block", "1")
    assert "VR490 blocks[1] was dropped" in told
    assert "blocks that attend: 0, 2, 3" in told
    assert not Path(out).exists()


def test_the_command_takes_a_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (90, 60), (200, 20, 20)).save("photos/a.png")
    Image.new("RGB", (60, 90), (20, 20, 200)).save("photos/b.png")
    vr.emit(vr.apply(f"model {TINY}\n"), "made")
    done = invoke(
        "show",
        "attention",
        "made",
        "--image",
        "photos",
        "--block",
        "0,3",
        "--query",
        "0,3",
        "--out",
        "a.png",
        "--json",
    )
    told = json.loads(done.out)
    assert told["images"] == 2
    assert [block["block"] for block in told["blocks"]] == [0, 3]
    assert all(0.9 < share < 1 for share in told["blocks"][0]["on_patches"])
    with Image.open("a.png") as picture:
        assert picture.width == 1240
    Path("none").mkdir()
    assert "VR742" in invoke("show", "attention", TINY, "--image", "none", "--out", "b.png").err
