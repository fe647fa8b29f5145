"""The `prune.evit` pass: the authors' numbers, what stays, other inputs, schedule, bad input."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill
from tests.passes.test_merge_tome import image, vit
from tests.refusal import expect_refusal
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning.kept import share

EVIT = importlib.import_module("vitrewrite.passes.prune.evit")
SPEC = "insert prune.evit() after blocks[1, 3].attn\n"


def prunes(rewritten: Rewritten) -> list[Any]:
    return [i.module for i in rewritten.result.editor.insertions if i.pass_name == "prune.evit"]


@torch.no_grad()
def watched(rewritten: Rewritten, x: torch.Tensor) -> list[tuple[Any, Any]]:
    """What each module is given and yields."""
    seen: list[tuple[Any, Any]] = []
    for module in prunes(rewritten):
        module.register_forward_hook(lambda _, given, made: seen.append((given, made)))
    rewritten.module.eval()(x)
    return seen


def test_golden() -> None:
    case = goldens.case("evit")
    rewritten = vr.apply(SPEC, case.base())
    x = case.tensors["input"]
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        for module in (rewritten.module.eval(), vr.lower(rewritten).module.eval()):
            case.close(module(x), "output")
        case.close(rewritten.module.train()(x), "output")
    assert rewritten.report["tokens"] == [65, *case.about["hyper"]["tokens_after_block"]]
    for k, (module, (given, _)) in enumerate(
        zip(prunes(rewritten), watched(rewritten, x), strict=True)
    ):
        case.close(given[1][:, 1:], f"class_attention.{k}")
        patches = given[1][:, 1:]
        kept, gone = module.picking.best(patches, 1, math.ceil(0.7 * patches.shape[1]))
        assert torch.equal(kept[:, 1:] - 1, case.tensors[f"kept_positions.{k}"])
        assert torch.equal(gone.sort().values - 1, case.tensors[f"dropped_positions.{k}"])


@pytest.mark.parametrize("training", [False, True])
def test_golden_gradients(training: bool) -> None:
    case = goldens.case("evit")
    module = vr.apply(SPEC + "train every parameter\n", case.base()).module.train(training)
    (module(case.tensors["input"]) * case.tensors["probe"]).sum().backward()
    found = {f"base.{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    case.gradients_close(found)


def test_the_schedule_of_the_authors() -> None:
    rows = goldens.case("evit").about["keep_rate_schedule"]["rows [iteration, epoch, keep rate]"]
    for iteration, _, rate in rows:
        assert share(0.7, iteration / 5, 10, 90) == pytest.approx(rate, abs=1e-12)


# -- by hand --------------------------------------------------------------------------------------


@torch.no_grad()
def reference(model: Any, x: torch.Tensor, keep: float, at: set[int], fuse: bool) -> torch.Tensor:
    """One image after the other, token by token."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    prefix, made = model.num_prefix_tokens, []
    for tokens in x:
        for i, block in enumerate(model.blocks):
            attn, y = block.attn, block.norm1(tokens)
            q, k, v = attn.qkv(y).reshape(len(y), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
            weights = (q @ k.mT * attn.scale).softmax(-1)
            tokens = tokens + attn.proj((weights @ v).transpose(0, 1).reshape(len(y), -1))
            if i in at:
                a = weights.mean(0)[0]
                order = sorted(range(prefix, len(y)), key=lambda j: -float(a[j]))
                count = math.ceil(keep * len(order))
                rows = [tokens[j] for j in [*range(prefix), *order[:count]]]
                if fuse and order[count:]:
                    rows.append(sum(a[j] * tokens[j] for j in order[count:]))
                tokens = torch.stack(rows)
            tokens = tokens + block.mlp(block.norm2(tokens))
        made.append(model.norm(tokens)[0])
    found: torch.Tensor = model.head(torch.stack(made))
    return found


MODELS = {
    "class token": {},
    "registers": {"reg_tokens": 3},
    "rectangular": {"img_size": (20, 28)},
    "any size": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_equations_say(name: str) -> None:
    model, fuse = vit(**MODELS[name]).eval(), name != "registers"
    spec = SPEC.replace("()", f"(keep=0.6, fuse={str(fuse).lower()})")
    rewritten = vr.apply(spec, model)
    sizes = [(32, 32), (16, 24), (4, 4)] if name == "any size" else [model.patch_embed.img_size]
    for height, width in sizes:
        x = image(height, width, batch=3)
        expected = reference(model, x, 0.6, {1, 3}, fuse)
        with torch.no_grad():
            for count in (3, 1):
                found = rewritten.module.eval()(x[:count])
                torch.testing.assert_close(found, expected[:count], rtol=1e-4, atol=1e-5)
            assert name == "any size" or rewritten.module(x[:0]).shape == (0, 5)
    if name == "registers":
        vr.verify(rewritten, graphs=False)


def test_the_distillation_token_stays() -> None:
    model = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=5
    )
    rewritten = vr.apply(SPEC, model.eval())
    for given, made in watched(rewritten, image()):
        assert torch.equal(given[0][:, :2], made[0][:, :2])


def test_sizes_and_traces() -> None:
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(2, 12, 6, generator=generator), torch.rand(2, 12, generator=generator)
    size = torch.randint(1, 4, (2, 12), generator=generator).float()
    for fuse in (True, False):
        module = EVIT.AttentiveTokens(0.5, 2, fuse, traced=True)
        y, new, into, kept = module(x, a, size)
        assert y.shape[1] == new.shape[1] == kept.shape[1] == 7 + fuse
        if fuse:
            assert torch.equal(new.sum(1), size.sum(1))
        torch.testing.assert_close(
            y[:, :7], torch.stack([t[i] for t, i in zip(x, kept[:, :7], strict=True)])
        )
        for image_, (where, whose) in enumerate(zip(into, kept, strict=True)):
            for j, i in enumerate(where.tolist()):
                stays = i >= 0 and int(whose[i]) == j
                assert stays or i == (7 if fuse else -1)
            assert [where[j] for j in whose] == list(range(len(whose)))
            assert where[:2].tolist() == [0, 1], image_
    whole = EVIT.AttentiveTokens(1.0, 2, traced=True)(x, a)
    assert torch.equal(whole[0], x)
    assert torch.equal(whole[2], whole[3])


def test_a_share_that_falls_is_for_training() -> None:
    spec = SPEC.replace("()", "(schedule=cosine, start=0, length=2)")
    rewritten = vr.apply(spec, vit())
    procedure: Any
    (procedure,) = [m.procedure() for m in rewritten.result.methods.values()]
    modules = prunes(rewritten)
    for epoch, tokens in ((0.0, 65), (1.0, 57), (2.0, 47)):
        run: Any = SimpleNamespace(inserted=lambda name: modules, epoch=epoch)
        procedure.before_step(run)
        counts: list[int] = []
        handle = modules[0].register_forward_hook(
            lambda _, g, y, counts=counts: counts.append(y[0].shape[1])
        )
        for training in (True, False):
            rewritten.module.train(training)(image())
        handle.remove()
        assert counts == [tokens, 47]


@pytest.mark.parametrize(
    "other",
    [
        "prepend kv_prompt(n=2) to blocks[*].attn\n",
        "prepend prompt(count=3) to blocks[*]\n",
        "insert lora(rank=2) at blocks[*].attn.{q, v}\n",
        "insert merge.tome(r=3, prop_attn=true) after blocks[2].attn\n",
    ],
)
def test_with_others_in_both_orders(other: str) -> None:
    found, x = [], image()
    for spec in (SPEC + other, other + SPEC):
        rewritten = fill(vr.apply(spec, vit()))
        with torch.no_grad():
            found += [m.module.eval()(x) for m in (rewritten, vr.lower(rewritten))]
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-5)
    assert all(float(m.prefix) == (4 if "prompt(c" in other else 1) for m in prunes(rewritten))


def test_figures_of_the_card() -> None:
    spec = "insert prune.evit({}) after blocks[3, 6, 9].attn\n"
    for model, options, giga in (
        ("vit_base", "", 11.610), ("vit_base", "fuse=false", 11.486), ("deit_small", "", 3.029),
    ):  # fmt: skip
        measures = vr.plan(spec.format(options), model).measures
        assert measures.macs / 1e9 == pytest.approx(giga, abs=1e-3)
    assert "all of them" in vr.plan(spec.format("keep=1"), "vit_base").warnings[0]


BAD = {
    "keep": (SPEC.replace("()", "(keep=0)"), {}, "VR203", "above 0"),
    "no class token": (SPEC, {"class_token": False, "global_pool": "avg"}, "VR410", "class token"),
    "registers alone": (
        SPEC, {"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, "VR410", "class token",
    ),
    "a merge there": (
        "insert merge.tome(r=2) after blocks[1].attn\n" + SPEC, {}, "VR410", "regrouped by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        pytest.param("samvit_base_patch16", marks=pytest.mark.slow),
    ],
)
def test_models_of_windows_are_refused(name: str) -> None:
    spec = "insert prune.evit() after {}.attn\n"
    where = "stages[0].blocks[0]" if name.startswith("swin") else "blocks[0]"
    with pytest.raises(vr.VitrewriteError, match="one sequence of tokens"):
        vr.plan(spec.format(where), name)


@pytest.mark.slow
def test_it_exports_with_any_batch_and_compiles_to_one_graph() -> None:
    module = vr.lower(vr.apply(SPEC, vit())).module.eval()
    x, batch = image(batch=3), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))
        assert torch.equal(compiled(x), module(x))


def test_keys_that_a_row_was_made_of_take_no_others_later() -> None:
    """A second rewrite would put rows beside keys that the first one's row of weights lacks."""
    made = vr.apply("model test_vit\ninsert prune.evit(keep=0.7) after blocks[2].attn\n")
    rows = "prepend kv_prompt(n=2) to blocks[{}].attn\n".format
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*other weights are made of its keys"):
        vr.plan(rows(2), made.module)
    vr.plan(rows(1), made.module)
