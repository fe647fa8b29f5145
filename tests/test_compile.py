"""torch.compile and torch.export of rewritten models, and the checks that say when they fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.verification import compiled
from vitrewrite.verification.check import Check

from .test_bench import SPEC, swin, tiny

CHECKS: dict[str, Callable[[Rewritten], Check]] = {
    "export": compiled.exported,
    "one graph": lambda rewritten: compiled.compiled(rewritten, "eager"),
    "training": compiled.compiled_training,
    "recompilation": compiled.recompiled,
}


@cache
def rewritten(kind: str) -> Rewritten:
    build, spec = {
        "vit": (tiny, SPEC.format("*")),
        "swin": (swin, SPEC.format("*")),
        "nothing trained": (tiny, "freeze head\n"),
    }[kind]
    return vr.apply(spec, build(drop_path_rate=0.2) if build is tiny else build())


@pytest.mark.parametrize("kind", ["vit", "swin", "nothing trained"])
@pytest.mark.parametrize("check", CHECKS)
def test_rewritten_models_pass(kind: str, check: str) -> None:
    result = CHECKS[check](rewritten(kind))
    assert result.holds, result


def test_lowered_models_pass() -> None:
    lowered = vr.lower(rewritten("vit"))
    for check in CHECKS.values():
        result = check(lowered)
        assert result.holds, result


def test_what_the_checks_measure() -> None:
    assert CHECKS["recompilation"](rewritten("vit")).measured == compiled.LEAST
    assert CHECKS["export"](rewritten("vit")).measured < 1e-6
    assert CHECKS["training"](rewritten("vit")).measured == "gradients too"
    assert CHECKS["training"](rewritten("nothing trained")).measured == "nothing is trained"


def test_no_model_makes_fewer_graphs_than_torch_itself() -> None:
    """What `recompiled` takes for granted when it does not count the base's graphs."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    assert compiled.graphs(plain, rewritten("vit")) == compiled.LEAST


# -- models that fail -----------------------------------------------------------------------------


class Fixed(nn.Module):
    """Takes two images only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


class Branching(nn.Module):
    """Looks at a value, always or in training."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (self.always or self.training) and x.sum() > 0:
            x = x + 1
        return x * self.scale


class Sized(nn.Module):
    """Another program for more than two images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] > 2 else x


class Flickering(nn.Module):
    """Another result in a compiler than outside."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale * (2 if torch.compiler.is_compiling() else 1)


def with_module(module: nn.Module) -> Rewritten:
    return replace(rewritten("vit"), module=module)


@pytest.mark.parametrize(
    ("module", "failing"),
    [
        (Fixed(), {"export", "recompilation"}),
        (Branching(always=True), {"export", "one graph", "training", "recompilation"}),
        (Branching(always=False), {"training", "recompilation"}),
        (Sized(), {"export", "recompilation"}),
        (Flickering(), {"export", "one graph"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_fail(module: nn.Module, failing: set[str]) -> None:
    results = {name: check(with_module(module)) for name, check in CHECKS.items()}
    assert {name for name, result in results.items() if not result.holds} == failing, results
    assert all("\n" not in str(result.measured) for result in results.values())


def test_recompilation_says_how_often_and_what_the_base_needs() -> None:
    result = compiled.recompiled(with_module(Sized()))
    assert (result.measured, result.note) == (compiled.LEAST + 1, f"the base: {compiled.LEAST}")
    assert compiled.recompiled(replace(with_module(Sized()), base=Sized())).holds


def test_gradients_are_compared() -> None:
    (good,) = compiled.compiled_gradients(rewritten("vit"), "aot_eager")
    assert good.holds
    assert good.measured < 1e-5
    (bad,) = compiled.compiled_gradients(with_module(Flickering()), "eager")
    assert not bad.holds
    assert bad.measured == pytest.approx(3.0)  # of the square of twice the output
    assert not list(compiled.compiled_gradients(rewritten("nothing trained"), "eager"))
    assert all(p.grad is None for p in rewritten("vit").module.parameters())


# -- real compilers -------------------------------------------------------------------------------

NO_COMPILER = not any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def agrees(device: str, training: bool) -> None:
    """Inductor's outputs, and gradients, are those of eager."""
    module: Any = vr.apply(SPEC.format("*"), tiny(depth=1)).module.to(device).eval()
    torch.compiler.reset()
    made = torch.compile(module, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 16, 16, device=device)
        found = []
        for call in (module, made):
            module.zero_grad()
            with torch.set_grad_enabled(training):
                output = call(x)
            gradients: list[Any] = []
            if training:
                (output**2).sum().backward()
                gradients = [p.grad for p in module.parameters() if p.requires_grad]
            found.append((output, *gradients))
        for plain, compiled_ in zip(*found, strict=True):
            torch.testing.assert_close(plain, compiled_, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_inductor_on_the_cpu(training: bool) -> None:
    agrees("cpu", training)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("default")
def test_inductor_on_a_gpu() -> None:
    agrees("cuda", training=True)
