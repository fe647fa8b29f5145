"""Row-column attention against numbers from its authors' code."""

from __future__ import annotations

import torch
from vitrewrite.passes.rcda import RowColumnAttention

from tests.goldens import case


def test_golden_output_and_gradients() -> None:
    golden = case("rcda")
    given = golden.tensors
    module = RowColumnAttention(32, golden.about["hyper"]["heads"])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(given[f"method.rcda.{name}"])
    query, key, value = (
        given[f"input.{n}"].clone().requires_grad_() for n in ("query", "key", "value")
    )
    keys, values = (m.permute(1, 2, 0, 3).flatten(0, 1) for m in (key, value))
    y = module(query, keys, values, key.permute(0, 3, 1, 2))
    golden.close(y, "output")
    (y * given["probe"]).sum().backward()
    found = {"input.query": query.grad, "input.key": key.grad, "input.value": value.grad}
    found |= {f"rcda.{name}": p.grad for name, p in module.named_parameters()}
    expected = {k: v for k, v in given.items() if k.startswith("grad.")}
    assert expected.keys() == {f"grad.{k}" for k in found}
    largest = max(float(v.abs().max()) for v in expected.values())
    for name, gradient in found.items():
        other = expected[f"grad.{name}"]
        assert gradient is not None
        allowed = 1e-3 * float(other.abs().max()) + 1e-6 * largest  # as the case states it
        assert float((gradient - other).abs().max()) <= allowed, name
