"""SETR-PUP against numbers from MMSegmentation and from the authors' code, and in use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.goldens import Case, case
from vitrewrite.language.settings import Settings
from vitrewrite.tasks import Dense

HEADS = {"setr-pup": "mmseg", "setr-pup-authors": "authors"}


def rewritten_of(golden: Case) -> Any:
    """The case's base with its heads, on its weights."""
    options = f"classes=3, width=12, taps=[0, 1, 2, 3], aux={HEADS[golden.name]}"
    made = vr.apply(f"replace head with setr({options})\ntrain every parameter\n", golden.base())
    prefix = "method.head."
    given = {k.removeprefix(prefix): v for k, v in golden.tensors.items() if k.startswith(prefix)}
    (heads,) = made.inserted("setr")
    missing, extra = heads.load_state_dict(given, strict=False)
    assert not extra
    assert all("num_batches" in name for name in missing)
    return made


def losses(made: Any, output: Any, labels: torch.Tensor) -> list[torch.Tensor]:
    """The task's loss and, as training adds them, those of the other heads."""
    run: Any = SimpleNamespace(task=Dense(3), settings=Settings())
    (method,) = made.result.methods.values()
    terms = method.procedure().terms(run, SimpleNamespace(labels=labels), output)
    assert all(name.startswith("aux.") for name in terms)
    return [run.task.loss(output, labels), *terms.values()]


@pytest.mark.parametrize("name", HEADS)
def test_golden_outputs_losses_and_gradients(name: str) -> None:
    golden = case(name)
    given = golden.tensors
    made = rewritten_of(golden)
    module = made.module
    golden.close(module.eval()(given["input"]), "output")
    output = module.train()(given["input"])
    golden.close(output[0], "output_train")
    for i, each in enumerate(output[1:]):
        if f"aux_train.{i}" in given:
            golden.close(each, f"aux_train.{i}")
    found = losses(made, output, given["labels"])
    factors = torch.tensor([1.0, *(0.4 for _ in found[1:])])
    torch.testing.assert_close(torch.stack(found), given["loss_terms"] * factors)
    torch.stack(found).sum().backward()
    noise = golden.about.get("rounding_noise_gradients", ())
    names = {k.removeprefix("grad."): v for k, v in given.items() if k.startswith("grad.")}
    gradients = {
        n if n.startswith("head.") else f"base.{n}": p.grad for n, p in module.named_parameters()
    }
    assert names.keys() <= gradients.keys()
    assert {n for n in gradients if n.startswith("head.")} <= names.keys()
    largest = max(float(v.abs().max()) for v in names.values())
    for key, expected in names.items():
        bound = 1e-5 * largest
        if f"grad.{key}" not in noise:
            bound = 1e-3 * float(expected.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(
            gradients[key], expected, rtol=0, atol=bound, msg=lambda m, k=key: f"{k}: {m}"
        )
    for key, expected in given.items():
        if key.startswith("after_step."):
            buffer = module.get_buffer(key.removeprefix("after_step."))
            torch.testing.assert_close(buffer, expected)
