"""Attention under a mask of booleans or a causal one, which a block calls itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.sites.by_hand import PAIRS, RECEIVED, agree


class Masked(nn.Module):
    """A block whose queries do not see all keys."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.causal:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([Masked(causal), Masked(causal)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)
        self.register_buffer("mask", torch.rand(16, 16) > 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, self.mask)
        made: torch.Tensor = self.head(self.norm(x).mean(1))
        return made


class ByHand(nn.Module):
    """The same with a bias of pairs in the second block, and how peaked the weights are added."""

    def __init__(self, gains: list[torch.Tensor], bias: torch.Tensor) -> None:
        super().__init__()
        self.model, self.gains, self.bias = Model(causal=False), gains, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        model = self.model
        x = model.embed(x).flatten(2).transpose(1, 2)
        for i, block in enumerate(model.blocks):
            q, k, v = block.qkv(block.norm1(x)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-2, -1) / math.sqrt(8) + (self.bias if i else 0)
            weights = scores.masked_fill(~model.mask, -math.inf).softmax(-1)
            x = x + block.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + self.gains[i] * weights.mean(1).square().mean((1, 2))[:, None, None]
            x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
        made: torch.Tensor = model.head(model.norm(x).mean(1))
        return made


def test_masks_of_booleans_stay_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under weights that are read, and under a bias that is added."""
    install(
        monkeypatch,
        tmp_path,
        veiled=RECEIVED.format(name="veiled", tap="weights"),
        vpairs=PAIRS.replace("{name}", "vpairs"),
    )
    read = "insert veiled() at blocks[*].attn"
    pairs = "insert vpairs(queries=16, keys=16) at blocks[1].attn"
    for spec in (f"{read}\n{pairs}\n", f"{pairs}\n{read}\n"):
        rewritten = fill(vr.apply(spec, Model(causal=False), input="1x3x16x16"))
        delta = rewritten.delta()
        gains = [delta[f"blocks.{i}.veiled.gain"] for i in range(2)]
        (bias,) = (v for k, v in delta.items() if k.endswith("vpairs.bias"))
        agree(rewritten, ByHand(gains, bias))
    alone = fill(vr.apply(f"{pairs}\n", Model(causal=False), input="1x3x16x16"))
    agree(alone, ByHand([torch.zeros(16)] * 2, alone.delta()[next(iter(alone.delta()))]))


@pytest.mark.parametrize(
    "clause",
    [
        "insert cpairs() at blocks[0].attn",
        "insert cread() at blocks[0].attn",
        "prepend kv_prompt(n=2) to blocks[0].attn",
    ],
)
def test_causal_attention_is_refused(
    clause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        monkeypatch,
        tmp_path,
        cread=RECEIVED.format(name="cread", tap="weights"),
        cpairs=PAIRS.replace("{name}", "cpairs"),
    )
    with pytest.raises(
        vr.VitrewriteError, match=r"VR410 .* each query sees the keys in front of it"
    ):
        vr.apply(f"{clause}\n", Model(causal=True), input="1x3x16x16")
