"""The `merge.tome` pass: the authors' numbers, mass, other inputs, lowering, bad input."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.models import spread
from tests.refusal import expect_refusal
from vitrewrite.rewrite.rewritten import Rewritten

MERGE = importlib.import_module("vitrewrite.passes.merge.tome").TokenMerge
TOME = "insert merge.tome(r=8) after blocks[*].attn\n"
DRAWN = {
    "patches": st.integers(0, 30), "prefix": st.integers(0, 5), "own": st.integers(0, 2),
    "r": st.integers(1, 12), "sized": st.booleans(), "seed": st.integers(0, 99),
}  # fmt: skip
CASES = {
    "tome-r4-prop": "insert merge.tome(r=4) after blocks[*].attn\n",
    "tome-r4-noprop": "insert merge.tome(r=4, prop_attn=false) after blocks[*].attn\n",
    "tome-decreasing-prop": "insert merge.tome(r=4, inflection=-1) after blocks[*].attn\n",
    "tome-avgpool": "insert merge.tome(r=8, prop_attn=false) after blocks[*].attn\n",
    "tome-distilled": "insert merge.tome(r=7) after blocks[*].attn\n",
}


def merges(rewritten: Rewritten) -> list[Any]:
    """The modules that merge, from the first block on."""
    return [m for m in rewritten.module.modules() if hasattr(m, "match")]


@torch.no_grad()
def watched(rewritten: Rewritten, x: torch.Tensor) -> list[tuple[Any, ...]]:
    """What each merge is given and yields: x, k, perhaps sizes, then x and sizes."""
    seen: list[tuple[Any, ...]] = []
    handles = [
        merge.register_forward_hook(lambda _, given, made: seen.append((given, made)))
        for merge in merges(rewritten)
    ]
    rewritten.module.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(CASES[name], case.base())
    x, module = case.tensors["input"], rewritten.module
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(module.eval()(x), "output")
        case.close(vr.lower(rewritten).module.eval()(x), "output")
    seen = watched(rewritten, x)
    assert len(seen) == sum(r > 0 for r in case.about["hyper"]["r_per_block"])
    source = torch.eye(seen[0][0][0].shape[1]).expand(len(x), -1, -1)
    for i, (merge, (inputs, _)) in enumerate(zip(merges(rewritten), seen, strict=True)):
        case.close(inputs[1].mean(1), f"metric.{i}")
        source = merge.sums(source, *merge.match(inputs[1], merge.r))
    assert torch.equal(seen[-1][1][1][..., None], case.tensors["size"])
    assert torch.equal(source, case.tensors["source"])
    assert torch.equal(source.argmax(1), case.tensors["group_of_token"])


def test_a_list_is_a_schedule() -> None:
    """As the authors' code takes it: padded with zeros, and no longer than the model is deep."""
    case = goldens.case("tome-decreasing-prop")
    rates = case.about["hyper"]["r_per_block"]
    x, count = case.tensors["input"], case.tensors["source"].shape[2]
    for schedule in (rates, rates[:-1]):
        rewritten = vr.apply(TOME.replace("8", str(schedule)), case.base())
        with torch.no_grad():
            case.close(rewritten.module.eval()(x), "output")
        merged = (sum(rates[:i]) for i in range(len(rates) + 1))
        assert rewritten.report["tokens"] == [count - n for n in merged]
        assert rewritten.result.stream.known(99).patches == count - 1 - sum(rates)
    with pytest.raises(vr.VitrewriteError, match=r"VR403 merge.tome.r has 5 values, .* 4 sites"):
        vr.plan(TOME.replace("8", "[1, 1, 1, 1, 1]"), vit())


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_it_tells_where_tokens_go(prefix: int, flat: bool) -> None:
    """Each token is in the one whose mean it is part of, and its position is one of these."""
    x = torch.randn(2, prefix + 9, 6, generator=torch.Generator().manual_seed(0))
    merge = MERGE(3, prefix, min(prefix, 1), flat=flat, traced=True)
    y, size, into, kept = merge(x, x[:, None])
    assert torch.equal(into.gather(1, kept), torch.arange(y.shape[1]).expand(2, -1))
    sums = torch.zeros_like(y).index_put_((torch.arange(2)[:, None], into), x, accumulate=True)
    torch.testing.assert_close(sums / size[..., None], y)
    merge.r = 0
    assert all(torch.equal(n, torch.arange(prefix + 9).expand(2, -1)) for n in merge(x, x)[2:])


@pytest.mark.parametrize("name", ["tome-avgpool", "tome-distilled"])
def test_golden_gradients(name: str) -> None:
    case = goldens.case(name)
    module = vr.apply(CASES[name], case.base()).module.eval()
    keys = [k.removeprefix("grad.base.") for k in case.tensors if k.startswith("grad.base.")]
    parameters = [module.get_parameter(k).requires_grad_(True) for k in keys]
    loss = (module(case.tensors["input"]) * case.tensors["probe"]).sum()
    found = torch.autograd.grad(loss, parameters)
    case.gradients_close({f"base.{k}": g for k, g in zip(keys, found, strict=True)})


# -- against a reference that merges one pair after the other -------------------------------------


def vit(**options: Any) -> Any:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
    torch.manual_seed(0)
    return spread(VisionTransformer(**{**small, "num_classes": 5, **options}))


def image(height: int = 32, width: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def groups(m: torch.Tensor, r: int, prefix: int) -> list[list[int]]:
    """Which tokens of an image, of keys m [T, d], are one after r merges; the first gives place."""
    m = m / m.norm(dim=-1, keepdim=True)
    even, odd = (range(prefix + (prefix + i) % 2, len(m), 2) for i in (0, 1))
    best = {a: max(((m[a] @ m[b]).item(), b) for b in odd) for a in even}
    ranked = sorted(even, key=lambda a: -best[a][0])
    goes, stays = ranked[:r], ranked[r:]
    found = [[i] for i in range(prefix)] + [[a] for a in (sorted(stays) if prefix else stays)]
    return found + [[b, *(a for a in goes if best[a][1] == b)] for b in odd]


def merged(
    x: torch.Tensor, m: torch.Tensor, size: torch.Tensor, r: int, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [T, C] of one image, keys m [T, d] and sizes [T] after r merges."""
    found = groups(m, r, prefix)
    means = [(size[g, None] * x[g]).sum(0) / size[g].sum() for g in found]
    return torch.stack(means), torch.stack([size[g].sum() for g in found])


@torch.no_grad()
def reference(model: Any, x: torch.Tensor, r: int, prop: bool = True) -> torch.Tensor:
    """What the model yields when every block merges r tokens."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    prefix, sizes = model.num_prefix_tokens, torch.ones(x.shape[:2])
    for block in model.blocks:
        attn, (b, t, c) = block.attn, x.shape
        qkv = attn.qkv(block.norm1(x)).reshape(b, t, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * attn.scale + (sizes.log()[:, None, None] if prop else 0)
        x = x + attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))
        n = min(r, (t - prefix) // 2)
        pairs = [merged(*one, n, prefix) for one in zip(x, k.mean(1), sizes, strict=True)]
        x, sizes = (torch.stack(one) for one in zip(*pairs, strict=True))
        x = x + block.mlp(block.norm2(x))
    x, weight = model.norm(x), sizes[:, prefix:, None]
    pooled = (x[:, prefix:] * weight).sum(1) / weight.sum(1)
    return model.head(model.fc_norm(x[:, 0] if model.global_pool == "token" else pooled))


MODELS = {
    "class token": {},
    "registers": {"reg_tokens": 3},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "norm before pooling": {"global_pool": "avg", "fc_norm": False},
    "odd patches": {"img_size": (20, 28)},
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_equations_say(name: str) -> None:
    model = vit(**MODELS[name]).eval()
    x = image(*model.patch_embed.img_size, batch=3)  # type: ignore[misc]
    rewritten = vr.apply(TOME, model)
    expected = reference(model, x, 8)
    for module in (rewritten.module, vr.lower(rewritten).module):
        torch.testing.assert_close(module.eval()(x), expected, rtol=1e-4, atol=1e-5)
    vr.verify(rewritten, graphs=name == "norm before pooling")


def test_at_another_image_size() -> None:
    model = vit(dynamic_img_size=True).eval()
    module = vr.apply(TOME, model).module.eval()
    for height, width in ((32, 32), (16, 24), (48, 40), (8, 8)):  # at the last one r is too large
        x = image(height, width)
        torch.testing.assert_close(module(x), reference(model, x, 8), rtol=1e-4, atol=1e-5)


def test_in_training_it_is_the_same_with_gradients_through_the_tokens() -> None:
    model = vit()
    rewritten = vr.apply(TOME + "train blocks[0]\n", model)
    x, training = image(), rewritten.module.train()
    torch.testing.assert_close(training(x), rewritten.module.eval()(x))
    training.train()(x).sum().backward()
    frozen = {n for n, p in rewritten.module.named_parameters() if p.grad is None}
    assert frozen == {n for n, _ in model.named_parameters() if not n.startswith("blocks.0.")}


# -- properties -----------------------------------------------------------------------------------


@given(**DRAWN)
def test_mass_and_means_are_conserved(
    patches: int, prefix: int, own: int, r: int, sized: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, prefix + patches, 6, generator=generator)
    k = torch.randn(2, 3, prefix + patches, 4, generator=generator).round()  # with equal matches
    size = torch.randint(1, 4, x.shape[:2], generator=generator).float()
    given = (x, k, size) if sized else (x, k)
    (y, new), flat = MERGE(r, prefix, own)(*given), MERGE(r, prefix, own, flat=True)(*given)
    size = size if sized else torch.ones_like(size)
    assert y.shape[1] == prefix + patches - min(r, patches // 2)
    assert torch.equal(new.sum(1), size.sum(1))
    before, after = (size[..., None] * x).sum(1), (new[..., None] * y).sum(1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[:, :prefix], x[:, :prefix])
    assert torch.equal(new[:, :prefix], size[:, :prefix])
    torch.testing.assert_close(flat, (y, new))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_token_is_lost_in_half_precision(dtype: torch.dtype) -> None:
    x, k = torch.randn(4, 197, 16).to(dtype), torch.zeros(4, 12, 197, 64).to(dtype)
    for flat in (False, True):
        y, size = MERGE(40, 1, 1, flat=flat)(x, k)
        assert torch.equal(size.float().sum(1), torch.full((4,), 197.0))
        assert bool(y.isfinite().all())


# -- with others ----------------------------------------------------------------------------------


def drawn(spec: str, model: Any) -> Rewritten:
    """Every tensor of the delta drawn by its name."""
    rewritten = vr.apply(spec, model)
    for name, tensor in rewritten.delta().items():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return rewritten


@pytest.mark.parametrize(
    "other",
    [
        "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, k, v}\n",
        "prepend kv_prompt(n=2) to blocks[*].attn\n",
        "prepend prompt(count=3) to blocks[*]\n",
        "insert merge.bdm(dropout=0) after blocks[1].attn\n",
    ],
)
def test_both_orders_are_the_same_model(other: str) -> None:
    tome = TOME if "bdm" not in other else TOME.replace("[*]", "[2:]")
    one, two = drawn(tome + other, vit()), drawn(other + tome, vit())
    vr.verify(one, graphs=False)
    x = image(batch=3)
    with torch.no_grad():
        expected = one.module.eval()(x)
        others = (two, vr.lower(one), vr.lower(two))
        for module in (each.module.eval() for each in others):
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_keys_are_those_of_the_adapted_layer() -> None:
    model = vit().eval()
    lora = "insert lora(rank=2, dropout=0) at blocks[*].attn.k\n"
    rewritten, alone = drawn(TOME + lora, vit()), vr.lower(drawn(lora, vit()))
    model.load_state_dict(alone.module.state_dict())
    with torch.no_grad():
        found = rewritten.module.eval()(image())
    torch.testing.assert_close(found, reference(model, image(), 8), rtol=1e-4, atol=1e-5)


def test_clauses_further_in_front_may_come_later() -> None:
    parts = [TOME.replace("*", at) for at in ("0", "1", "2:")]
    whole, x = vr.apply(TOME, vit()).module.eval(), image()
    for order in (parts, parts[::-1], [parts[1], parts[2], parts[0]]):
        assert torch.equal(vr.apply("".join(order), vit()).module.eval()(x), whole(x))


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}])
def test_prompts_that_join_later_stand_for_themselves(options: dict[str, Any]) -> None:
    rewritten = drawn(TOME + "prepend prompt(count=3) to blocks[2:]\n", vit(**options))
    assert rewritten.report["tokens"] == [65, 57, 49, 44, 36]
    seen = watched(rewritten, image())
    assert [int(made[1].sum(1)[0]) for _, made in seen] == [65, 65, 68, 68]
    vr.verify(rewritten, graphs=False)
    lowered = [65, 57, 49, 44, 36] if options else [65, 57, 49, 41, 33]  # pooled prompts stay
    assert vr.lower(rewritten).report["tokens"] == lowered


# -- what is told ---------------------------------------------------------------------------------


def test_figures_of_the_card() -> None:
    for r, giga, left in ((8, 13.103, 101), (16, 8.77, 11)):
        measures = vr.plan(TOME.replace("8", str(r)), "vit_base").measures
        assert measures.macs / 1e9 == pytest.approx(giga + 0.005, abs=6e-3)
        assert measures.tokens[-1] == left
        assert measures.params.trainable == 0
    falling = vr.plan(TOME.replace("8", "8, inflection=-1"), "vit_base").measures
    assert falling.macs / 1e9 == pytest.approx(11.75, abs=1e-2)
    assert falling.tokens[-1] == 106


def test_a_falling_schedule() -> None:
    falling = TOME.replace("r=8", "r=8, inflection=-1")
    tokens = vr.plan(falling, vit(img_size=56, depth=12)).measures.tokens
    rates = [a - b for a, b in pairwise(tokens) if a and b]
    assert rates == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]


def test_the_plan_tells_where_sizes_count() -> None:
    pooling = vit(global_pool="avg")
    text = str(vr.plan(TOME.replace("r=8", "r=8, prop_pool=false"), pooling))
    assert "sizes of merged tokens count in scores (line 1, by default)" in text
    assert "sizes of merged tokens do not count in pooling (line 1)" in text
    assert "pooling" not in str(vr.plan(TOME, vit()))
    assert vr.plan(TOME, pooling).to_json()["sizes"] == {"in_scores": True, "in_pooling": True}


def test_what_a_clause_says_goes_before_the_defaults_of_others() -> None:
    said = TOME.replace("*", "0:2").replace("r=8", "r=8, prop_attn=false")
    for spec in (said + TOME.replace("*", "2:"), TOME.replace("*", "2:") + said):
        found = vr.apply(spec, vit()).module.eval()(image())
        expected = reference(vit().eval(), image(), 8, prop=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_warnings() -> None:
    many = vr.plan(TOME.replace("8", "40"), vit())
    assert sum("half of the patches" in w for w in many.warnings) == 1
    assert many.measures.tokens == (65, 33, 17, 9, 5)
    assert not any("half" in w for w in vr.plan(TOME, vit()).warnings)
    assert not vr.plan(TOME, vit(global_pool="max")).warnings


BAD = {
    "negative": (TOME.replace("8", "-1"), {}, "VR203", "at least 0"),
    "inflection": (TOME.replace("r=8", "r=8, inflection=2"), {}, "VR203", "-1..1"),
    "one patch": (TOME, {"img_size": 4}, "VR410", "no prefix"),
    "the same block twice": (
        "insert merge.bdm() after blocks[1].attn\n" + TOME.replace("*", "1:"),
        {}, "VR410", "regrouped by",
    ),
    "the grid is gone": (TOME + "insert merge.bdm() after blocks[3].attn\n", {}, "VR410", "grid"),
    "the grid is taken away later": (
        "insert merge.bdm() after blocks[3].attn\n" + TOME.replace("*", "1"),
        {}, "VR417", "changes the grid of the tokens in front of where merge.bdm has gone by it",
    ),
    "no agreement": (
        TOME.replace("*", "0").replace("r=8", "prop_attn=true")
        + TOME.replace("*", "1").replace("r=8", "prop_attn=false"),
        {}, "VR418", "disagree on whether sizes of tokens count in scores",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)


def test_applying_twice_is_detected() -> None:
    once = vr.apply(TOME, vit())
    with pytest.raises(vr.VitrewriteError, match="of sizes that are not known"):
        vr.apply(TOME, once.module, example=torch.zeros(1, 3, 32, 32))


def test_merges_stay_when_they_are_lowered() -> None:
    rewritten = drawn(TOME, vit())
    lowered = vr.lower(rewritten)
    count = [len(r.result.editor.insertions) for r in (rewritten, lowered)]
    assert count == [4, 4]


class Kept(VisionTransformer):
    """Its mean keeps the axis, written by position."""

    def pool(self, x: torch.Tensor, pool_type: str | None = None) -> torch.Tensor:
        return x[:, 1:].mean(1, True)[:, 0]


@torch.no_grad()
def test_a_mean_that_keeps_its_axis_is_weighed_all_the_same() -> None:
    plain, kept = vit(global_pool="avg"), vit(global_pool="avg")
    kept.__class__ = Kept
    spec = "insert merge.tome(r=8, prop_pool=true) after blocks[*].attn\n"
    first, second = (vr.apply(spec, model).module.eval()(image()) for model in (plain, kept))
    assert torch.equal(first, second)
