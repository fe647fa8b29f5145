"""`input=` on the command line and in specs: every command takes it, and folders remember it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .invoke import invoke

UNSIZED = """
import torch
from torch import nn
from timm.models.vision_transformer import Block


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.Sequential(Block(16, 2), Block(16, 2))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def build():
    return Net()
"""
SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"


@pytest.fixture
def unsized(here: Path) -> Path:
    (here / "net.py").write_text(UNSIZED)
    (here / "net.peft").write_text(f"model net.py:build\n{SPEC}")
    return here


@pytest.mark.parametrize(
    "argv",
    [
        "sites net.py:build input=1x3x32x32",
        "sites net.py:build(input=1x3x32x32)",
        "sites net.py:build(input=[1,3,32,32])",
        "plan net.peft input=1x3x32x32",
        "check net.peft input=1x3x32x32",
        "plan net.peft model=net.py:build(input=1x3x32x32)",
    ],
)
def test_a_model_of_ones_own_is_told_its_input(argv: str, unsized: Path) -> None:
    assert invoke(*argv.split()).err == ""


def test_a_spec_says_it_and_the_folder_remembers_it(unsized: Path, without_graphs: None) -> None:
    (unsized / "net.peft").write_text(f"model net.py:build(input=1x3x32x32)\n{SPEC}")
    made = invoke("apply", "net.peft", "--no-weights", "--out", "out")
    assert (made.status, made.err) == (0, "")
    assert json.loads((unsized / "out" / "lock.json").read_text())["input"] == "1x3x32x32"
    assert invoke("verify", "out", "--trust").status == 0
    assert invoke("lower", "out", "--trust", "--out", "lowered").status == 0
    # What was written says it as well.
    other = "insert lora(rank=2) at blocks[*].mlp.fc1\n"
    (unsized / "other.peft").write_text(f"model out/model.py:build\n{other}")
    assert invoke("plan", "other.peft").err == ""


def test_who_says_none_is_told_how(unsized: Path) -> None:
    found = invoke("plan", "net.peft")
    assert (found.status, found.codes) == (1, ["VR601"])
    assert "help: give its input, such as input=1x3x224x224" in found.err


def test_an_image_without_its_batch_is_no_input(unsized: Path) -> None:
    found = invoke("plan", "net.peft", "input=3x32x32")
    assert found.status == 1
    assert found.err.splitlines() == [
        "<command line>:1:7: VR231 input is not known: '3x32x32' could be an image, or 3 sequences",
        "    input=3x32x32",
        "          ^^^^^^^",
        "  help: the batch comes first: write input=1x3x32x32 for one image",
    ]
