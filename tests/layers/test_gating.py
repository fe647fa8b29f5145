"""Gates of structure: drawn in training, hard in evaluation, exact in costs."""

from __future__ import annotations

import torch

from vitrewrite.layers.gating import StructureGates


def gates(logits: list[float]) -> StructureGates:
    """Gates with some logits."""
    made = StructureGates(len(logits))
    with torch.no_grad():
        made.logits.copy_(torch.tensor(logits))
    return made


def test_evaluation_opens_what_has_a_positive_logit() -> None:
    """0 itself is closed: the code of the authors asks for more than one half."""
    assert gates([1.5, 0.0, -0.1]).eval()().tolist() == [1, 0, 0]


def test_a_draw_opens_where_the_noise_leaves_the_logit_positive() -> None:
    """Uniform u opens a gate of logit a where logit(u) + a > 0; extremes stay finite."""
    made = gates([1.5, 1.5, 0.0, 0.0])
    given = torch.tensor([0.1, 0.9, 0.0, 1.0])
    assert made(given).tolist() == [0, 1, 0, 1]
    made(given).sum().backward()
    assert made.logits.grad is not None
    assert bool(made.logits.grad.isfinite().all())


def test_the_gradient_is_that_of_the_relaxed_draw() -> None:
    """d/da sigmoid((logit(u) + a) / T)."""
    made = gates([0.3])
    made.temperature = 0.5
    made(torch.tensor([0.4])).sum().backward()
    soft = torch.sigmoid((torch.tensor(0.4).logit() + 0.3) / 0.5)
    assert made.logits.grad is not None
    torch.testing.assert_close(made.logits.grad, (soft * (1 - soft) / 0.5).view(1))


def test_costs_are_exact_and_of_no_draw() -> None:
    """In training too; the gradient is that of sigmoid(sigmoid(a) - 1/2)."""
    made = gates([2.0, -2.0]).train()
    assert made.priced().tolist() == [1, 0]
    made.priced().sum().backward()
    p = torch.tensor([2.0, -2.0]).sigmoid()
    s = (p - 0.5).sigmoid()
    assert made.logits.grad is not None
    torch.testing.assert_close(made.logits.grad, s * (1 - s) * p * (1 - p))
