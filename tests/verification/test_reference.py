"""`verify` compares with the user's own module, in every situation that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.verification import quick, verify_rewritten
from vitrewrite.verification.check import Check
from vitrewrite.verification.reference import Runs, reference

from ..models import spread

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}\n"
CAPTURED = "captured = the model itself"
START = "rewritten at its start = the model itself"
EMITTED = "emitted source = rewritten"


class Free(nn.Module):
    """A residual model of any image size, with dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        x = x + self.mlp(x)
        return self.head(x.mean(1))


def free() -> Rewritten:
    torch.manual_seed(0)
    spec = "insert lora(rank=2) at module('mlp.0')\n"
    return vr.apply(spec, spread(Free()).eval(), example=torch.zeros(1, 3, 16, 16))


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return spread(VisionTransformer(**{**sizes, "num_classes": 5, **options})).eval()


SITUATIONS: dict[str, Callable[[nn.Module, torch.Tensor], bool]] = {
    "1 image": lambda m, x: not m.training and len(x) == 1 and _usual(x),
    "2 images": lambda m, x: not m.training and len(x) == 2 and _usual(x),
    "training at equal seed, 2 images": lambda m, x: m.training and _usual(x),
    "1 image, bfloat16": lambda m, x: x.dtype == torch.bfloat16,
    "input 3x8x16": lambda m, x: x.shape[2:] == (8, 16),
}


def _usual(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.shape[2:] == (16, 16)


def _wrong(module: nn.Module, when: Callable[[nn.Module, torch.Tensor], bool]) -> None:
    """Makes a module add one to its output in a situation."""
    right = module.forward
    module.forward = lambda *args: right(*args) + float(when(module, args[0]))  # type: ignore[method-assign]


def _failed(checks: list[Check]) -> dict[str, str]:
    return {c.name: c.note for c in checks if c.holds is False}


def _compared(rewritten: Rewritten) -> list[Check]:
    runs = Runs(rewritten)
    return list(reference(runs, runs.situations))


def test_all_models_are_compared_in_all_situations() -> None:
    checks = {c.name: c for c in _compared(free())}
    assert all(c.holds and c.measured == 0 for c in checks.values())
    for name in (CAPTURED, START):
        assert set(checks[name].note.split("; ")) == set(SITUATIONS)
    assert set(checks[EMITTED].note.split("; ")) == set(SITUATIONS) - {"1 image"}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_captured_base_that_is_wrong_in_one_situation_is_noticed(situation: str) -> None:
    rewritten = free()
    _wrong(rewritten.base, SITUATIONS[situation])
    assert _failed(_compared(rewritten)) == {CAPTURED: situation}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_rewritten_model_that_is_wrong_in_one_situation_is_noticed(situation: str) -> None:
    rewritten = free()
    _wrong(rewritten.module, SITUATIONS[situation])
    assert _failed(_compared(rewritten))[START] == situation


@pytest.mark.parametrize("situation", [s for s in SITUATIONS if s != "1 image"])
def test_emitted_source_that_is_wrong_in_one_situation_is_noticed(
    situation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrewrite.emission.twin import emitted_twin

    def wrong(*args: Any) -> nn.Module:
        twin = emitted_twin(*args)
        _wrong(twin, SITUATIONS[situation])
        return twin

    monkeypatch.setattr("vitrewrite.emission.twin.emitted_twin", wrong)
    assert _failed(_compared(free())) == {EMITTED: situation}


@pytest.mark.parametrize("part", ["base", "module"])
@pytest.mark.parametrize("situation", ["1 image", "training at equal seed, 2 images"])
def test_the_quick_form_compares_with_the_model_itself_too(part: str, situation: str) -> None:
    rewritten = free()
    assert not _failed(quick(rewritten))
    _wrong(getattr(rewritten, part), SITUATIONS[situation])
    assert _failed(quick(rewritten))[CAPTURED if part == "base" else START] == situation


def test_verify_fails_where_the_reference_does() -> None:
    rewritten = free()
    _wrong(rewritten.base, SITUATIONS["1 image, bfloat16"])
    with pytest.raises(vr.VitrewriteError, match=CAPTURED):
        vr.verify(rewritten, graphs=False)


def test_the_model_is_left_as_it_was() -> None:
    model = spread(Free())
    model.eval()
    model.mlp.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    rewritten = vr.apply("train head\n", model, example=torch.zeros(1, 3, 16, 16))
    modes_of_result = [m.training for m in rewritten.module.modules()]
    random = torch.get_rng_state()
    vr.verify(rewritten, graphs=False)
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in rewritten.module.modules()] == modes_of_result
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_trained_model_is_compared_at_its_start() -> None:
    rewritten = vr.apply(LORA + "train head\n", vit())
    with torch.no_grad():
        for parameter in rewritten.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.ones_like(parameter))
    checks = {c.name: c for c in _compared(rewritten)}
    assert checks[START].holds
    assert checks[EMITTED].holds
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(rewritten.module(x), rewritten.base(x))


def test_a_clause_that_changes_the_output_has_no_start_to_compare() -> None:
    names = [c.name for c in _compared(vr.apply("prepend prompt(count=2) to blocks[*]\n", vit()))]
    assert names == [CAPTURED, EMITTED]


def test_a_model_whose_weights_changed_since_is_not_the_one_that_was_captured() -> None:
    model = vit()
    rewritten = vr.apply(LORA, model)
    model.head.bias = nn.Parameter(torch.ones(5))
    failed = _failed(verify_rewritten(rewritten, graphs=False))
    assert failed.keys() == {CAPTURED, START}


def test_a_model_that_is_not_at_hand_is_said_not_to_be_checked() -> None:
    rewritten = vr.apply(LORA, vit())
    rewritten.original = None
    checks = {c.name: c for c in verify_rewritten(rewritten, graphs=False)}
    assert checks["the model itself"].holds is None
    assert checks["the model itself"].measured == "not checked"
    assert "VisionTransformer object was given" in checks["the model itself"].note
    assert checks["rewritten at its start = captured"].holds
    vr.verify(rewritten, graphs=False)


def test_a_model_by_name_is_built_again_where_it_is_not_at_hand() -> None:
    spec = (
        "model vit_tiny_patch16_224(depth=1, embed_dim=24, num_heads=3, img_size=32)\ntrain head\n"
    )
    rewritten = vr.apply(spec)
    rewritten.original = None
    assert {c.name for c in _compared(rewritten)} == {CAPTURED, START, EMITTED}
    assert all(c.holds for c in _compared(rewritten))


def test_weights_that_are_not_finite_are_named() -> None:
    rewritten = vr.apply(LORA, vit())
    assert verify_rewritten(rewritten, graphs=False)[0].holds
    with torch.no_grad():
        rewritten.delta()["blocks.0.attn.q.lora.down"][0, 0] = float("nan")
    first = verify_rewritten(rewritten, graphs=False)[0]
    assert first.name == "weights and outputs are finite"
    assert first.holds is False
    assert first.note == "blocks.0.attn.qkv_lora.down"


def test_a_verification_costs_at_most_26_forwards_of_an_image() -> None:
    """Claims of the spec that take runs are judged by those that are made anyway."""
    from torch.utils.flop_counter import FlopCounterMode

    from vitrewrite.api import compiled, finished

    claims = "train head\nrequire lowers exactly\nrequire identity at init\n"
    model, plan = compiled(LORA + claims, vit(depth=3, embed_dim=48))
    rewritten = finished(plan, model, judge=False)
    assert all(verdict.holds is None for verdict in rewritten.claims)
    with FlopCounterMode(display=False) as counter:
        checks = verify_rewritten(rewritten, graphs=False, judge=True)
    assert counter.get_total_flops() <= 26 * 2 * rewritten.measures.macs_base
    assert all(c.holds is not False for c in checks)
    assert [c.measured < 2e-5 for c in checks if c.name.startswith("require")] == [True, True]


def test_claims_are_of_the_model_as_it_starts() -> None:
    """Also where it was trained meanwhile, and they are judged afterwards."""
    from vitrewrite.api import compiled, finished

    model, plan = compiled(LORA + "require identity at init\nrequire lowers exactly\n", vit())
    rewritten = finished(plan, model, judge=False)
    with torch.no_grad():
        for lora in rewritten.inserted("lora"):
            for parameter in lora.parameters():
                parameter.fill_(0.1)
    checks = verify_rewritten(rewritten, graphs=False, judge=True)
    found = {c.name: c for c in checks if c.name.startswith("require")}
    assert found["require identity at init"].measured == 0
    assert found["require lowers exactly"].holds
