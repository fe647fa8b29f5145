"""SPT: LoRA or adapters at sensitive matrices, single entries and vectors elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests import goldens
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.sensitivity.profile import Profile

CALL = "sensitive(budget=4K, scale=10K)"
SPT = (
    """insert {structured} at """
    + CALL
    + """
insert sparse() at """
    + CALL
    + """
train """
    + CALL
    + """
train cls_token
train head
"""
)
STRUCTURED = {
    "spt-lora-vit": "lora(rank=2, convention=spt, dropout=0, drop_path=0)",
    "spt-adapter-vit": "adapter(hidden=2, dropout=0, drop_path=0)",
}
OPS = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "proj": "attn.proj", "fc1": "mlp.fc1",
       "fc2": "mlp.fc2"}  # fmt: skip


def profile() -> Profile:
    """The sensitivities that the authors' code measured."""
    tensors = goldens.case("spt-allocation").tensors
    prefix = "sens.batch4."
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return Profile({f"sensitivity.{k}": v for k, v in named.items()})


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    sparse = re.fullmatch(r"(.*)\.(weight|bias)\.sparse\.values", name)
    if sparse:
        path, kind = sparse[1], sparse[2]
        part = re.fullmatch(r"(.*attn)\.([qkv])", path)
        return f"{part[1]}.qkv.{kind}[{part[2]}].delta" if part else f"{path}.{kind}.delta"
    found = re.fullmatch(r"blocks\.(\d+)\.\w+\.(\w+)\.(?:lora|adapter)\.(\w+)(\.\w+)?", name)
    if found:
        return f"blocks.{found[1]}.{found[2]}.{found[3]}{found[4] or '.weight'}"
    return name


def load(rewritten: Rewritten, case: goldens.Case) -> dict[str, str]:
    """Copies the case's tensors in; maps our names to the case's."""
    names = {k: golden_name(k) for k in rewritten.delta() if not k.endswith(".index")}
    given = {
        k.removeprefix("method."): v
        for k, v in case.tensors.items()
        if k.startswith("method.") and "maskidx" not in k
    }
    for name, tensor in rewritten.delta().items():
        if name in names and names[name] in given:
            tensor.copy_(given.pop(names[name]))
    assert not given
    return names


@pytest.mark.parametrize("name", STRUCTURED)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    spec = SPT.format(structured=STRUCTURED[name])
    rewritten = vr.apply(spec, case.base(), profile=profile())
    assert (
        rewritten.report["allocations"][CALL.replace("4K", "4000").replace("10K", "10000")]["total"]
        == case.about["declared_total_params"]
    )
    names = load(rewritten, case)
    module, x = rewritten.module, case.tensors["input"]
    with torch.no_grad():
        case.close(module.eval()(x), "output")
        case.close(vr.lower(rewritten).module(x), "output")
    (module.train()(x) * case.tensors["probe"]).sum().backward()
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    found = {names[k]: v for k, v in rewritten.delta().items() if k in names}
    # A third of a fused bias that is trained whole is a plain vector to the case.
    whole = {
        k.removesuffix(".delta"): v for k, v in found.items() if f"grad.{k}" not in case.tensors
    }
    case.gradients_close({**found, **whole})


def test_lora_at_all_six_matrices() -> None:
    case = goldens.case("spt-lora-allops-vit")
    sites = [("q", "fc1"), tuple(OPS), ("k", "proj")]
    where = " + ".join(f"blocks[{i}].{OPS[op]}" for i, ops in enumerate(sites) for op in ops)
    spec = f"insert lora(rank=3, convention=spt, dropout=0, drop_path=0) at {where}\n"
    rewritten = vr.apply(spec + "train cls_token\ntrain head\n", case.base())
    load(rewritten, case)
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")


@pytest.mark.slow
def test_verifies() -> None:
    for structured in STRUCTURED.values():
        model: Any = goldens.case("spt-allocation").base()
        rewritten = vr.apply(SPT.format(structured=structured), model, profile=profile())
        vr.verify(rewritten, graphs=structured.startswith("lora"))


def test_without_measurements() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR306"):
        vr.plan(SPT.format(structured="lora()"), goldens.case("spt-allocation").base())


@pytest.mark.parametrize(
    ("clauses", "counted", "trained", "released"),
    [
        (("lora(rank=2)",), 3995, 3360, 3973),
        (("lora(rank=2)", "adapter(hidden=2)"), 3787, 2888, 3760),
        (("sparse()",), 3914, 3434, 3879),
    ],
)
def test_what_is_reported_is_what_is_trained(
    clauses: tuple[str, ...], counted: int, trained: int, released: int
) -> None:
    """Also where not all that was bought has a clause, and where two modules are at one matrix."""
    spec = "".join(f"insert {clause} at {CALL}\n" for clause in clauses)
    rewritten = vr.apply(spec, goldens.case("spt-lora-vit").base(), profile=profile())
    (bought,) = rewritten.report["allocations"].values()
    assert bought["total"] == rewritten.report["params"]["trainable_without_head"] == trained
    assert (bought["counted"], bought["released"]) == (counted, released)
    assert bought["counted"] <= 4000
    (kept,) = (
        vr.plan(spec, goldens.case("spt-lora-vit").base(), profile=profile())
        .to_json()["allocations"]
        .values()
    )
    assert kept == bought


def test_all_that_was_bought_is_trained_with_all_clauses() -> None:
    case = goldens.case("spt-lora-vit")
    spec = SPT.format(structured=STRUCTURED["spt-lora-vit"])
    rewritten = vr.apply(spec, case.base(), profile=profile())
    (bought,) = rewritten.report["allocations"].values()
    assert bought["total"] == bought["counted"] == 4043
    assert bought["total"] == rewritten.report["params"]["trainable_without_head"]
