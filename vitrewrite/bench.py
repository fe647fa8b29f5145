"""`vitrewrite bench`: base, rewritten and lowered timed side by side.

Rounds are interleaved and start with a warm-up, so that a busy machine slows all alike; medians
are of ratios within a round.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .cli.common import Request
from .report.text import table as columns
from .rewrite.apply import lower
from .verification.numeric import randomised, sample


def run(request: Request, *, batch: int, rounds: int) -> dict[str, Any]:
    """Times the forward of each model, and forward plus backward of each adapted layer.

    Args:
        request: what to rewrite; `device` says where to time it.
        batch: images per step.
        rounds: timed rounds.
    """
    device = torch.device(request.device)
    rewritten = randomised(request.apply())
    lowered = lower(rewritten)
    models = {
        "base": rewritten.base.to(device).eval(),
        "rewritten": rewritten.module.to(device).eval(),
        "lowered": lowered.module.to(device).eval(),
    }
    inputs = tuple(v.to(device) for v in sample(rewritten, batch))

    def forward(model: nn.Module) -> Callable[[], Any]:
        def step() -> None:
            with torch.no_grad():
                model(*inputs)

        return step

    steps = {name: forward(model) for name, model in models.items()}
    layers = _layer_steps(rewritten, batch, device)
    return {
        "spec": request.spec.name,
        "model": rewritten.model_name,
        "batch": batch,
        "rounds": rounds,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "forward": _timed(steps, rounds, device),
        "layer_forward_backward": _timed(layers, rounds * 3, device) if layers else {},
        "macs": {
            "base": rewritten.measures.macs_base,
            "rewritten": rewritten.measures.macs,
            "lowered": lowered.measures.macs,
        },
    }


def _layer_steps(rewritten: Any, batch: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """The first adapted linear alone, and with what was inserted: forward and backward."""
    insertions = rewritten.result.editor.insertions
    if not insertions:
        return {}
    site = insertions[0].site.parts[0]
    layer = rewritten.module.get_submodule(site.weight.removesuffix(".weight"))
    branch = rewritten.module.get_submodule(insertions[0].path)
    tokens = rewritten.measures.tokens[0] or 1
    x = torch.randn(batch, tokens, site.in_features, device=device, requires_grad=True)
    probe = torch.randn_like(layer(x))

    def base() -> None:
        torch.autograd.backward(layer(x), probe)

    def adapted() -> None:
        torch.autograd.backward(branch(x, layer(x)), probe)

    return {"base": base, "rewritten": adapted}


def _timed(
    steps: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            seconds = _seconds(step, device)
            if number >= 2:  # the first rounds warm up
                times[name].append(seconds)
    first = next(iter(steps))
    result = {}
    for name, measured in times.items():
        ratios = [a / b for a, b in zip(measured, times[first], strict=True)]
        result[name] = {
            "median_ms": 1000 * statistics.median(measured),
            "min_ms": 1000 * min(measured),
            "max_ms": 1000 * max(measured),
            "ratio": statistics.median(ratios),
        }
    return result


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(result: Mapping[str, Any]) -> str:
    """The result as text."""
    rows = [("", "model", "median ms", "min", "max", "of base", "MACs")]
    for what in ("forward", "layer_forward_backward"):
        for i, (name, t) in enumerate(result[what].items()):
            macs = result["macs"].get(name) if what == "forward" else None
            rows.append(
                (
                    what.replace("_", " ") if i == 0 else "",
                    name,
                    f"{t['median_ms']:.1f}",
                    f"{t['min_ms']:.1f}",
                    f"{t['max_ms']:.1f}",
                    f"{t['ratio']:.3f}",
                    f"{macs / 1e9:.3f} G" if macs else "",
                )
            )
    head = (
        f"{result['spec']} on {result['model']}: batch {result['batch']}, {result['device']}, "
        f"{result['threads']} threads, {result['rounds']} interleaved rounds"
    )
    return "\n".join([head, "", *columns(rows)])
