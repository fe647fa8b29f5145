"""The `dispatch` pass: the authors' numbers, other variants, lowering, costs, bad input."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.models import spread
from vitrewrite.editing.measure import Propagation
from vitrewrite.rewrite.activity import costs_of, gates_of
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tasks.classification import Classification
from vitrewrite.tracing.unit import duplicate, on_meta
from vitrewrite.tuning import Settings, tune

LOSSES = importlib.import_module("vitrewrite.passes.dispatch.losses")
DISPATCH = importlib.import_module("vitrewrite.passes.dispatch")
PLAIN = "insert dispatch(hidden=8, scale=0.7, dropout=0{more}) at {where}\n"
CASES = {
    "dyt-mlp": ("blocks[*].mlp_branch", ""),
    "dyt-attn": ("blocks[*].attn_branch", ""),
    "dyt-attn-mlp": ("blocks[*].{attn_branch, mlp_branch}", ""),
    "dyt-mlp-moe": ("blocks[*].mlp_branch", ", experts=3"),
}


def golden(name: str) -> tuple[goldens.Case, Rewritten]:
    """A case and its model, filled with the tensors of the case."""
    case = goldens.case(name)
    where, more = CASES[name]
    rewritten = vr.apply(PLAIN.format(where=where, more=more), case.base())
    for key, tensor in rewritten.delta().items():
        tensor.copy_(case.tensors[f"method.{neutral(key, name)}"])
    return case, rewritten


def neutral(key: str, name: str) -> str:
    """What a case calls a tensor of a delta."""
    if name == "dyt-mlp":
        return key
    part = "attn" if ".attn_branch." in key else "mlp"
    key = key.replace(".attn_branch.", ".")
    for word in ("dispatch", "adapter"):
        key = key.replace(f".dyt.{word}.", f".dyt.{word}_{part}.")
    return key


def gates(made: Any) -> torch.Tensor:
    """The gates of the patches, [batch, layers, patches]."""
    return torch.stack([g[:, 1:] for g in made[1]], dim=1)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_golden(name: str) -> None:
    case, rewritten = golden(name)
    x, module = case.tensors["input"], rewritten.module.eval()
    case.close(rewritten.base(x), "output_base")
    case.close(module(x), "output")
    case.close(module.complete(x), "output_complete")
    logits, found = module.dynamic(x)
    assert torch.equal(logits, module(x))
    assert torch.equal(gates((logits, found)), case.tensors["gates_eval"])
    lowered = vr.lower(rewritten).module.eval()
    case.close(lowered(x), "output")
    assert not hasattr(lowered, "complete")
    for one in x.split(1):
        bound = 5e-7 if name == "dyt-mlp" else 5e-6
        torch.testing.assert_close(lowered(one), module(one), rtol=0, atol=bound)


def with_noise(rewritten: Rewritten, case: goldens.Case) -> Any:
    """The model in training, its gates with the noise of the case."""
    module = rewritten.module.train()
    found = [m for m in module.modules() if isinstance(m, DISPATCH.TokenGate)]
    for i, gate in enumerate(found):
        noise = itertools.cycle([case.tensors[f"gumbel{k}"][:, i] for k in (1, 2)])
        gate.gumbel = lambda like, noise=noise: next(noise)
    return module


def test_golden_training() -> None:
    case, rewritten = golden("dyt-mlp")
    module = with_noise(rewritten, case)
    logits, found = module.dynamic(case.tensors["input"])
    case.close(logits, "output_train")
    assert torch.equal(gates((logits, found)), case.tensors["gates_train"])
    (logits * case.tensors["probe"]).sum().backward()
    case.gradients_close(gradients(rewritten))


def test_golden_losses() -> None:
    case, rewritten = golden("dyt-mlp")
    module, about = with_noise(rewritten, case), case.about["hyper"]
    rate, weight = about["target_rate"], about["rate_weight"]
    procedure = LOSSES.RateAndCompleteModel(rate, weight, complete=True)
    run: Any = SimpleNamespace(
        module=module,
        task=Classification(10),
        settings=SimpleNamespace(label_smoothing=0.0),
        inserted=rewritten.inserted,
    )
    batch = SimpleNamespace(images=case.tensors["input"], labels=case.tensors["labels"])
    output = getattr(module, procedure.entry)(batch.images)
    found = procedure.terms(run, batch, output)
    task = F.cross_entropy(output[0], batch.labels)
    terms = torch.stack([task, *(found[k] for k in ("rate", "complete", "distillation"))])
    case.close(torch.cat([terms, terms.sum()[None]]), "loss_terms")
    terms.sum().backward()
    made = gradients(rewritten)
    for name, tensor in case.tensors.items():
        if name.startswith("gradloss."):
            bound = 1e-3 * float(tensor.abs().max()) + 1e-6
            key = name.removeprefix("gradloss.")
            torch.testing.assert_close(made[key], tensor, rtol=0, atol=bound)


def gradients(rewritten: Rewritten) -> dict[str, torch.Tensor]:
    for parameter in rewritten.module.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    return {name: tensor.clone() for name, tensor in rewritten.delta().items()}


# -- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "gmacs"), [(0.5, 12.04), (0.7, 14.26), (0.9, 16.48)])
def test_costs_of_the_card(rate: float, gmacs: float) -> None:
    spec = f"insert dispatch(rate={rate}) at blocks[*].mlp_branch\ntrain head\n"
    made = vr.plan(spec, "vit_base_patch16_224.augreg_in21k", num_classes=100).to_json()
    assert made["macs_lowered"] / 1e9 == pytest.approx(gmacs, abs=0.0051)


def test_masked_it_costs_what_the_base_does() -> None:
    spec = "insert dispatch(rate=0.5) at blocks[*].mlp_branch\n"
    made = vr.plan(spec, "vit_base_patch16_224").to_json()
    gates_and_adapters = 12 * (196 * 768 + 197 * 2 * 768 * 8)
    assert made["macs"] == 17_563_828_224 + gates_and_adapters


# -- other variants, and what they are measured by ------------------------------------------------


def vit(**options: Any) -> Any:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    torch.manual_seed(0)
    return spread(VisionTransformer(**{**small, "num_classes": 5, **options}))


def image(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def filled(spec: str, model: Any) -> Rewritten:
    """A rewritten model whose gates let some tokens pass."""
    rewritten = vr.apply(spec, model)
    for i, (name, tensor) in enumerate(sorted(rewritten.delta().items())):
        if not name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)))
            tensor.mul_(0.2)
    return rewritten


VARIANTS = {
    "blocks": "insert dispatch(hidden=4) at blocks[*]\n",
    "soft keys": "insert dispatch(hidden=4, soft_keys=true) at blocks[*].attn_branch\n",
    "budget": "insert dispatch(hidden=4, budget=0.4) at every branch\n",
    "experts": "insert dispatch(hidden=4, experts=3) at blocks[*].attn_branch\n",
    "the last blocks": "insert dispatch(hidden=4, rate=0.7) at blocks[1:].mlp_branch\n",
    "with LoRA": "insert dispatch(hidden=4) at blocks[*].mlp_branch\n"
    "insert lora(rank=2) at every linear in blocks\n",
    "prompts": "prepend prompt(count=3) to blocks[*]\ninsert dispatch(hidden=4) at every branch\n",
    "behind FPET": "insert merge.bdm() after blocks[1].attn\n"
    "insert dispatch(hidden=4) at blocks[*].mlp_branch\n",
}


SLOW = {"budget", "experts", "the last blocks", "with LoRA", "prompts"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in VARIANTS]
)
def test_variants(name: str) -> None:
    rewritten = filled(VARIANTS[name], vit())
    module, lowered = rewritten.module.eval(), vr.lower(rewritten)
    assert not lowered.report["warnings"]
    with torch.no_grad():
        expected, found = module.dynamic(image())
        assert all(bool((g[:, 0] == 1).all()) for g in found)
        inner = torch.stack([g[:, 1:].mean() for g in found])
        assert bool(((inner > 0) & (inner < 1)).all())
        for made in (lowered.module.eval()(image()), lowered.module.dynamic(image())[0]):
            torch.testing.assert_close(made, expected, rtol=1e-5, atol=2e-6)
    vr.verify(rewritten, graphs=False)


def reference(model: Any, rewritten: Rewritten, x: torch.Tensor) -> torch.Tensor:
    """What a ViT yields whose blocks skip tokens by a gate, block by block."""
    owned = rewritten.delta()
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for i, block in enumerate(model.blocks):
        part = {
            k.partition(".dyt.")[2]: v for k, v in owned.items() if k.startswith(f"blocks.{i}.")
        }
        code = F.relu(F.linear(x, part["adapter.down.weight"], part["adapter.down.bias"]))
        more = F.linear(code, part["adapter.up.weight"], part["adapter.up.bias"])
        score = F.linear(x, part["dispatch.weight"], part["dispatch.bias"])[..., 0]
        active = score > 0
        active[:, 0] = True
        y = x.clone()
        for b, chosen in enumerate(active):
            y[b, chosen] = block(x[b, chosen][None])[0]
        x = y + more
    return model.head(model.fc_norm(model.norm(x)[:, 0]))


@torch.no_grad()
def test_blocks_are_for_active_tokens_alone() -> None:
    model = vit().eval()
    rewritten = filled(VARIANTS["blocks"], model)
    expected = reference(model, rewritten, image(3))
    torch.testing.assert_close(rewritten.module.eval()(image(3)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_budget_is_kept() -> None:
    rewritten = filled(VARIANTS["budget"], vit())
    _, found = rewritten.module.eval().dynamic(image(3))
    assert {int(g[:, 1:].sum(1).unique()) for g in found} == {int(0.4 * 16)}


def test_gradient_reaches_the_gate_through_keys_if_so_wanted() -> None:
    """The gate of a block whose queries are not read: by its keys alone."""
    grads = []
    for soft in ("false", "true"):
        spec = f"insert dispatch(hidden=4, soft_keys={soft}) at blocks[-1].attn_branch\n"
        module = filled(spec, vit()).module.train()
        module(image()).sum().backward()
        (gate,) = (m for m in module.modules() if isinstance(m, DISPATCH.TokenGate))
        grads.append(bool(gate.dispatch.weight.grad.any()))
    assert grads == [False, True]


def test_training_is_dense_and_equal_at_equal_seed() -> None:
    module = filled("insert dispatch(hidden=4) at every branch\n", vit()).module.train()
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(module(image()))
    assert torch.equal(*made)
    assert not torch.equal(module(image()), made[0])


# -- what cannot be -------------------------------------------------------------------------------


def test_attention_needs_a_token_that_is_always_active() -> None:
    model = vit(class_token=False, global_pool="avg")
    with pytest.raises(vr.VitrewriteError, match=r"VR410 dispatch at .*no token is always active"):
        vr.plan("insert dispatch() at blocks[*].attn_branch\n", model)
    made = vr.plan("insert dispatch() at blocks[*].mlp_branch\n", model)
    assert any("pools all tokens" in w for w in made.warnings)


@pytest.mark.parametrize(
    ("clause", "told"),
    [
        ("dispatch(rate=0) at blocks[*].mlp_branch", "rate"),
        ("dispatch(rate=1.1) at blocks[*].mlp_branch", "rate"),
        ("dispatch(experts=1) at blocks[*].mlp_branch", "experts"),
        ("dispatch() at blocks[7].mlp_branch", "blocks"),
        ("dispatch() at blocks[*].mlp", "VR406 dispatch attaches to"),
    ],
)
def test_bad_input(clause: str, told: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=told):
        vr.plan(f"insert {clause}\n", vit())


def test_soft_keys_without_attention_have_no_effect() -> None:
    made = vr.plan("insert dispatch(soft_keys=true) at blocks[*].mlp_branch\n", vit())
    assert any("soft_keys has no effect" in w for w in made.warnings)


def test_several_prefix_tokens_are_active() -> None:
    rewritten = filled("insert dispatch(hidden=4) at every branch\n", vit(reg_tokens=3))
    with torch.no_grad():
        _, found = rewritten.module.eval().dynamic(image())
    assert all(bool((g[:, :4] == 1).all()) for g in found)


# -- rates over images ----------------------------------------------------------------------------


def test_costs_of_images_are_those_of_a_table() -> None:
    """Image by image: as the lowered model is measured with as many active tokens."""
    rewritten = filled("insert dispatch(hidden=4) at every branch\n", vit())
    active = torch.tensor([[3, 7, 16, 0, 5, 5], [16, 16, 16, 16, 16, 16]])
    found = costs_of(rewritten, active, [16] * 6)
    lowered = vr.lower(rewritten)
    own = rewritten.measures.macs
    assert found[1] == own
    table = []
    for gates_of_image in active[:1].tolist():
        root = duplicate(on_meta(lowered.module), lambda p: p, lambda b: b)
        order = [insertion.path for insertion, _ in gates_of(rewritten.result.editor)]
        rows = {i.path: m for i, m in gates_of(lowered.result.editor.on(root))}
        for path, count in zip(order, gates_of_image, strict=True):
            rows[path].number, rows[path].rate = 0, (count + 0.5) / 16  # type: ignore[assignment]
        table.append(Propagation(root, rewritten.result.example).macs)
    assert found[:1].tolist() == table


def test_another_rewrite_on_top() -> None:
    first = filled("insert dispatch(hidden=4) at blocks[*].mlp_branch\n", vit())
    second = vr.apply("insert lora(rank=2) at blocks[*].attn.{q, v}\n", first.module)
    with torch.no_grad():
        for name in ("forward", "complete"):
            made, own = (getattr(r.module.eval(), name)(image()) for r in (second, first))
            torch.testing.assert_close(made, own, rtol=0, atol=1e-6)
        assert len(second.module.dynamic(image())[1]) == 3


def test_training_tells_the_rate_of_every_gate(tmp_path: Path) -> None:
    model = vit(img_size=16, patch_size=4, in_chans=1, num_classes=10)
    rewritten = vr.apply("insert dispatch(rate=0.7) at blocks[*].mlp_branch\ntrain head\n", model)
    settings = Settings(steps=2, batch=8, warmup_epochs=0.0)
    result = tune(rewritten, "digits", settings, out=tmp_path / "run")
    found = result.report["training"]["activity"]
    assert found["target"] == 0.7
    assert list(found["layers"]) == [f"blocks[{i}].mlp_branch" for i in range(3)]
    assert found["overall"] == pytest.approx(sum(found["layers"].values()) / 3, abs=2e-4)
    dense, stated = rewritten.measures.macs, rewritten.measures.run_lowered.macs
    share = (dense - found["macs"]) / (dense - stated)  # of 48 - 33 patches that skip at the target
    assert share == pytest.approx((1 - found["overall"]) * 48 / 15, rel=1e-3)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    terms = next(line["terms"] for line in steps if line["event"] == "step")
    assert terms.keys() == {"task", "rate", "complete", "distillation"}
