"""The `squeeze.tps` pass: dTPS and eTPS in the authors' numbers, the equations, bad input."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill
from tests.passes.test_merge_tome import image, vit
from tests.passes.test_prune_dynamicvit import golden, gradients, predictors
from tests.refusal import expect_refusal
from tests.sites.test_attention_single_rows import fused

TPS = importlib.import_module("vitrewrite.passes.squeeze.tps")
BEFORE = "insert squeeze.tps() before blocks[1, 3]\n"
BEHIND = "insert squeeze.tps() after blocks[1, 3].attn\n"
RATES = BEHIND.replace("()", "(keep=[0.7, 0.5])")


def dtps() -> tuple[goldens.Case, vr.Rewritten]:
    return golden(BEFORE + "train every parameter\n", "dtps", "squeeze.tps", "dtps")


@torch.no_grad()
def test_golden_by_predictors() -> None:
    case, rewritten = dtps()
    x, kept, near, squeezed = case.tensors["input"], list[Any](), list[Any](), list[Any]()
    for each in rewritten.module.modules():
        if isinstance(each, TPS.SqueezedTokens):
            each.traced = True

    def note(module: Any, given: Any, made: Any) -> Any:
        count = int(module.rate * given[2].shape[1])
        stays, gone = module.picking.best(given[1], 1, count)
        kept.append(stays[:, 1:] - 1)
        near.append(made[2].gather(1, gone) - 1)
        squeezed.append(made[0][:, 1:])
        assert torch.equal(made[3], stays)
        return made[:2]

    for each in rewritten.module.modules():
        if isinstance(each, TPS.SqueezedTokens):
            each.register_forward_hook(note)
    case.close(rewritten.module.eval()(x), "output")
    assert torch.equal(kept[0], case.tensors["keep_eval.0"])
    assert torch.equal(kept[0].gather(1, kept[1]), case.tensors["keep_eval.1"])
    for k in (0, 1):
        assert torch.equal(near[k], case.tensors[f"match_eval.{k}"])
        case.close(squeezed[k], f"squeezed_eval.{k}")
    for each in rewritten.module.modules():
        if isinstance(each, TPS.SqueezedTokens):
            each.traced = False
    lowered = vr.lower(rewritten)
    assert fused(lowered) == 4
    for training in (True, False):
        case.close(lowered.module.train(training)(x), "output")


def test_golden_training_by_predictors() -> None:
    case, rewritten = dtps()
    y = rewritten.module.train()(case.tensors["input"])
    case.close(y, "output_train")
    (y * case.tensors["probe"]).sum().backward()
    case.gradients_close(gradients(rewritten, "squeeze", "dtps"))


@pytest.mark.parametrize("training", [False, True])
def test_golden_by_the_class_token(training: bool) -> None:
    case = goldens.case("etps")
    rewritten = vr.apply(RATES + "train every parameter\n", case.base())
    x = case.tensors["input"]
    assert rewritten.report["tokens"] == [65, *case.about["hyper"]["tokens_after_block"]]
    y = rewritten.module.train(training)(x)
    case.close(y, "output")
    with torch.no_grad():
        case.close(vr.lower(rewritten).module.train(training)(x), "output")
    (y * case.tensors["probe"]).sum().backward()
    case.gradients_close(gradients(rewritten, "squeeze", "etps"))


# -- the equations --------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(stay: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """One image, token by token; every nearest one takes what goes."""
    sums = [math.e * r for r in stay]
    totals = [math.e] * len(stay)
    for p in gone:
        s = [float(p @ r) / ((p.norm() + 1e-6) * (r.norm() + 1e-6)) for r in stay]
        for j in (j for j, value in enumerate(s) if value == max(s)):
            sums[j] = sums[j] + math.exp(s[j]) * p
            totals[j] += math.exp(s[j])
    return torch.stack([one / float(total) for one, total in zip(sums, totals, strict=True)])


def test_squeezing_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    stay, gone = (torch.randn(2, n, 6, generator=generator).double() for n in (5, 8))
    gone[0, 0] = 0  # a token of length zero
    expected = torch.stack([by_hand(r, p) for r, p in zip(stay, gone, strict=True)])
    for flat in (False, True):
        found, _ = TPS.Squeeze(flat)(stay, gone)
        if flat:  # a zero token is as far from all: the first takes it, where all do
            found, expected = found[1:], expected[1:]
        torch.testing.assert_close(found, expected)
    stay[:, 1] = stay[:, 0]
    both, first = (TPS.Squeeze(flat)(stay, stay[:, :1])[0] for flat in (False, True))
    torch.testing.assert_close(both[:, 1], both[:, 0])
    torch.testing.assert_close(first[:, 2:], both[:, 2:])


@torch.no_grad()
def test_what_training_squeezes_is_what_evaluation_does() -> None:
    """Of the tokens that stay; those that went before give nothing."""
    x = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(1))
    before = torch.tensor([[1.0, 1, 1, 0, 1, 1, 1, 0, 1]])
    stay = before * torch.tensor([[1.0, 0, 1, 1, 1, 0, 1, 1, 0]])
    made = TPS.Squeeze().among(x, stay, before)
    kept, went = stay[0] == 1, (before - stay)[0] == 1
    torch.testing.assert_close(made[:, kept], TPS.Squeeze()(x[:, kept], x[:, went])[0])
    torch.testing.assert_close(made[:, ~kept], x[:, ~kept])


@pytest.mark.parametrize("spec", [BEFORE, BEHIND], ids=["dTPS", "eTPS"])
@pytest.mark.parametrize("options", [{"reg_tokens": 2}, {"dynamic_img_size": True}], ids=str)
def test_other_inputs_and_what_holds_of_it(spec: str, options: dict[str, Any]) -> None:
    rewritten = fill(vr.apply(spec, vit(**options)))
    lowered = vr.lower(rewritten)
    for size in ((32, 32), *([(16, 24), (24, 40)] if "dynamic" in str(options) else [])):
        x = image(*size, batch=3)
        with torch.no_grad():
            y = rewritten.module.eval()(x)
            torch.testing.assert_close(lowered.module.eval()(x), y, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rewritten.module(x[:1]), y[:1], rtol=1e-4, atol=1e-5)
    if "reg_tokens" in options:
        assert rewritten.module(image()[:0]).shape == (0, 5)
        vr.verify(rewritten, graphs=False)


@pytest.mark.parametrize("spec", [BEFORE, BEHIND], ids=["dTPS", "eTPS"])
@pytest.mark.parametrize(
    "other",
    ["prepend kv_prompt(n=2) to blocks[*].attn\n", "prepend prompt(count=3) to blocks[*]\n"],
)
def test_with_others_in_both_orders(spec: str, other: str) -> None:
    found, x = [], image()
    for clauses in (spec + other, other + spec):
        rewritten = fill(vr.apply(clauses, vit()))
        with torch.no_grad():
            found += [m.module.eval()(x) for m in (rewritten, vr.lower(rewritten))]
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-5)


def test_in_half_precision() -> None:
    for spec in (BEFORE, BEHIND):
        module = vr.apply(spec, vit().to(torch.bfloat16)).module
        for training in (True, False):
            y = module.train(training)(image().to(torch.bfloat16))
            assert y.dtype == torch.bfloat16
            assert bool(y.isfinite().all())


def test_figures_of_the_card() -> None:
    spec = "insert squeeze.tps() {}\n"
    for where, model, giga, lowered in (
        ("before blocks[3, 6, 9]", "deit_small", 2.9916, 2.9863),
        ("before blocks[3, 6, 9]", "vit_base", 11.4972, 11.4865),
        ("after blocks[3, 6, 9].attn", "deit_small", 3.0079, 3.0025),
        ("after blocks[3, 6, 9].attn", "vit_base", 11.507, 11.4963),
    ):
        measures: Any = vr.plan(spec.format(where), model).measures
        assert measures.macs / 1e9 == pytest.approx(giga, abs=1e-4)
        assert measures.macs_lowered / 1e9 == pytest.approx(lowered, abs=1e-4)


def test_predictors_decide_in_training_alone() -> None:
    rewritten = vr.apply(BEFORE, vit())
    assert [m.rate for m in predictors(rewritten)] == [0.7, 0.7**2]
    assert len({m.training for m in rewritten.module.modules()}) == 1


BAD = {
    "keep": (BEHIND.replace("()", "(keep=0)"), {}, "VR203", "above 0"),
    "all stays": (BEFORE.replace("()", "(keep=1)"), {}, "VR403", "nothing is pruned"),
    "nothing stays": (BEFORE.replace("()", "(keep=0.1)"), {}, "VR403", "64 patches are none"),
    "width": (BEFORE, {"embed_dim": 18}, "VR410", "18 channels do not divide by 4"),
    "no class token": (BEHIND, {"class_token": False, "global_pool": "avg"}, "VR410", "class"),
    "two pruners": (BEFORE + "insert prune.evit() after blocks[3].attn\n", {}, "VR455", "pruner"),
    "a merge behind": (
        BEFORE + "insert merge.tome(r=2) after blocks[2].attn\n", {}, "VR410", "training masks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)


def test_windows_are_refused() -> None:
    for where in ("before stages[0].blocks[0]", "after stages[0].blocks[0].attn"):
        with pytest.raises(vr.VitrewriteError, match="one sequence of tokens"):
            vr.plan(f"insert squeeze.tps() {where}\n", "swin_tiny_patch4_window7_224")


@pytest.mark.slow
@pytest.mark.parametrize("spec", [BEFORE, BEHIND], ids=["dTPS", "eTPS"])
def test_it_exports_with_any_batch_and_compiles_to_one_graph(spec: str) -> None:
    module = vr.lower(fill(vr.apply(spec, vit()))).module.eval()
    x, batch = image(batch=3), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))
        assert torch.equal(compiled(x), module(x))
