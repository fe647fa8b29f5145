"""Torch's attention modules take kernels of their own in eval: named, and at most 2e-6 apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitrewrite as vr


class Encoder(nn.Module):
    """Torch's own transformer, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(x).mean(1))


@pytest.mark.usefixtures("without_graphs")
def test_verify_and_report_name_them() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    found = vr.apply("train head", model, example=torch.zeros(1, 3, 32, 32))
    (warning,) = found.report["warnings"]
    assert warning.startswith(
        "nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer take kernels"
    )
    (check,) = [c for c in vr.verify(found) if c.name.startswith("kernels of their own")]
    assert check.holds
    assert check.measured <= 2e-6
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.base(x), model(x), rtol=0, atol=2e-6)
