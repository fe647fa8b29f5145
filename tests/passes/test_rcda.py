"""Row-column attention against numbers from its authors' code."""

from __future__ import annotations

import torch
from vitrewrite.passes.rcda import RowColumnAttention

from tests.goldens import case

NAMES = ("q_x", "q_y", "k_x", "k_y", "v", "out")


def test_golden_output_and_gradients() -> None:
    golden = case("rcda")
    given = golden.tensors
    module = RowColumnAttention(32, golden.about["hyper"]["heads"])
    with torch.no_grad():
        for i, name in enumerate(NAMES):
            module.weight[i] = given[f"method.rcda.{name}.weight"]
            module.bias[i] = given[f"method.rcda.{name}.bias"]
    query, key, value = (
        given[f"input.{n}"].clone().requires_grad_() for n in ("query", "key", "value")
    )
    keys, values = (m.permute(1, 2, 0, 3).flatten(0, 1) for m in (key, value))
    y = module(query, keys, values, key.permute(0, 3, 1, 2))
    golden.close(y, "output")
    (y * given["probe"]).sum().backward()
    assert module.weight.grad is not None
    assert module.bias.grad is not None
    found = {"input.query": query.grad, "input.key": key.grad, "input.value": value.grad}
    for i, name in enumerate(NAMES):
        found[f"rcda.{name}.weight"] = module.weight.grad[i]
        found[f"rcda.{name}.bias"] = module.bias.grad[i]
    expected = {k: v for k, v in given.items() if k.startswith("grad.")}
    assert expected.keys() == {f"grad.{k}" for k in found}
    largest = max(float(v.abs().max()) for v in expected.values())
    for name, gradient in found.items():
        other = expected[f"grad.{name}"]
        assert gradient is not None
        allowed = 1e-3 * float(other.abs().max()) + 1e-6 * largest  # as the case states it
        assert float((gradient - other).abs().max()) <= allowed, name
