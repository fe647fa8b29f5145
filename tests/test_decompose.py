"""`nn.MultiheadAttention` is captured as products, views and a softmax: the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr

WIDTH, HEADS, B, L, S = 16, 4, 2, 5, 7


class Call(nn.Module):
    """Calls an attention with masks of its own making."""

    def __init__(self, call: dict[str, Any], **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        nn.init.normal_(self.attention.in_proj_bias)
        self.call = call

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        options = dict(self.call)
        first = self.attention.batch_first
        batch, source = key.shape[0 if first else 1], key.shape[1 if first else 0]
        target = query.shape[1 if first else 0]
        if "key_padding_mask" in options:
            late = torch.arange(source, device=key.device) >= source - 2
            options["key_padding_mask"] = late.expand(batch, source)
        mask = torch.arange(source, device=key.device) > 3
        if options.get("attn_mask") == "bool":
            options["attn_mask"] = mask.expand(target, source)
        if options.get("attn_mask") == "heads":
            options["attn_mask"] = mask.expand(batch * HEADS, target, source)
        if options.get("attn_mask") == "float":
            options["attn_mask"] = mask.to(query.dtype).expand(target, source)
        return self.attention(query, key, value, **options)


class Itself(Call):
    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, x, x)


class Memory(Call):
    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, memory, memory)


OPTIONS: list[dict[str, Any]] = [
    {}, {"bias": False}, {"dropout": 0.3}, {"batch_first": True, "dropout": 0.2},
    {"kdim": 12, "vdim": 10},
]  # fmt: skip
# Keys of another width are not the queries or the values.
KINDS = [(k, o) for k in (Call, Memory, Itself) for o in OPTIONS if k is Call or "kdim" not in o]
CALLS: list[dict[str, Any]] = [
    {}, {"need_weights": False}, {"average_attn_weights": False}, {"attn_mask": "bool"},
    {"attn_mask": "heads"}, {"attn_mask": "float", "need_weights": False},
    {"key_padding_mask": True}, {"key_padding_mask": True, "attn_mask": "bool"},
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_the_same_bits(kind: type[Call], options: dict[str, Any], call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    bias = "bias" not in options
    model = kind(call, **options) if bias else _without_bias(kind, call, options)
    captured = vr.capture(model, _inputs(kind, options, B))
    names = {n.target for g in captured.graphs.values() for n in g.nodes}
    assert F.multi_head_attention_forward not in names
    assert list(captured.state_dict()) == list(model.state_dict())
    for training in (False, True):
        for batch in (B, 3):
            inputs = _inputs(kind, options, batch)
            outputs = []
            for each in (model, captured):
                torch.manual_seed(1)
                # With gradients, as in training: without, torch may take a kernel of its own.
                outputs.append(each.train(training)(*inputs))
            (a, weights), (b, other) = outputs
            assert torch.equal(a, b)
            assert (weights is None) == (other is None)
            assert weights is None or torch.equal(weights, other)


def _without_bias(kind: type[Call], call: dict[str, Any], options: dict[str, Any]) -> Call:
    model = kind(call)
    model.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
    return model


def _inputs(kind: type[Call], options: dict[str, Any], batch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    widths = (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH))
    shapes = [[n, batch, w] for n, w in zip((L, S, S), widths, strict=True)]
    if options.get("batch_first"):
        shapes = [[b, n, w] for n, b, w in shapes]
    made = tuple(torch.randn(s, generator=generator) for s in shapes)
    return made[: {Call: 3, Memory: 2, Itself: 1}[kind]]
