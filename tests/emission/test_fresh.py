"""What is made and changed at once, and lists of calls that differ in one number within."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr

IMAGE = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is None:
            return self.out(F.scaled_dot_product_attention(x, x, x, scale=4**-0.5))
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(mask, float("-inf"))
        scores = torch.baddbmm(bias, x * 4**-0.5, x.transpose(-2, -1))
        return self.out(torch.bmm(F.softmax(scores, dim=-1), x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention() for _ in range(2))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(4, dim), nn.ReLU()) for dim in (3, 5, 7)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attentions[0](x) + self.attentions[1](x, (x @ x.transpose(1, 2)) > 3)
        return torch.cat([projection(x) for projection in self.projections], -1)


def test_one_class_with_and_without_a_mask() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    found = vr.capture(model, IMAGE)
    with torch.no_grad():
        assert torch.equal(model(IMAGE), found(IMAGE))
    text = _text(found)
    assert _text(vr.capture(found, IMAGE)) == text
    assert text.count("class Attention") == 1
    assert "def forward(self, x, mask=None):" in text
    assert "0.5" in text
    assert "masked_fill(mask" in text
    assert "for p in (3, 5, 7)" in text


def _text(module: Any) -> str:
    return str(type(module).printed.text)
