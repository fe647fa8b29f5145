"""Blocks that timm's models do not have, and what cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.anatomy.blocks import ranges
from vitrewrite.tracing import trace

DIM, HEADS = 16, 4


class Attention(nn.Module):
    def __init__(self, product: str = "einsum") -> None:
        super().__init__()
        self.one, self.two, self.three, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, HEADS, -1) for f in (self.one, self.two, self.three))
        if self.product == "einsum":
            scores = torch.einsum("bihd,bjhd->bhij", q, k) * 0.5
            y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        else:
            q, k, v = (t.transpose(1, 2).reshape(b * HEADS, n, -1) for t in (q, k, v))
            scores = functional.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, dim=-1)
            y = torch.bmm(scores, v).view(b, HEADS, n, -1).transpose(1, 2)
        return self.out(y.reshape(b, n, c))


class Interleaved(nn.Module):
    """The rows of q are those of head 0, of head 1, ...: with k and v in between."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        heads = self.all(x).view(b, n, HEADS, 3, -1).permute(3, 0, 2, 1, 4)
        y = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return self.out(y.transpose(1, 2).reshape(b, n, c))


class Partial(nn.Module):
    """Half of each head's queries is rotated; the whole is still the rows of q."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.register_buffer("angle", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.all(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = torch.cat([q[..., :2] * self.angle, q[..., 2:]], dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(DIM, 32), nn.Linear(DIM, 32), nn.Linear(32, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(functional.silu(self.one(x)) * self.two(x))


class Block(nn.Module):
    def __init__(self, kind: str, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.norm_a, self.norm_b = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention, self.mlp = attention, mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "post":
            x = self.norm_a(x + self.attention(x))
            return self.norm_b(x + self.mlp(x))
        if self.kind == "parallel":
            y = self.norm_a(x)
            return x + self.attention(y) + self.mlp(y)
        if self.kind == "joint":
            y = self.norm_a(x)
            return x + (self.attention(y) + self.mlp(y))
        x = x + self.attention(self.norm_a(x))
        return x + self.mlp(self.norm_b(x))


class Net(nn.Module):
    def __init__(
        self,
        kind: str = "pre",
        attention: Callable[[], nn.Module] = Attention,
        mlp: Callable[[], nn.Module] = Mlp,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, DIM, 8, 8), nn.Parameter(torch.zeros(1, 2, DIM))
        self.layers = nn.ModuleList([Block(kind, attention(), mlp()) for _ in range(3)])
        self.norm, self.head, self.skip = nn.LayerNorm(DIM), nn.Linear(DIM, 5), skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = start = torch.cat([x, self.token.expand(x.shape[0], -1, -1)], 1)
        for layer in self.layers:
            x = layer(x)
        x = x + start if self.skip else x
        return self.head(self.norm(x)[:, -1])


def _analysed(**options: Any) -> Anatomy:
    with torch.device("meta"):
        return analyse(trace(Net(**options), torch.zeros(2, 3, 32, 32)))


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": lambda: Attention("bmm")}, {"kind": "post"}, {"kind": "parallel"},
     {"kind": "joint"}, {"mlp": Gated}, {"skip": True}],
)  # fmt: skip
def test_parts_are_found(options: dict[str, Any]) -> None:
    found = _analysed(**options)
    assert [b.unit for b in found.blocks] == ["layers.0", "layers.1", "layers.2"]
    for block in found.blocks:
        assert block.attn is not None
        assert block.attn.heads == HEADS
        parts = [s.path.rpartition(".")[2] for s in (block.attn.q, block.attn.k, block.attn.v) if s]
        assert parts == ["one", "two", "three"]
        assert block.attn.proj is not None
        assert block.attn.proj.path == f"{block.unit}.attention.out"
        assert block.mlp is not None
        assert block.mlp.fc1 is not None
        assert block.mlp.fc2 is not None
        assert block.norm1 == f"{block.unit}.norm_a"
        parallel = options.get("kind") in ("parallel", "joint")
        assert block.norm2 == (None if parallel else f"{block.unit}.norm_b")
        assert (block.mid is None) == parallel
    assert found.norm == "norm"
    assert [h.path for h in found.head] == ["head"]
    assert "token is put behind the patches" in found.notes


def test_gate_is_what_is_activated() -> None:
    mlp = _analysed(mlp=Gated).blocks[0].mlp
    assert mlp is not None
    assert [s and s.path.rpartition(".")[2] for s in (mlp.gate, mlp.fc1, mlp.fc2)] == [
        "one",
        "two",
        "three",
    ]


def test_rows_that_heads_take_in_turns() -> None:
    found = _analysed(attention=Interleaved)
    attn, width = found.blocks[0].attn, DIM // HEADS
    assert attn is not None
    assert attn.qkv is not None
    assert (attn.heads, attn.qkv.ranges) == (HEADS, ((0, 3 * DIM),))
    for first, site in enumerate((attn.q, attn.k, attn.v)):
        assert site is not None
        starts = [(3 * head + first) * width for head in range(HEADS)]
        assert site.ranges == tuple((start, start + width) for start in starts)
        assert (site.out_features, site.rows) == (DIM, (starts[0], starts[-1] + width))


def test_rows_that_are_cut_and_joined_again() -> None:
    attn = _analysed(attention=Partial).blocks[0].attn
    assert attn is not None
    assert attn.q is not None
    assert attn.q.rows == (0, DIM)


def test_long_skips_are_noted() -> None:
    assert "sums that reach over whole blocks: 1" in _analysed(skip=True).notes


def test_packed_attention_of_torch() -> None:
    class Fused(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            result, _ = super().forward(x, x, x, need_weights=False)
            return result

    found = _analysed(attention=lambda: Fused(DIM, HEADS, batch_first=True))
    attn = found.blocks[0].attn
    assert attn is not None
    assert attn.heads == HEADS
    assert [s and s.rows for s in (attn.q, attn.k, attn.v)] == [
        (0, DIM), (DIM, 2 * DIM), (2 * DIM, 3 * DIM),
    ]  # fmt: skip
    assert attn.proj is not None
    assert attn.proj.path.endswith("out_proj")


def test_model_without_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 900, 4))
    found = analyse(trace(model, torch.zeros(2, 3, 32, 32)))
    assert found.blocks == ()
    assert [h.path for h in found.head] == ["2"]
    assert found.notes == ("no residual blocks found",)


def test_only_captured_models() -> None:
    with pytest.raises(TypeError, match="Linear is not a captured model"):
        analyse(nn.Linear(2, 2))


def test_ranges_of_blocks() -> None:
    roles = ["blocks[0]", "blocks[1]", "blocks[1]", "blocks[4]", "pool"]
    assert ranges(roles) == ["blocks[0:2]", "blocks[4]", "pool"]
