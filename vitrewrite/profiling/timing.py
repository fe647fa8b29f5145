"""Seconds of steps that take turns, and what they say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]

WARM_UP = 2
"""Rounds before those that count."""


def seconds(step: Step, device: torch.device) -> float:
    """How long one step takes, until the device is done."""
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(
    steps: Mapping[str, Step], rounds: int, device: torch.device, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each step in each round.

    Every step runs once per round, so that a machine that gets busy slows all alike; who comes
    first changes from round to round.

    Args:
        steps: what to run, by name.
        rounds: how many rounds count.
        device: where they run.
        tick: called after every step.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        first = number % len(names) if names else 0
        for name in (*names[first:], *names[:first]):
            measured = seconds(steps[name], device)
            if number >= WARM_UP:
                times[name].append(measured)
            tick()
    return times


def summary(times: list[float], base: list[float] | None) -> dict[str, float]:
    """Median and spread in ms, and of the ratio to the base within a round, if there is one."""
    found = {f"{key}_ms": value for key, value in spread([1000 * t for t in times]).items()}
    if base is None:
        return found
    ratios = spread([a / b for a, b in zip(times, base, strict=True)])
    return {**found, "ratio": ratios.pop("median"), **{f"ratio_{k}": v for k, v in ratios.items()}}


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest, largest, and the quartiles."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {
        "median": statistics.median(values),
        "min": min(values), "low_quartile": low, "high_quartile": high, "max": max(values),
    }  # fmt: skip
