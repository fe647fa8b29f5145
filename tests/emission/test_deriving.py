"""Printed classes that derive from others, and those that are called by their place."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from vitrewrite.emission.deriving import derived

BLOCK = '''class Block(nn.Module):
    """blocks[*]."""

    def __init__(self, rate, dim=8):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(rate)

    def forward(self, x):
        return self.drop(self.norm(x))'''
MODEL = """class Model(nn.Module):
    def forward(self, x):
        return x"""


def more(*lines: str, head: str = "self", body: str = "return self.merge(self.norm(x))") -> str:
    """A class with these statements in its constructor."""
    made = "\n".join(f"        {line}" for line in ("super().__init__()", *lines))
    forward = f"    def forward(self, x):\n        {body}"
    return f"class BlockWithMerge(nn.Module):\n    def __init__({head}):\n{made}\n\n{forward}"


LAYERS = "self.norm = nn.LayerNorm(8)", "self.drop = nn.Dropout(0.5)", "self.merge = nn.Identity()"


def test_what_it_adds_is_all_that_is_written() -> None:
    block, merge, model = derived([more(*LAYERS), BLOCK, MODEL])
    assert (block, model) == (BLOCK, MODEL)
    assert (
        merge
        == """class BlockWithMerge(Block):
    def __init__(self):
        super().__init__(0.5)
        self.merge = nn.Identity()

    def forward(self, x):
        return self.merge(self.norm(x))"""
    )


def test_arguments_are_handed_on_as_far_as_they_are_no_defaults() -> None:
    wide = "self.norm = nn.LayerNorm(2 * wide)", "self.drop = nn.Dropout(0.5)"
    (_, merge) = derived([BLOCK, more(*wide, LAYERS[2], head="self, wide")])
    assert "super().__init__(0.5, dim=2 * wide)" in merge


def test_one_that_only_computes_something_else_has_no_constructor() -> None:
    same = "self.norm = nn.LayerNorm(dim)", "self.drop = nn.Dropout(rate)"
    (_, merge) = derived([BLOCK, more(*same, head="self, rate, dim=8", body="return x")])
    assert merge == "class BlockWithMerge(Block):\n    def forward(self, x):\n        return x"


def test_methods_that_are_the_same_are_left_out() -> None:
    (_, merge) = derived([BLOCK, more(*LAYERS, body="return self.drop(self.norm(x))")])
    assert merge.endswith("self.merge = nn.Identity()")


def test_a_number_may_say_what_is_made() -> None:
    block = BLOCK.replace("nn.Dropout(rate)", "nn.Dropout(rate) if rate else nn.Identity()")
    assert "super().__init__(0.5)" in derived([block, more(*LAYERS)])[1]
    none = more(LAYERS[0], "self.drop = nn.Dropout(0.0)", LAYERS[2])
    assert derived([block, none]) == [block, none]


@pytest.mark.parametrize(
    "other",
    [
        more(LAYERS[2], *LAYERS[:2]),  # it would register them in another order
        more(*LAYERS[1:]),
        more("self.norm = nn.LayerNorm(8.0)", "self.drop = nn.Linear(8, 8)", LAYERS[2]),
        more("self.norm = nn.LayerNorm(8)", "self.drop = nn.Dropout(p())", LAYERS[2]),
        more(*LAYERS).replace("BlockWithMerge", "Merging"),
        more(*LAYERS).replace("    def __init__", "    rows = 2\n\n    def __init__"),
    ],
)
def test_others_stay_as_they_are(other: str) -> None:
    assert derived([other, BLOCK]) == [other, BLOCK]


def test_nothing_is_inherited_that_it_does_not_have() -> None:
    texts = [f"{BLOCK}\n\n    def extra(self):\n        return 1", more(*LAYERS)]
    assert derived(texts) == texts


def test_one_that_derives_may_be_derived_from() -> None:
    third = more(*LAYERS, "self.end = nn.Identity()").replace("Merge(", "MergeWithEnd(")
    names = [text.partition("\n")[0] for text in derived([third, more(*LAYERS), BLOCK])]
    assert names == [
        "class Block(nn.Module):", "class BlockWithMerge(Block):",
        "class BlockWithMergeWithEnd(BlockWithMerge):",
    ]  # fmt: skip


def source(module: Any) -> str:
    return str(type(module).printed.text)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_a_block_of_a_model_that_a_pass_gave_something(rate: float) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depth": 3, "num_heads": 2, "drop_path_rate": rate}
    model = VisionTransformer(32, 8, num_classes=2, **options).eval()
    rewritten = vr.apply("insert merge.bdm(hidden=2) after blocks[1].attn\n", model)
    text = source(rewritten.module)
    merge = text.partition("class BlockWithMerge(Block):")[2].partition("class ")[0]
    assert ("super().__init__(0.1000000" if rate else "super().__init__()") in merge
    assert "self.norm1 =" not in merge
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        again = vr.capture(rewritten.module, x)
        assert torch.equal(again(x), rewritten.module(x))
    assert source(again) == re.sub(r" *# <text>:.*\n", "", text)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc(x), x


class Sum(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[0] + pair[1]


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(Two(), Sum()) for _ in range(2))
        self.last_pass = nn.Sequential(Two(), nn.Identity(), Sum())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.last_pass(x)


def test_a_container_that_becomes_a_class_has_the_name_of_its_place() -> None:
    torch.manual_seed(0)
    model = Rows().eval()
    x = torch.randn(2, 4)
    found = vr.capture(model, x)
    text = source(found)
    assert "class Stage(nn.Module):" in text
    assert "class LastPass(nn.Module):" in text
    assert "class Sequential" not in text
    with torch.no_grad():
        assert torch.equal(found(x), model(x))
    assert source(vr.capture(found, x)) == text
