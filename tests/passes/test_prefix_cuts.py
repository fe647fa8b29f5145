"""Prompts in models that take the prefix apart in their attention, in every way it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr


def narrowed(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    return torch.cat([q.narrow(2, 0, n), q.narrow(2, n, 16) * pos], 2)


def sliced(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    return torch.cat([q[:, :, :n], q[:, :, n:] * pos], 2)


def with_ellipsis(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    return torch.cat([q[..., :n, :], q[..., n:, :] * pos], -2)


def split(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    front, behind = q.split([n, q.shape[2] - n], dim=2)
    return torch.cat([front, behind * pos], 2)


def split_by_positions(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    front, behind = q.split([n, len(pos)], dim=2)
    return torch.cat([front, behind * pos], 2)


def split_at(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    front, behind = q.tensor_split((n,), dim=2)
    return torch.cat([front, behind * pos], 2)


def in_place(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    q = q.clone()
    q[:, :, n:] = q[:, :, n:] * pos
    return q


def from_the_end(q: torch.Tensor, n: int, pos: torch.Tensor) -> torch.Tensor:
    return torch.cat([q[:, :, :-16], q[:, :, -16:] * pos], 2)


Turn = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
WAYS: list[Turn] = [
    narrowed, sliced, with_ellipsis, split, split_by_positions, split_at, in_place, from_the_end,
]  # fmt: skip


class Attention(nn.Module):
    def __init__(self, turn: Turn, prefix: int) -> None:
        super().__init__()
        self.turn, self.prefix = turn, prefix
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.turn(q, self.prefix, pos), self.turn(k, self.prefix, pos)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, turn: Turn, prefix: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.attn = Attention(turn, prefix)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), pos)
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Class tokens without positions, and 16 patches whose keys and queries have some."""

    def __init__(self, turn: Turn, prefix: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 24))
        self.pos = nn.Parameter(torch.randn(16, 12))
        self.blocks = nn.ModuleList([Block(turn, prefix) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, self.pos)
        return self.head(self.norm(x)[:, 0])


def reference(model: Vit, x: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    """The same by hand, with prompts behind the prefix and no positions for them."""
    n = model.prefix.shape[1]
    x = model.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([model.prefix.expand(x.shape[0], -1, -1), x], 1)
    for i, (block, rows) in enumerate(zip(model.blocks, prompts, strict=True)):
        behind = x[:, n + (len(rows) if i else 0) :]
        x = torch.cat([x[:, :n], rows.expand(x.shape[0], -1, -1), behind], 1)
        block.attn.prefix = n + len(rows)  # type: ignore[union-attr]
        x = block(x, model.pos)
    return model.head(model.norm(x)[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("turn", WAYS, ids=lambda way: way.__name__)
def test_prompts_belong_to_the_prefix(turn: Turn, prefix: int) -> None:
    torch.manual_seed(0)
    model, x = Vit(turn, prefix).eval().requires_grad_(False), torch.randn(2, 3, 32, 32)
    rewritten = vr.apply("prepend prompt(count=4) to blocks[*]\n", model, example=x)
    prompts = [v.detach() for k, v in rewritten.delta().items() if "prompt" in k]
    lowered = vr.lower(rewritten)
    assert rewritten.report["tokens"] == [16 + prefix, 20 + prefix, 20 + prefix]
    assert lowered.report["tokens"] == [16 + prefix] * 3
    with torch.no_grad():
        found = rewritten.module.eval()(x)
        assert torch.equal(found, reference(model, x, prompts))
        torch.testing.assert_close(lowered.module(x), found, rtol=1e-4, atol=2e-6)


def test_added_keys_stand_behind_what_is_written_in_place() -> None:
    torch.manual_seed(0)
    model, x = Vit(in_place, 1).eval().requires_grad_(False), torch.randn(2, 3, 32, 32)
    other = Vit(sliced, 1).eval()
    other.load_state_dict(model.state_dict())
    spec = "prepend kv_prompt(n=2) to blocks[*].attn\n"
    found, expected = (vr.apply(spec, m, example=x).module.eval() for m in (model, other))
    with torch.no_grad():
        assert torch.equal(found(x), expected(x))
