"""The `dispatch` pass: the authors' numbers, other variants, lowering, costs, bad input."""

from __future__ import annotations

import importlib
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests import goldens
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tasks.classification import Classification

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
        module=module, task=Classification(10), settings=SimpleNamespace(label_smoothing=0.0),
        inserted=rewritten.inserted,
    )  # fmt: skip
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
