"""The `prompt` and `kv_prompt` passes: the authors' numbers, lowering, properties, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from vitrewrite.passes.prompt.pruning import level, pruned

import vitrewrite as vr
from tests import goldens
from tests.models import DEAR, spread, tiny_vit
from tests.refusal import expect_refusal
from vitrewrite.rewrite.rewritten import Rewritten

DEEP = "prepend prompt(count={count}, masks={masks}) to blocks[*]\n"
KV = "prepend kv_prompt(n=3, side={side}) to blocks[*].attn\n"
E2VPT = DEEP.format(count=10, masks="true") + KV.format(side="front") + "train head\n"
CASES = {
    "vpt-shallow-vit": "prepend prompt(count=5) to blocks[0]\ntrain head\n",
    "vpt-deep-vit": DEEP.format(count=5, masks="false") + "train head\n",
    "e2vpt-vit-before": E2VPT,
    "e2vpt-vit-after": E2VPT.replace("front", "back"),
    "e2vpt-vit-nomask": E2VPT.replace("true", "false"),
}


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    found = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.)?(?:kv_)?prompt\.(\w+)", name)
    return f"{found[2]}.{found[1]}" if found else name.removeprefix("prompt.")


def load(rewritten: Rewritten, case: goldens.Case) -> None:
    """Copies the case's method tensors in."""
    names = {golden_name(k) for k in rewritten.delta()}
    assert {k.removeprefix("method.") for k in case.tensors if k.startswith("method.")} <= names
    for name, tensor in rewritten.delta().items():
        if not name.startswith("head"):
            tensor.copy_(case.tensors[f"method.{golden_name(name)}"])


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(CASES[name], case.base())
    load(rewritten, case)
    module = rewritten.module
    with torch.no_grad():
        case.close(rewritten.base(case.tensors["input"]), "output_base")
        case.close(module.eval()(case.tensors["input"]), "output")
    output = module.train()(case.tensors["input"])
    case.close(output.detach(), "output_train")
    (output * case.tensors["probe"]).sum().backward()
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    case.gradients_close({golden_name(k): v for k, v in rewritten.delta().items()})


@pytest.mark.parametrize("name", [n for n in CASES if n != "vpt-shallow-vit"])
def test_deep_prompts_lower_to_constant_keys_and_values(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(CASES[name], case.base())
    load(rewritten, case)
    lowered = vr.lower(rewritten)
    with torch.no_grad():
        case.close(lowered.module(case.tensors["input"]), "output")
    assert lowered.report["tokens"] == [65] * 5
    assert lowered.report["macs"] < rewritten.report["macs"]
    assert not any(
        p.requires_grad
        for n, p in lowered.module.named_parameters()
        if "prompt." in n and "kv_prompt" not in n
    )
    vr.verify(lowered, graphs=name == "e2vpt-vit-before")


def test_rows_of_two_clauses_are_put_beside_keys_at_once() -> None:
    rewritten = vr.apply(E2VPT.replace("true", "false"), model())
    core = vr.lower(rewritten).module.get_submodule("blocks.0.attn")
    assert {type(m).__name__ for m in core.children()} >= {"HeldRows", "KeyValuePrompt"}
    assert "ConstantRows" not in {type(m).__name__ for m in core.modules()}


def test_masked_prompts_lower_to_one_row() -> None:
    case = goldens.case("e2vpt-vit-before")
    rewritten = vr.apply(CASES["e2vpt-vit-before"], case.base())
    load(rewritten, case)
    delta = rewritten.delta()
    delta["prompt.token_mask"][2:8] = 0
    delta["prompt.segment_mask"][9] = 0
    lowered = vr.lower(rewritten)
    x = case.tensors["input"]
    with torch.no_grad():
        torch.testing.assert_close(lowered.module(x), rewritten.module.eval()(x), **LOWERED)
    rows = lowered.delta()["blocks.0.attn.prompt.k"]
    assert rows.shape == (4, 4, 12)  # 3 that are left, and one for the 7 zero ones
    assert "prompt_masks" not in dict(lowered.module.named_modules())


EXAMPLE = torch.zeros(1, 3, 32, 32)
LOWERED: dict[str, float] = {"rtol": 1e-4, "atol": 2e-5}


def test_shallow_prompts_stay() -> None:
    case = goldens.case("vpt-shallow-vit")
    rewritten = vr.apply(CASES["vpt-shallow-vit"], case.base())
    assert rewritten.report["tokens"] == [65, 70, 70, 70, 70]
    assert vr.lower(rewritten).report["tokens"] == [65, 70, 70, 70, 70]


def test_figures_of_the_card() -> None:
    deep = vr.plan("prepend prompt(count=10) to blocks[*]\n", "vit_base")
    assert deep.measures.params.trainable == 92_160
    assert round(deep.measures.macs / 1e9, 2) == 18.49
    assert round(deep.measures.macs_lowered / 1e9, 2) == 17.60
    keys = vr.plan("prepend kv_prompt(n=5) to blocks[*].attn\n", "vit_base")
    assert keys.measures.params.trainable == 9_216 * 5
    assert round(keys.measures.macs / 1e9, 2) == 17.58
    both = vr.plan(
        "prepend prompt(count=50, masks=true, segments=16) to blocks[*]\n"
        "prepend kv_prompt(n=5) to blocks[*].attn\n",
        "vit_base",
    ).measures
    assert both.params.trainable == 9_216 * 50 + 9_216 * 5 + 50 + 50 * 16
    assert (round(both.macs / 1e9, 2), round(both.macs_lowered / 1e9, 2)) == (22.24, 17.76)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=64, depth=1, num_heads=2
    )
    delta = vr.apply(
        "prepend prompt(count=200) to blocks[*]\nprepend kv_prompt(n=50) to blocks[*].attn\n", model
    ).delta()
    prompts, kv = delta["blocks.0.prompt.prompt"], delta["blocks.0.attn.kv_prompt.kv"]
    for rows, bound in ((prompts, (6 / (3 * 16 * 16 + 64)) ** 0.5), (kv, (6 / (50 * 32)) ** 0.5)):
        assert float(rows.abs().max()) <= bound
        assert float(rows.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@DEAR
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model = data.draw(tiny_vit())
    count = data.draw(st.integers(1, 5), label="count")
    where = data.draw(st.sampled_from(["blocks[*]", "blocks[0]", "blocks[-1]"]))
    plain = model.has_class_token and model.global_pool == "token"
    stated = "" if plain else data.draw(st.sampled_from(["", ", position=0, readout=patches"]))
    masks = data.draw(st.booleans())
    options = f"count={count}, segments=4, masks={str(masks).lower()}{stated}"
    spec = f"prepend prompt({options}) to {where}\n"
    if data.draw(st.booleans()):
        shared = str(data.draw(st.booleans())).lower()
        spec += f"prepend kv_prompt(n=2, shared={shared}) to blocks[*].attn\n"
    rewritten = vr.apply(spec, model, seed=seed)
    vr.verify(rewritten, graphs=False)
    vr.verify(vr.lower(rewritten), graphs=False)


def test_windows_get_the_rows_each() -> None:
    torch.manual_seed(0)
    model = spread(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 2, 1, 1)))
    rewritten = vr.apply("prepend kv_prompt(n=2) to blocks[*].attn\n", model)
    vr.verify(rewritten, graphs=False)


def model(**options: Any) -> Any:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return timm.models.vision_transformer.VisionTransformer(**{**small, **options})


BAD = {
    "position": (
        "prepend prompt(position=1) to blocks[*]\n", {"class_token": False, "global_pool": "avg"},
        "VR403", "only 0 tokens stand before the patches",
    ),
    "pooling": (
        "prepend prompt(readout=class) to blocks[*]\n", {"global_pool": "avg"},
        "VR403", "readout=patches",
    ),
    "segments": (
        "prepend prompt(masks=true, segments=7) to blocks[*]\n", {}, "VR403", "valid: 1, 2, 4",
    ),
    "two clauses": (
        "prepend prompt() to blocks[0]\nprepend prompt() to blocks[1:]\n", {}, "VR410", "already",
    ),
    "count": ("prepend prompt(count=0) to blocks[*]\n", {}, "VR203", "count"),
    "not a block": ("prepend prompt() to blocks[*].attn\n", {}, "VR406", "block"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, model(**options), code, words, how=vr.apply)


def test_models_without_a_sequence_are_refused() -> None:
    with pytest.raises(vr.VitrewriteError, match="sequence"):
        vr.plan("prepend prompt() to blocks[*]\n", "convnext_atto")


def test_applying_twice_is_detected() -> None:
    once = vr.apply("prepend prompt(count=2) to blocks[*]\n", model())
    with pytest.raises(vr.VitrewriteError, match="already"):
        vr.apply("prepend prompt(count=2) to blocks[*]\n", once.module, example=EXAMPLE)


def test_pruning_golden() -> None:
    """Importance, the sets masked at every level, and outputs with masks at 0."""
    case = goldens.case("e2vpt-pruning-vit")
    rewritten = vr.apply(CASES["e2vpt-vit-before"], case.base())
    load(rewritten, case)
    delta, module = rewritten.delta(), rewritten.module.eval()
    masks = module.get_submodule("prompt_masks")
    parameters = [masks.get_parameter(f"{kind}_mask") for kind in ("token", "segment")]
    importance = [torch.zeros_like(p) for p in parameters]
    x, y = case.tensors["images"], case.tensors["labels"].long()
    for images, labels in zip(x.split(6), y.split(6), strict=True):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        for total, gradient in zip(importance, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient / 2
    case.close(importance[0], "importance.token")
    case.close(importance[1], "importance.segment")
    levels = case.about["levels"]
    for count, masked in levels["tokens"].items():
        zero = (pruned(importance[0], int(count)) == 0).nonzero()[:, 0]
        assert zero.tolist() == masked
    for count, by_token in levels["segments"].items():
        zero = pruned(importance[1], int(count)) == 0
        assert {str(k): row.nonzero()[:, 0].tolist() for k, row in enumerate(zero)} == by_token
    assert [level(10, p, 1) for p in (10, 50, 90, 99)] == [1, 5, 9, 9]
    assert [level(8, p, 4) for p in (10, 20, 50, 90)] == [0, 1, 4, 4]
    for about in case.about["pruned_cases"]:
        name = f"pruned.t{about['n_tokens']}.s{about['n_segments']}"
        delta["prompt.token_mask"].copy_(case.tensors[f"{name}.token_mask"])
        delta["prompt.segment_mask"].copy_(case.tensors[f"{name}.segment_mask"])
        with torch.no_grad():
            case.close(module(case.tensors["input"]), f"{name}.output")
            case.close(vr.lower(rewritten).module(case.tensors["input"]), f"{name}.output")


def test_prune_and_rewind(tmp_path: Path) -> None:
    """Every pair of levels is retrained; the masks of the chosen one are in the result."""
    tuning = pytest.importorskip("vitrewrite.tuning")
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 10}
    spec = (
        "prepend prompt(count=4, masks=true, prune_tokens=[25, 50], prune_segments=[0, 25]) "
        "to blocks[*]\ninsert merge.tome(r=1) after blocks[1].attn\ntrain head\n"
    )
    rewritten = vr.apply(spec, model(**small))
    assert any("rounding noise" in w for w in rewritten.report["warnings"])
    settings = tuning.Settings(steps=2, batch=64, lr=1e-2)
    result = tuning.tune(rewritten, "digits", settings, out=tmp_path / "run")
    assert len(result.training["phases"]) == 2 + 4
    delta = result.delta()
    assert int((delta["prompt.token_mask"] == 0).sum()) in (1, 2)
    assert set(delta["prompt.segment_mask"].unique().tolist()) <= {0.0, 1.0}
    frozen = result.module.get_submodule("prompt_masks").parameters()
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("prune_tokens=[10]", "masks=true"),
        ("count=1, masks=true, prune_tokens=[10]", "single prompt"),
        ("masks=true, segments=4, prune_segments=[10]", "have to stay"),
        ("masks=true, prune_tokens=[100]", "out of range"),
    ],
)
def test_bad_pruning(options: str, word: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=word):
        vr.apply(f"prepend prompt({options}) to blocks[*]\n", model())
