"""The table of `vitrewrite sites`."""

from __future__ import annotations

import json
from collections.abc import Callable

from vitrewrite.anatomy import Anatomy
from vitrewrite.anatomy.report import _wrapped, to_json, to_text

SWIN = """\
SwinTransformer: 12 blocks in 4 stages, 52 linear layers

patch embedding patch_embed
stream          nhwc, 3136 tokens, 56 x 56 patches
prefix tokens   none
final norm      norm
head            head.fc 768 -> 1000

               stage  dim  module                  attention                     mlp          norms
blocks[0:2]    0      96   layers.0.blocks.0 .. 1  3 heads qkv proj 7x7 manual   fc1 act fc2  1 2
blocks[2:4]    1      192  layers.1.blocks.0 .. 1  6 heads qkv proj 7x7 manual   fc1 act fc2  1 2
blocks[4:10]   2      384  layers.2.blocks.0 .. 5  12 heads qkv proj 7x7 manual  fc1 act fc2  1 2
blocks[10:12]  3      768  layers.3.blocks.0 .. 1  24 heads qkv proj manual      fc1 act fc2  1 2
"""


def test_text(anatomy: Callable[[str], Anatomy]) -> None:
    assert to_text(anatomy("swin_tiny_patch4_window7_224")) == SWIN


def test_notes_are_printed(anatomy: Callable[[str], Anatomy]) -> None:
    text = to_text(anatomy("cait_xxs24_224"))
    assert text.endswith("notes\n  cls_token joins the tokens at blocks[24]\n")


def test_json(anatomy: Callable[[str], Anatomy]) -> None:
    found = json.loads(json.dumps(to_json(anatomy("vit_base_patch16_224"))))
    assert found["sites"]["blocks[3].attn.q"] == "blocks.3.attn.q"
    assert found["blocks"][0]["attn"]["k"]["rows"] == [768, 1536]
    assert found["stream"]["grid"] == [14, 14]


def test_a_line_of_just_the_width_is_not_broken() -> None:
    assert len(_wrapped(f"{'a' * 48} {'b' * 49}")) == 1
    assert _wrapped(f"{'a' * 48} {'b' * 50}") == ["a" * 48, f"  {'b' * 50}"]
