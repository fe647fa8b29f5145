"""The check of the image size, which reads sizes before anything else of the model does."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr


class Patches(nn.Module):
    """Fixed in image size by its position embedding; reads the sizes after everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.proj = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 8)
        self.pos = nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.proj(self.embed(x).flatten(2).transpose(1, 2) + self.pos)
        b, _, h, w = x.shape
        return tokens.transpose(1, 2).reshape(b, 8, h // 16, w // 16)


class OtherInTraining(Patches):
    """Two programs, each with a size that is read late."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.training:
            y = self.proj(y.flatten(2).transpose(1, 2)).transpose(1, 2) * x.shape[3]
        return y.flatten(2).sum(2) / (x.shape[-1] + x.shape[-2])


class Two(Patches):
    """A second input whose sizes are read first, and again between those of the image."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        scale = z.shape[1] * x.shape[2]
        return super().forward(x).flatten(2).transpose(1, 2) * z.shape[1] + z * scale


@pytest.mark.parametrize("kind", [Patches, OtherInTraining, Two])
@pytest.mark.parametrize("training", [False, True])
def test_a_size_may_be_read_after_the_check(kind: Any, training: bool) -> None:
    torch.manual_seed(0)
    model = kind().train(training)
    inputs = [torch.randn(3, 3, 64, 64), torch.randn(3, 16, 8)][: 2 if kind is Two else 1]
    captured = vr.capture(model, tuple(inputs)).train(training)
    assert torch.equal(captured(*inputs), model(*inputs))
    with pytest.raises(ValueError, match="captured for 64x64, got 32x32"):
        captured(inputs[0][..., :32, :32], *inputs[1:])


def test_levels_of_features() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        features_only=True,
        img_size=64,
        out_indices=(0, 2),
        depth=3,
        embed_dim=48,
        num_heads=3,
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    found = vr.capture(model, x)(x)
    assert [*map(torch.equal, found, model(x))] == [True, True]


def test_lora_in_levels_of_features() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        features_only=True,
        img_size=64,
        out_indices=(0, 1),
        depth=2,
        embed_dim=48,
        num_heads=3,
    )
    x = torch.randn(2, 3, 64, 64)
    spec = "insert lora(rank=2) at blocks[*].attn.{q, v}"
    rewritten = vr.apply(spec, model, example=x)
    assert rewritten.report["params"]["trainable"] == 2 * 2 * 2 * (48 + 48)
