"""Gradient checkpointing of a model is kept: in results, when written, and through `lower`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import vitrewrite as vr
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.about import about
from vitrewrite.tracing.unit import checkpointed

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"


def saved(model: nn.Module, x: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many numbers a training step keeps for backward, its output, and the input's gradient."""
    count = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = model.train()(x)
    output.square().sum().backward()
    assert x.grad is not None
    return count, output.detach(), x.grad


def tiny(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**{**small, "num_classes": 3, **options})


@pytest.fixture(scope="module")
def base() -> VisionTransformer:
    """With what is drawn at random, so that it has to be drawn again alike."""
    model = tiny(drop_path_rate=0.2, proj_drop_rate=0.1)
    model.set_grad_checkpointing(True)
    return model


@pytest.fixture(scope="module")
def rewritten(base: VisionTransformer) -> vr.Rewritten:
    return vr.apply(LORA, base)


def test_a_captured_model_keeps_as_little_as_the_model_itself(base: VisionTransformer) -> None:
    x = torch.randn(2, 3, 32, 32)
    own, found = saved(base, x), saved(vr.capture(base), x)
    assert found[0] == own[0]
    assert torch.equal(found[1], own[1])
    assert torch.equal(found[2], own[2])
    assert own[0] < 0.5 * saved(tiny(), x)[0]


def _written(rewritten: vr.Rewritten, folder: Path) -> nn.Module:
    vr.emit(rewritten, folder / "out")
    return load_folder(folder / "out").module


RESULTS: dict[str, Callable[[vr.Rewritten, Path], nn.Module]] = {
    "module": lambda r, _: r.module,
    "emitted": lambda r, _: emitted_twin(model_text(r), r.module.state_dict()),
    "lowered": lambda r, _: vr.lower(r).module,
    "folder": _written,
    "pickled": lambda r, _: pickle.loads(pickle.dumps(r.module)),
    "captured": lambda r, _: vr.capture(copy.deepcopy(r.module)),
}


@pytest.mark.parametrize("result", RESULTS)
def test_every_result_checkpoints(rewritten: vr.Rewritten, result: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    count, output, _ = saved(RESULTS[result](rewritten, tmp_path), x)
    plain, _, _ = saved(vr.apply(LORA, tiny(proj_drop_rate=0.1)).module, x)
    assert count < 0.5 * plain
    if result != "lowered":  # which has no LoRA, whose dropout draws as well
        assert torch.equal(output, saved(rewritten.module, x)[1])


def test_the_report_and_the_plan_say_so(rewritten: vr.Rewritten, base: VisionTransformer) -> None:
    assert rewritten.report["checkpointing"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert "checkpoints  blocks.0 and 2 more" in str(vr.plan(LORA, base))
    assert "return checkpoint(self.compute, x, use_reentrant=False)" in model_text(rewritten)


def test_a_model_that_has_none_is_printed_as_ever() -> None:
    found = vr.apply(LORA, tiny())
    assert "checkpoint" not in model_text(found)
    assert "checkpointing" not in found.report


def test_a_pass_that_changes_a_block_is_inside(base: VisionTransformer) -> None:
    x = torch.randn(2, 3, 32, 32)
    adapted = vr.apply("insert adapter(hidden=2) at blocks[*].mlp.fc2", base)
    assert saved(adapted.module, x)[0] < 1.1 * saved(vr.capture(base), x)[0]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.1)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm(x)))))


class Own(nn.Module):
    """A model of one's own that checkpoints its blocks in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.blocks = nn.Sequential(*(Mlp() for _ in range(4)))
        self.head = nn.Linear(8, 3)

    def two(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x)) + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "sequential":
            return self.head(checkpoint_sequential(self.blocks, 4, x, use_reentrant=False))
        if self.way == "whole":
            return self.head(checkpoint(self.blocks, x, use_reentrant=False))
        if self.way == "part":
            return self.head(checkpoint(self.two, x, use_reentrant=False))
        for i, block in enumerate(self.blocks):
            if (self.way == "other" and i % 2) or (self.way == "training" and not self.training):
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.way == "reentrant")
        return self.head(x)


@pytest.mark.parametrize("way", ["each", "reentrant", "training", "other", "whole"])
def test_checkpoints_of_ones_own(way: str) -> None:
    torch.manual_seed(0)
    model, x = Own(way), torch.randn(2, 5, 8)
    captured = vr.capture(model, x)
    own, found = saved(model, x), saved(captured, x)
    assert found[0] == own[0]
    assert torch.equal(found[1], own[1])
    assert torch.equal(found[2], own[2])
    emitted = vr.apply("train head", model, example=x)
    twin = emitted_twin(model_text(emitted), model.state_dict()).requires_grad_(True)
    assert saved(twin, x)[0] == own[0]


def test_only_some_blocks() -> None:
    x = torch.randn(2, 5, 8)
    found = vr.apply("train head", Own("other"), example=x)
    assert found.report["checkpointing"] == ["blocks.0", "blocks.2"]
    assert "if self.training and self.checkpointed:" in model_text(found)


def test_a_part_of_the_model_itself_is_told() -> None:
    found = vr.apply("train head", Own("part"), example=torch.randn(2, 5, 8))
    assert found.report["checkpointing"] == ["blocks.0", "blocks.1"]
    (warning,) = found.report["warnings"]
    assert "the model checkpoints a part of what it computes" in warning


def test_the_model_itself_checkpoints_afterwards_as_before(base: VisionTransformer) -> None:
    x = torch.randn(2, 3, 32, 32)
    before = saved(base, x)[0]
    vr.capture(base)
    assert saved(base, x)[0] == before


class Sized(nn.Module):
    """Checkpoints a unit that it hands a size, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Divided()

    def part(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x.size(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = checkpoint(self.part, x, use_reentrant=False)
        return found


class Divided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return self.layer(x) / count


def test_sizes_are_no_part_that_is_kept_in_memory() -> None:
    captured = vr.capture(Sized(), torch.zeros(2, 3, 4))
    assert checkpointed(captured) == ("inner",)
    assert about(captured).notes == ()
