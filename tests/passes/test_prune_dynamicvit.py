"""The `prune.dynamicvit` pass: the authors' numbers and losses, stages by hand, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill
from tests.passes.test_merge_tome import image, vit
from tests.refusal import expect_refusal
from tests.sites.test_attention_single_rows import fused
from vitrewrite.authoring import MaskedSoftmax
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.kept import rates_missed, tokens_apart

SPEC = "insert prune.dynamicvit() before blocks[1, 2]\n"
ALL = SPEC + "train every parameter\n"


def predictors(rewritten: Rewritten) -> list[Any]:
    return [m for m in rewritten.module.modules() if hasattr(m, "predictor")]


def with_noise(rewritten: Rewritten, case: goldens.Case) -> None:
    """Draws with the noise of a case."""
    for k, module in enumerate(predictors(rewritten)):
        module.predictor.noise = lambda _, k=k: case.tensors[f"gumbel.{k}"]


def fill_case(rewritten: Rewritten, case: goldens.Case, name: str, own: str) -> None:
    """Sets the predictors of a case, by the names of the method."""
    for key, tensor in rewritten.delta().items():
        if ".predictor." in key:
            tensor.copy_(case.tensors["method." + key.replace(name, own)])


def golden(
    spec: str = ALL,
    case: str = "dynamicvit",
    name: str = "prune.dynamicvit",
    own: str = "dynamicvit",
) -> tuple[goldens.Case, Rewritten]:
    found = goldens.case(case)
    rewritten = vr.apply(spec, found.base())
    fill_case(rewritten, found, name, own)
    with_noise(rewritten, found)
    return found, rewritten


@torch.no_grad()
def test_golden_evaluation() -> None:
    case, rewritten = golden()
    x, kept = case.tensors["input"], list[Any]()
    case.close(rewritten.base(x), "output_base")
    for each in rewritten.module.modules():
        if hasattr(each, "picking"):
            each.register_forward_hook(
                lambda m, given, _: kept.append(
                    m.picking.best(given[1], 1, int(m.rate * given[2].shape[1]))[0][:, 1:] - 1
                )
            )
    case.close(rewritten.module.eval()(x), "output")
    assert torch.equal(kept[0], case.tensors["keep_eval.0"])
    assert torch.equal(kept[0].gather(1, kept[1]), case.tensors["keep_eval.1"])
    lowered = vr.lower(rewritten)
    assert (fused(rewritten), fused(lowered)) == (1, 4)
    for training in (True, False):
        case.close(lowered.module.train(training)(x), "output")


def test_golden_training() -> None:
    case, rewritten = golden()
    decisions = list[torch.Tensor]()
    for each in predictors(rewritten):
        each.register_forward_hook(lambda _m, _x, y: decisions.append(y))
    y = rewritten.module.train()(case.tensors["input"])
    case.close(y, "output_train")
    for k, found in enumerate(decisions):
        assert torch.equal(found, case.tensors[f"decision_train.{k}"])
    (y * case.tensors["probe"]).sum().backward()
    case.gradients_close(gradients(rewritten, "prune", "dynamicvit"))


def gradients(rewritten: Rewritten, name: str, own: str) -> dict[str, torch.Tensor]:
    """By the names of a case."""
    named = [(n, p.grad) for n, p in rewritten.module.named_parameters() if p.grad is not None]
    found = {f"base.{n}": g for n, g in named}
    return found | {n.replace(f".{name}.", f".{own}."): g for n, g in named}


def test_golden_losses() -> None:
    """Cross-entropy, rates, scores and tokens of the base, and their gradient."""
    case, rewritten = golden()
    for parameter in rewritten.base.parameters():
        parameter.requires_grad_(False)
    (method,) = [m for m in rewritten.result.methods.values() if m is not None][:1]
    procedure: Any = method.procedure()
    modules = [i.module for i in rewritten.result.editor.insertions]
    run: Any = SimpleNamespace(
        module=rewritten.module.train(),
        rewritten=rewritten,
        base=rewritten.base.eval(),
        inserted=lambda name: modules,
    )
    procedure.before_step(run)
    x, labels = case.tensors["input"], case.tensors["labels"]
    output = run.module(x)
    terms = procedure.terms(run, SimpleNamespace(images=x), output)
    parts = case.tensors["loss_parts"]
    assert list(terms) == ["rate", "teacher", "tokens"]
    weights = (2 / 2, 0.5, 0.5)
    for term, weight, part in zip(terms.values(), weights, parts[1:], strict=True):
        torch.testing.assert_close(term, weight * part, rtol=1e-4, atol=1e-6)
    loss = F.cross_entropy(output, labels) + sum(terms.values())
    torch.testing.assert_close(loss[None], case.tensors["loss"], rtol=1e-5, atol=1e-5)
    loss.backward()
    found = gradients(rewritten, "prune", "dynamicvit")
    for key, wanted in case.tensors.items():
        if key.startswith("gradloss."):
            bound = 1e-3 * float(wanted.abs().max()) + 1e-7
            torch.testing.assert_close(found[key[9:]], wanted, rtol=0, atol=bound)


def test_losses_by_hand() -> None:
    kept = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]])
    wanted = ((0.5 - 0.7) ** 2 + (0.25 - 0.7) ** 2) / 2
    assert float(rates_missed([kept], [0.7])) == pytest.approx(wanted)
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 4, 3, generator=generator) for _ in range(2))
    mask = kept > 0.5
    mse = ((own[mask] - other[mask]) ** 2).mean()
    torch.testing.assert_close(tokens_apart(own, other, kept, "mse"), mse)
    pair = own[mask].log_softmax(-1), other[mask].log_softmax(-1)
    kl = F.kl_div(*pair, reduction="batchmean", log_target=True)
    torch.testing.assert_close(tokens_apart(own, other, kept, "kl"), kl)
    assert float(tokens_apart(own, other, 0 * kept, "mse")) == 0


# -- by hand --------------------------------------------------------------------------------------


@torch.no_grad()
def reference(model: Any, stages: dict[int, Any], x: torch.Tensor, keep: float) -> torch.Tensor:
    """One image after the other; the predictors by block."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    prefix, made = model.num_prefix_tokens, []
    for tokens in x:
        count, stage = len(tokens) - prefix, 0
        for i, block in enumerate(model.blocks):
            if i in stages:
                stage += 1
                score = stages[i].predictor(tokens[None, prefix:])[0, :, 0]
                order = sorted(range(len(score)), key=lambda j: -float(score[j]))
                stays = order[: int(count * keep**stage + 1e-9)]
                rows = torch.tensor([*range(prefix), *(prefix + j for j in stays)])
                tokens = tokens[rows]
            tokens = block(tokens[None])[0]
        made.append(model.norm(tokens)[0])
    found: torch.Tensor = model.head(torch.stack(made))
    return found


MODELS = {"registers": {"reg_tokens": 2}, "rectangular": {"img_size": (20, 28)},
          "any size": {"dynamic_img_size": True}}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_equations_say(name: str) -> None:
    model = vit(**MODELS[name]).eval()
    rewritten = fill(vr.apply(SPEC.replace("()", "(keep=0.5)"), model))
    modules: Any = [rewritten.module.get_submodule(f"blocks.{i}.prune") for i in (1, 2)]
    stages = dict(zip((1, 2), modules, strict=True))
    sizes = [(32, 32), (16, 24)] if name == "any size" else [model.patch_embed.img_size]
    for height, width in sizes:
        x = image(height, width, batch=3)
        expected = reference(model, stages, x, 0.5)
        for module in (rewritten.module, vr.lower(rewritten).module):
            with torch.no_grad():
                for count in (3, 1):
                    found = module.eval()(x[:count])
                    torch.testing.assert_close(found, expected[:count], rtol=1e-4, atol=1e-5)
                assert name == "any size" or module(x[:0]).shape == (0, 5)
    if name == "registers":
        vr.verify(rewritten, graphs=False)


@pytest.mark.parametrize(
    "other",
    [
        "prepend kv_prompt(n=2) to blocks[*].attn\n",
        "prepend prompt(count=3) to blocks[*]\n",
        "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}\n",
        "insert adaptformer(hidden=2) at blocks[*].mlp_branch\n",
    ],
)
def test_with_others_in_both_orders(other: str) -> None:
    """In training the masks are of patches, wherever prompts and rows stand."""
    found, x = [], image()
    for spec in (SPEC + other, other + SPEC):
        rewritten = fill(vr.apply(spec, vit()))
        with torch.no_grad():
            found += [m.module.eval()(x) for m in (rewritten, vr.lower(rewritten))]
        for module in predictors(rewritten):
            module.predictor.noise = lambda s: torch.linspace(-1, 1, s.numel()).view_as(s)
        rewritten.module.train()(x).sum().backward()
        named = rewritten.module.named_parameters()
        assert all(p.grad is not None for _, p in named if p.requires_grad)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-5)


def test_masks_leave_prompts_and_rows_alone() -> None:
    masked = MaskedSoftmax(1e-6, own=True)
    scores = torch.randn(2, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[1.0, 0, 1, 0, 1], [1, 1, 1, 1, 0]])
    weights = masked(scores, there)
    seen = F.pad(there, (4, 0), value=1.0)[:, None, None].expand_as(scores).clone()
    for i in range(7):
        seen[:, :, i, i + 2] = 1
    expected = scores.masked_fill(seen == 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_figures_of_the_card() -> None:
    spec = "insert prune.dynamicvit() before blocks[3, 6, 9]\n"
    for model, giga, count in (("vit_base", 11.476, 961_730), ("deit_small", 2.981, 241_250)):
        measures = vr.plan(spec, model).measures
        assert measures.macs / 1e9 == pytest.approx(giga, abs=1e-3)
        assert measures.params.trainable == 3 * count
        assert measures.tokens[-1] == 1 + int(196 * 0.343)


@pytest.mark.slow
def test_a_step_of_training(tmp_path: Path) -> None:
    """The base learns at a hundredth of the rate, the predictors by the rates that are missed."""
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options, num_classes=3, in_chans=1)
    settings = Settings(batch=20, lr=1e-3, steps=2, log_every=1, warmup_epochs=0.0)
    tuned = tune(vr.apply(ALL, model), "digits:0-2?images=60", settings, out=tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if line["event"] == "step"]
    assert steps[0]["terms"].keys() == {"task", "rate", "teacher", "tokens"}
    rates = steps[0]["rates"]
    assert rates["backbone"] == pytest.approx(0.01 * rates["weights"])
    assert tuned.trained


BAD = {
    "keep": (SPEC.replace("()", "(keep=1)"), {}, "VR203", "below 1"),
    "nothing stays": (SPEC.replace("()", "(keep=0.1)"), {}, "VR403", "0.01 of 64 patches are none"),
    "width": (SPEC, {"embed_dim": 18}, "VR410", "18 channels do not divide by 4"),
    "no class token": (SPEC, {"class_token": False, "global_pool": "avg"}, "VR410", "class token"),
    "two pruners": (
        SPEC + "insert prune.evit() after blocks[3].attn\n", {}, "VR455", "are both a pruner",
    ),
    "a merge behind": (
        SPEC + "insert merge.tome(r=2) after blocks[3].attn\n", {}, "VR410", "training masks some",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)


def test_windows_are_refused() -> None:
    spec = "insert prune.dynamicvit() before stages[0].blocks[0]\n"
    with pytest.raises(vr.VitrewriteError, match="one sequence of tokens"):
        vr.plan(spec, "swin_tiny_patch4_window7_224")


@pytest.mark.slow
def test_it_exports_with_any_batch_and_compiles_to_one_graph() -> None:
    module = vr.lower(fill(vr.apply(SPEC, vit()))).module.eval()
    x, batch = image(batch=3), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))
        assert torch.equal(compiled(x), module(x))
