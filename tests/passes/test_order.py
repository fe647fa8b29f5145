"""Several clauses at one place: the order of the spec, but linear updates first."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.lowering.models import fill, vit
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.sensitivity.profile import Profile

LAYER = "blocks.0.mlp.fc2"
BESIDE = {
    "lora": "insert lora(rank=2, dropout=0) at blocks[0].mlp.fc2",
    "adapter": "insert adapter(hidden=3, dropout=0, drop_path=0) at blocks[0].mlp.fc2",
    "sparse": "insert sparse() at sensitive(budget=200, scale=500)",
}
ELSEWHERE = {
    "kv_prompt": "prepend kv_prompt(n=2) to blocks[0].attn",
    "prompt": "prepend prompt(count=3) to blocks[*]",
    "merge": "insert merge.bdm(dropout=0) after blocks[0].attn",
}


def profile() -> Profile:
    """Only entries of one layer matter."""
    generator = torch.Generator().manual_seed(0)
    named = {n: torch.zeros(p.shape) for n, p in vit().named_parameters()}
    named[f"{LAYER}.weight"] = torch.rand(named[f"{LAYER}.weight"].shape, generator=generator)
    return Profile({f"sensitivity.{n}": v for n, v in named.items()})


def apply(clauses: list[str]) -> Rewritten:
    return fill(vr.apply("\n".join(clauses) + "\n", vit(), profile=profile()))


@torch.no_grad()
def run(rewritten: Rewritten) -> torch.Tensor:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = rewritten.module.eval()(images)
    return result


def changed(name: str, delta: dict[str, torch.Tensor], x: Any, y: Any) -> torch.Tensor:
    """What a pass makes of the output y of the layer, written by hand."""

    def of(part: str) -> torch.Tensor:
        return next(v for k, v in delta.items() if k.endswith(f".{name}.{part}"))

    if name == "lora":
        return y + x @ of("down").T @ of("up").T
    if name == "adapter":
        code = F.gelu(F.linear(y, of("down.weight"), of("down.bias")))
        return y + F.linear(code, of("up.weight"), of("up.bias"))
    flat = torch.zeros(y.shape[-1] * x.shape[-1])
    flat[of("index")] = of("values")
    return y + x @ flat.view(y.shape[-1], -1).T


@torch.no_grad()
def reference(names: list[str], delta: dict[str, torch.Tensor]) -> torch.Tensor:
    model = vit().eval()

    def hook(_: Any, inputs: Any, y: torch.Tensor) -> torch.Tensor:
        for name in names:
            y = changed(name, delta, inputs[0], y)
        return y

    model.get_submodule(LAYER).register_forward_hook(hook)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = model(images)
    return result


@pytest.mark.parametrize("names", [*permutations(BESIDE, 2), *permutations(BESIDE)])
def test_linear_updates_go_first_and_fold(names: tuple[str, ...]) -> None:
    rewritten = apply([BESIDE[name] for name in names])
    in_order = sorted(names, key=lambda name: name == "adapter")
    expected = reference(in_order, rewritten.delta())
    torch.testing.assert_close(run(rewritten), expected, rtol=1e-4, atol=1e-5)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(run(lowered), expected, rtol=1e-4, atol=1e-5)
    left = [insertion.pass_name for insertion in lowered.result.editor.insertions]
    assert left == [name for name in names if name == "adapter"]
    (order,) = rewritten.report["order"]
    assert [c["clause"].split("(")[0].split()[-1] for c in order["clauses"]] == in_order
    assert order["as_in_spec"] == (list(names) == in_order)


def test_the_order_matters() -> None:
    delta = apply([BESIDE["lora"], BESIDE["adapter"]]).delta()
    first, second = (reference(list(n), delta) for n in permutations(("lora", "adapter")))
    assert float((first - second).abs().max()) > 1e-3


def test_the_plan_tells_it() -> None:
    for names in permutations(("lora", "adapter")):
        plan = vr.plan("\n".join(BESIDE[n] for n in names) + "\n", vit())
        lines = [line for line in str(plan).splitlines() if line.startswith("order ")]
        at = {name: names.index(name) + 1 for name in names}
        why = "as in the spec"
        if names[0] == "adapter":
            why = "not as in the spec: linear updates, which fold into the weight, go first"
        shown = f"blocks[0].mlp.fc2: lora (line {at['lora']}), then adapter (line {at['adapter']})"
        assert lines == [f"order  {shown}; {why}"]
        assert plan.to_json()["order"][0]["as_in_spec"] == (names[0] == "lora")


def test_rows_that_do_not_meet_have_no_order() -> None:
    spec = (
        "insert adapter(hidden=2) at blocks[0].attn.q\ninsert lora(rank=2) at blocks[0].attn.{k}\n"
    )
    assert not vr.plan(spec, vit()).orders


@pytest.mark.parametrize("names", list(product(["adapter", "sparse"], ELSEWHERE)))
def test_both_orders_at_a_block_are_one_model(names: tuple[str, str]) -> None:
    """For the other passes see `test_composition`."""
    pair = [BESIDE[names[0]], ELSEWHERE[names[1]]]
    first, second = apply(pair), apply(pair[::-1])
    torch.testing.assert_close(run(second), run(first), rtol=1e-4, atol=1e-5)
    lowered = vr.lower(second)
    torch.testing.assert_close(run(lowered), run(first), rtol=1e-4, atol=1e-4)


def test_what_an_earlier_rewrite_left_counts_as_not_linear() -> None:
    """A model is rewritten once more: what is new folds all the same."""
    known = apply([BESIDE["sparse"]])
    again = fill(vr.apply(BESIDE["lora"] + "\n", known.module, example=torch.zeros(1, 3, 16, 16)))
    assert not vr.lower(again).result.editor.insertions
    torch.testing.assert_close(run(vr.lower(again)), run(again), rtol=1e-4, atol=1e-5)
