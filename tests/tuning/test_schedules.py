"""Learning rates by step against the formulas, and optimisers by name."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vitrewrite as vr
from vitrewrite.language.settings import OPTIMISERS, Settings
from vitrewrite.tuning import optimisation
from vitrewrite.tuning.procedure import ParameterGroup, Phase
from vitrewrite.tuning.schedules import Rates


def run_of(*groups: ParameterGroup, **settings: Any) -> Any:
    """What a schedule sees of a run of 20 steps, 4 to an epoch."""
    plain = SimpleNamespace(spec=vr.parse("train head\n"))
    return SimpleNamespace(
        module=torch.nn.Linear(2, 2),
        groups=list(groups),
        settings=Settings(**settings),
        phase=Phase(),
        per_epoch=4,
        steps=20,
        step=0,
        memory={},
        rewritten=SimpleNamespace(result=plain),
    )


def rates_of(run: Any, name: str = "weights", scores: tuple[float, ...] = ()) -> list[float]:
    optimiser = optimisation.create(run)
    rates, found = Rates(run, optimiser), []
    for step in range(run.steps):
        run.step = step
        if step % run.per_epoch == 0 and step and scores:
            rates.evaluated(scores[step // run.per_epoch - 1])
        rates.set()
        found.append(optimisation.rates(optimiser)[name])
    return found


def cosine(t: int) -> float:
    return 0.1 + 0.9 * (1 + math.cos(math.pi * t / 20)) / 2


def test_cosine_behind_a_warm_up_from_a_value() -> None:
    run = run_of(lr=1.0, min_lr=0.1, warmup_epochs=1, warmup_lr=0.2)
    expected = [0.2 + 0.8 * t / 4 for t in range(4)] + [cosine(t) for t in range(4, 20)]
    assert rates_of(run) == pytest.approx(expected)


def test_steps() -> None:
    run = run_of(lr=1.0, schedule="step", decay_epochs=2, decay_rate=0.5)
    assert rates_of(run) == pytest.approx([0.5 ** (t // 8) for t in range(20)])


def test_a_polynomial() -> None:
    run = run_of(lr=1.0, schedule="poly", min_lr=0.2, power=0.9)
    assert rates_of(run) == pytest.approx([0.2 + 0.8 * (1 - t / 20) ** 0.9 for t in range(20)])


def test_a_plateau_goes_down_where_evaluations_are_no_better() -> None:
    run = run_of(lr=1.0, schedule="plateau", decay_rate=0.1, patience=1, min_lr=0.05)
    scores = (0.5, 0.6, 0.6, 0.4)  # the second one that is no better is one too many
    assert rates_of(run, scores=scores) == pytest.approx([1.0] * 16 + [0.1] * 4)
    assert run.memory["tuning.plateau"]["factor_now"] == pytest.approx(0.1)
    optimiser = optimisation.create(run)
    again = Rates(run, optimiser)  # as after an interruption
    again.set()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_rate_for_another_batch_and_groups_of_their_own() -> None:
    gates = ParameterGroup("gates", ("bias",), lr=0.5, schedule="constant")
    run = run_of(gates, lr=1.0, lr_batch=256, batch=64, schedule="poly", power=1.0)
    assert rates_of(run, "gates") == pytest.approx([0.125] * 20)
    assert rates_of(run) == pytest.approx([0.25 * (1 - t / 20) for t in range(20)])


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_a_rate_below_the_last_one_stays(schedule: str) -> None:
    gates = ParameterGroup("gates", ("bias",), lr=0.05)
    run = run_of(gates, lr=1.0, min_lr=0.2, schedule=schedule)
    assert rates_of(run, "gates") == pytest.approx([0.05] * 20)


def test_a_plateau_does_not_lift_a_warm_up() -> None:
    run = run_of(lr=1.0, schedule="plateau", min_lr=0.5, warmup_epochs=1)
    assert rates_of(run, scores=(0.5,) * 4)[:4] == pytest.approx([0.0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_moves_what_is_trained(name: str) -> None:
    run = run_of(optimiser=name, lr=0.1)
    before = run.module.weight.detach().clone()
    optimiser = optimisation.create(run)
    for _ in range(2):
        Rates(run, optimiser).set()
        run.step += 1
        optimiser.zero_grad()
        run.module(torch.ones(3, 2)).square().sum().backward()
        optimiser.step()
    assert not torch.equal(run.module.weight, before)


def test_sgd_is_plain_and_nesterov_is_not() -> None:
    for name, nesterov in (("sgd", False), ("nesterov", True)):
        made: Any = optimisation.create(run_of(optimiser=name, momentum=0.7))
        assert (made.defaults["nesterov"], made.defaults["momentum"]) == (nesterov, 0.7)
