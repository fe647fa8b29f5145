"""Carries out a benchmark."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..profiling.timing import WARM_UP, Step, seconds, summary, timed
from ..rewrite.rewritten import Rewritten
from ..sensitivity.calls import wanted_by
from ..verification.numeric import randomised, sample
from .blocks import BlockMemory
from .contenders import Contender, compile_apart, contenders
from .layer import layer_steps
from .memory import peak_bytes, saved_bytes
from .profiling import profiling
from .steps import Forward, Tensors, TrainingStep, training_macs, training_steps
from .tuning import timed_runs, tuning

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Attributes:
        batch: images per step.
        rounds: timed rounds.
        threads: of the CPU; by default torch's own number.
        dtype: of weights and inputs: `float32`, `bfloat16` or `float16`.
        train: whether to measure training steps too.
        compile: whether to measure torch.compile's forms too.
        profiling: whether to measure profiling too; by default if the spec has `sensitive(...)`.
        tuning: of how many steps runs of `tune` are measured too, on digits; 0 is none.
    """

    batch: int = 8
    rounds: int = 7
    threads: int | None = None
    dtype: str = "float32"
    train: bool = True
    compile: bool = False
    profiling: bool | None = None
    tuning: int = 0


def run(
    rewritten: Rewritten,
    settings: BenchSettings,
    device: str = "cpu",
    progress: Progress = lambda what, share: None,
) -> dict[str, Any]:
    """Measures time, memory and arithmetic of base, rewritten and lowered model.

    What the passes added is random, so that no branch is zero.

    Args:
        rewritten: the model.
        settings: how to measure.
        device: where to run it.
        progress: told what is measured, and which share of the whole is done.

    Raises:
        UsageError: VR906 if a step does not run on this device in this dtype.
    """
    progress("preparing", 0.0)
    with _threads(settings.threads):
        twin = randomised(rewritten)
        return _Bench(twin, settings, torch.device(device), progress).measured()


def run_by_block(
    rewritten: Rewritten,
    settings: BenchSettings,
    device: str = "cpu",
    progress: Progress = lambda what, share: None,
) -> dict[str, Any]:
    """Measures the memory of training with what the spec does in one block, for each of them.

    Args and errors are those of `run`; of the settings `batch`, `threads` and `dtype` count.

    Raises:
        UsageError: VR574 if no clause of the spec is about blocks.
    """
    ticks = 0

    def tick(what: str) -> None:
        nonlocal ticks
        progress(what, min(1.0, ticks / taken.count))
        ticks += 1

    where, dtype = torch.device(device), getattr(torch, settings.dtype)
    inputs = tuple(v.to(where, dtype) for v in sample(rewritten, settings.batch))
    taken = BlockMemory(rewritten, where, dtype, inputs, tick)
    with _threads(settings.threads), _running("training", where, settings):
        return {**_about(rewritten, settings, where), "by_block": taken.measured()}


class _Bench:
    """One benchmark: its models, its inputs, and how far it is."""

    def __init__(
        self,
        rewritten: Rewritten,
        settings: BenchSettings,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.rewritten, self.settings, self.device = rewritten, settings, device
        self.progress, self.ticks = progress, 0
        dtype = getattr(torch, settings.dtype)
        with self._running("preparing"):
            self.models = contenders(rewritten, device, dtype, compile=settings.compile)
            self.inputs: Tensors = tuple(
                v.to(device, dtype) for v in sample(rewritten, settings.batch)
            )
            if settings.compile:  # what the compiler does once is not the first model's cost
                compile_apart(lambda x: x.sin() + 1)(self.inputs[0])
        # Of each model a first step, warm-up and rounds; three times the rounds of the layer.
        each = 1 + WARM_UP + settings.rounds
        kinds = 1 + settings.train
        self.total = each * len(self.models) * kinds + 2 * (WARM_UP + 3 * settings.rounds)
        self.profiling = settings.profiling
        if self.profiling is None:
            self.profiling = bool(wanted_by(rewritten.spec))
        self.total += 3 * each if self.profiling else 0
        self.total += 2 * (1 + settings.rounds) if settings.tuning else 0

    def measured(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        measures, settings = self.rewritten.measures, self.settings
        return {
            **_about(self.rewritten, settings, self.device),
            "forward": self._forward(),
            "training": self._training() if settings.train else {},
            "layer_forward_backward": self._layer(),
            "profiling": self._profiling() if self.profiling else {},
            "tuning": self._tuning() if settings.tuning else {},
            "macs": {c.name: c.macs for c in self.models if not c.compiled},
            "tokens": list(measures.tokens),
        }

    def _forward(self) -> dict[str, Any]:
        steps = {c.name: Forward(c, self.inputs) for c in self.models}
        for contender in self.models:
            contender.module.eval()
        facts = {
            c.name: {"macs": c.macs, **self._facts("forward", c, steps[c.name])}
            for c in self.models
        }
        return self._compared("forward", steps, facts)

    def _training(self) -> dict[str, Any]:
        with self._running("training"):
            steps = training_steps(self.models, self.inputs)
        counts = {
            s.contender.module: training_macs(s.contender.module, self.rewritten.result.example)
            for s in steps.values()
        }
        facts = {}
        for name, step in steps.items():
            contender = step.contender
            contender.module.train()
            facts[name] = {
                "macs": counts[contender.module],
                "trained": sum(p.numel() for p in contender.trained),
                **self._facts("training", contender, step),
                "saved_bytes": saved_bytes(step.loss, step.living),
            }
        return self._compared("training", steps, facts)

    def _facts(
        self, what: str, contender: Contender, step: Forward | TrainingStep
    ) -> dict[str, Any]:
        """Compile time, which is that of the first step, and memory."""
        self._tick(f"{what}: memory of {contender.name}")
        with self._running(f"{what} of {contender.name}"):
            first = seconds(step, self.device)
            peak = peak_bytes(step, self.device)
        return {"peak_bytes": peak, "compile_s": first if contender.compiled else None}

    def _layer(self) -> dict[str, Any]:
        module = next(c.module for c in self.models if c.name == "rewritten").eval()
        steps = layer_steps(self.rewritten, module, self.settings.batch, self.inputs[0])
        return self._compared("layer", steps, {}, 3 * self.settings.rounds)

    def _profiling(self) -> dict[str, Any]:
        with self._running("profiling"):
            found = profiling(self.rewritten, self.inputs[0])
        if found is None:
            return {}
        peaks = {}
        for name, step in found.steps.items():
            self._tick(f"profiling: memory of {name}")
            with self._running(f"profiling {name}"):
                peaks[name] = peak_bytes(step, self.device)
        plain, facts = peaks["base"], {}
        for name, peak in peaks.items():
            facts[name] = {"peak_bytes": peak, "copy_bytes": found.copy_bytes}
            if peak is not None and plain is not None and name != "base":
                facts[name]["above_base_bytes"] = peak - plain
        return self._compared("profiling", found.steps, facts)

    def _tuning(self) -> dict[str, Any]:
        with self._running("tuning"):
            found = tuning(self.rewritten, self.settings.tuning, self.device)
            if found is None:
                return {}
            tick = partial(self._tick, "tuning: rounds")
            times = timed_runs(found, self.settings.rounds, self.device, tick)
        return {name: summary(each, times["base"]) for name, each in times.items()}

    def _compared(
        self,
        what: str,
        steps: Mapping[str, Step],
        facts: Mapping[str, Mapping[str, Any]],
        rounds: int = 0,
    ) -> dict[str, Any]:
        """Timings of steps with what else is known of them; ratios are to `base`."""
        rounds = rounds or self.settings.rounds
        times = timed(steps, rounds, self.device, lambda: self._tick(f"{what}: rounds"))
        result = {}
        for name, measured in times.items():
            known = dict(facts.get(name, {}))
            base = facts.get("base", {}).get("macs")
            if base:
                known["macs_ratio"] = known["macs"] / base
            result[name] = {**summary(measured, times.get("base")), **known}
        return result

    def _tick(self, what: str) -> None:
        self.progress(what, min(1.0, self.ticks / self.total))
        self.ticks += 1

    def _running(self, what: str) -> AbstractContextManager[None]:
        return _running(what, self.device, self.settings)


@contextmanager
def _running(what: str, device: torch.device, settings: BenchSettings) -> Iterator[None]:
    """What the first run of a step raises, as an error of ours."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            "VR906",
            f"{what} does not run on {device} in {settings.dtype} with batch "
            f"{settings.batch}: {reason}",
            suggestion="try a smaller --batch, or another --dtype",
        ) from error


def _about(rewritten: Rewritten, settings: BenchSettings, device: torch.device) -> dict[str, Any]:
    """What was measured, and where."""
    return {
        "spec": rewritten.spec.name,
        "model": rewritten.model_name,
        "batch": settings.batch,
        "rounds": settings.rounds,
        "dtype": settings.dtype,
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def device_name(device: torch.device) -> str:
    """The processor's own name, as far as the system tells."""
    module = torch.get_device_module(device)
    if hasattr(module, "get_device_name"):
        return str(module.get_device_name(device))
    info = Path("/proc/cpuinfo")
    if device.type == "cpu" and info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
