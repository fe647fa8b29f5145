"""What a model is called with: stated, remembered by every result, and found in what is written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from tests.lowering.models import fill
from vitrewrite import models
from vitrewrite.language.inputs import read_shapes, show_shapes

FIRST = "insert lora(rank=2) at blocks[*].attn.{q, v}"
SECOND = "insert lora(rank=2) at blocks[*].mlp.fc1"
PARAMETERS = 2 * 2 * (16 + 32)  # of the second clause: two blocks, rank 2, 16 and 32 features


class TwoInputs(nn.Module):
    """Tokens, and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.others = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        return x.mean(1) + self.others(y)


@pytest.fixture(scope="module")
def rewritten() -> vr.Rewritten:
    """Of a model for images of 32 pixels, whose class is for 224 by default."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    return vr.apply(FIRST, VisionTransformer(**small, mlp_ratio=2, num_classes=3).eval())


def _pickled(module: nn.Module) -> nn.Module:
    result: nn.Module = pickle.loads(pickle.dumps(module))
    return result


RESULTS: dict[str, Callable[[vr.Rewritten], nn.Module]] = {
    "module": lambda r: r.module,
    "lowered": lambda r: vr.lower(r).module,
    "captured": lambda r: vr.capture(r.module),
    "copy": lambda r: copy.deepcopy(r.module),
    "pickled": lambda r: _pickled(r.module),
    "bfloat16": lambda r: copy.deepcopy(r.module).bfloat16(),
}


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_knows_what_it_was_captured_with(rewritten: vr.Rewritten, result: str) -> None:
    again = vr.apply(SECOND, RESULTS[result](rewritten))
    assert again.report["params"]["trainable"] == PARAMETERS
    assert [tuple(v.shape) for v in again.result.example] == [(1, 3, 32, 32)]


def test_what_is_written_knows_it_too(rewritten: vr.Rewritten, tmp_path: Path) -> None:
    vr.emit(rewritten, tmp_path / "out")
    assert 'INPUT = "1x3x32x32"\n' in (tmp_path / "out" / "model.py").read_text()
    rebuilt = models.create(f"{tmp_path / 'out' / 'model.py'}:build")
    assert vr.plan(SECOND, rebuilt).measures.params.trainable == PARAMETERS


def test_a_flat_graph_is_captured_as_it_is(rewritten: vr.Rewritten) -> None:
    flat = vr.capture(rewritten.module).flat()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(vr.capture(flat)(x), rewritten.module(x))


@pytest.mark.parametrize("stated", ["1x5x8,1x4", ["1x5x8", "1x4"], "1x5x8:float32,1x4"])
def test_several_inputs_are_stated(stated: Any, tmp_path: Path) -> None:
    spec = "insert lora(rank=2) at every linear"
    found = vr.apply(spec, TwoInputs().eval(), input=stated)
    assert [tuple(v.shape) for v in found.result.example] == [(1, 5, 8), (1, 4)]
    assert vr.plan(SECOND.replace("blocks[*].mlp.fc1", "every linear"), vr.capture(found.base))


def test_tests_that_are_written_call_a_model_with_all_inputs(tmp_path: Path) -> None:
    spec = "insert lora(rank=2) at every linear"
    vr.emit(vr.apply(spec, TwoInputs().eval(), input="1x5x8,1x4"), tmp_path / "out")
    space: dict[str, Any] = {"__file__": str(tmp_path / "out" / "test_model.py")}
    exec((tmp_path / "out" / "test_model.py").read_text(), space)
    model = space["_source"]().load(tmp_path / "out" / "weights.safetensors")
    space["test_images_do_not_see_each_other"](model)
    space["test_gradients_reach_what_is_trained_and_nothing_else"](model)


def test_tests_that_are_written_know_the_start_of_what_was_trained(tmp_path: Path) -> None:
    """Also where a helper of the branch, which drops it by sample, has nothing to be drawn."""
    options = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 16, "num_classes": 2}
    spec = "insert lora(rank=2, convention=spt) at blocks[*].attn.q\n"
    rewritten = fill(vr.apply(spec, "vit_tiny_patch16_224", model_options=options))
    folder = vr.emit(rewritten, tmp_path / "out")
    space: dict[str, Any] = {"__file__": str(folder / "test_model.py")}
    exec((folder / "test_model.py").read_text(), space)
    model = space["_source"]().load(folder / "weights.safetensors").eval()
    name = "test_at_its_start_it_is_the_model_that_it_was_made_from"
    space[name](model, 2, True, torch.float32)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1x3x64x64", "1x3x64x64"),
        ("[1, 3, 64, 64]", "1x3x64x64"),
        ("2x3x64x64", "2x3x64x64"),
        ("[1x3x64x64, 1x10:int64]", "1x3x64x64,1x10:int64"),
        ("1x197x768", "1x197x768"),
    ],
)
def test_shapes_are_read_and_shown(text: str, shown: str) -> None:
    assert show_shapes(read_shapes(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "64", "3x64x64", "1x0x4x4", "1xx4", "1x4:f32", "1x99999x99999"]
)
def test_what_is_no_input_is_refused(text: str) -> None:
    with pytest.raises(vr.VitrewriteError, match="VR231"):
        vr.parse(f"{FIRST}\n", input=text)
