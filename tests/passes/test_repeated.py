"""Layers that run several times: one branch beside every call, folded once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.lowering.models import fill, vit
from tests.models import spread
from vitrewrite.sensitivity.profile import Profile
from vitrewrite.verification.numeric import difference, lowering_error, sample

IMAGE = torch.zeros(1, 3, 8, 8)
WIDTH = 12


class Attend(nn.Module):
    """Attention of one head, whose norm and projection may be those of others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.mix(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mix(self.norm(x).relu())


class Model(nn.Module):
    """Two blocks; the first runs twice, and its `mix` once more behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.ModuleList(Attend() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.blocks[0](self.embed(x).flatten(2).transpose(1, 2))
        second = self.blocks[1](self.blocks[0](first))
        return self.head(first.mean(1)), self.head(self.blocks[0].mix(second).mean(1))


def model() -> Any:
    torch.manual_seed(0)
    return spread(Model()).eval()


def sensitive() -> Profile:
    named = model().named_parameters()
    return Profile({f"sensitivity.{n}": torch.rand(p.shape) for n, p in named})


LAYERS = {
    "in one graph": "blocks.1.mix",
    "in two graphs": "blocks.0.mix",
    "in a unit that runs twice": "blocks.0.qkv",
    "a head of two outputs": "head",
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_branch_is_beside_every_call(layer: str) -> None:
    """Beside every call it does what the same update of the weight does."""
    rewritten = vr.apply(f'insert lora(rank=2) at module("{layer}")\n', model(), example=IMAGE)
    assert len(rewritten.delta()) == 2
    assert difference(rewritten.base, rewritten.module, sample(rewritten)) == 0
    fill(rewritten)
    up, down = (rewritten.delta()[f"{layer}.lora.{part}"] for part in ("up", "down"))
    changed = copy.deepcopy(model())
    with torch.no_grad():
        changed.get_parameter(f"{layer}.weight").add_(up @ down)
        images = torch.randn(2, 3, 8, 8)
        expected, found = changed(images), rewritten.module.eval()(images)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    lowered = vr.lower(rewritten)
    assert lowered.report["lowering"]["clauses"][0]["modules"] == {"before": 1, "after": 0}
    assert lowering_error(rewritten) < 2e-5
    torch.testing.assert_close(
        lowered.module.get_parameter(f"{layer}.weight"), changed.get_parameter(f"{layer}.weight")
    )


def test_what_is_claimed_holds() -> None:
    clause = 'insert lora(rank=2) at module("blocks.*.mix") + head\n'
    rewritten = vr.apply(clause, model(), example=IMAGE)
    assert all(check.holds for check in vr.verify(rewritten))
    again = vr.capture(rewritten.module, IMAGE)
    with torch.no_grad():
        for a, b in zip(rewritten.module.eval()(IMAGE), again.eval()(IMAGE), strict=True):
            assert torch.equal(a, b)


def test_a_second_branch_is_seen_beside_every_call() -> None:
    once = vr.apply('insert lora(rank=2) at module("blocks.0.mix")\n', model(), example=IMAGE)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply('insert lora(rank=2) at module("blocks.0.mix")\n', once.module, example=IMAGE)


def test_a_branch_beside_an_adapter_folds() -> None:
    spec = (
        'insert adapter(hidden=2) at module("blocks.0.mix")\n'
        'insert lora(rank=2) at module("blocks.0.mix")\n'
    )
    lowered = vr.lower(fill(vr.apply(spec, model(), example=IMAGE)))
    by_pass = {c["pass"]: c["modules"] for c in lowered.report["lowering"]["clauses"]}
    assert by_pass == {"adapter": {"before": 1, "after": 1}, "lora": {"before": 1, "after": 0}}


def test_entries_of_layers_and_norms() -> None:
    spec = "insert sparse() at sensitive(budget=200, scale=1K)\n"
    rewritten = vr.apply(spec, model(), example=IMAGE, profile=sensitive())
    names = {name.partition(".sparse")[0] for name in rewritten.delta()}
    assert any("norm" in name for name in names)
    assert any("mix" in name for name in names)
    fill(rewritten)
    assert lowering_error(rewritten) < 2e-5
    assert vr.lower(rewritten).report["lowering"]["clauses"][0]["modules"]["after"] == 0


class Borrowed(nn.Module):
    """Applies a weight that it is given."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, weight).relu()


class Lender(Model):
    """Its block applies a weight of its own, and another unit applies it too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.other = Borrowed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = nn.functional.linear(self.embed(x).flatten(2).transpose(1, 2), self.weight)
        x = self.blocks[1](self.blocks[0](self.other(x, self.weight)))
        return self.head(x.mean(1))


def test_a_unit_that_does_not_hold_the_layer() -> None:
    torch.manual_seed(0)
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*'other' applies it too"):
        vr.plan("insert lora(rank=2) at every linear\n", Lender().eval(), example=IMAGE)


def test_a_block_that_is_another() -> None:
    """Its matrices are sites of both; each gets one branch, and folds with it."""
    shared = vit()
    shared.blocks[2] = shared.blocks[0]
    for blocks in ("*", "0:2", "1:3"):
        rewritten = vr.apply(f"insert lora(rank=2) at blocks[{blocks}].attn.{{q, v}}\n", shared)
        assert rewritten.report["params"]["trainable"] == 2 * 2 * 2 * (16 + 16)
        assert lowering_error(fill(rewritten)) < 2e-5
        clause = vr.lower(rewritten).report["lowering"]["clauses"][0]
        assert clause["modules"] == {"before": 2, "after": 0}
