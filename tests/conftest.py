"""Settings for all tests: hypothesis profiles, threads, the warnings that libraries raise."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from tests.slow import SLOW
from vitrewrite.verification.check import Check

gc.disable()  # until tests are collected: hardly any of what they import is garbage

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "ci",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=_CHECKS,
    phases=[Phase.explicit, Phase.generate],  # shrinking can take minutes: `make fuzz` does it
)
settings.register_profile(
    "fuzz", max_examples=500, deadline=None, suppress_health_check=_CHECKS, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

if not torch.accelerator.is_available():
    # Else each call keeps the stack that it comes from, for a device that may yet be there.
    torch.manual_seed = torch.default_generator.manual_seed


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that take longest."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is there to stay is not searched for garbage: that takes a second in each search.

    What tests make is searched when there is more of it than Python would wait for: of all the time
    a seventh went into that.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def pytest_unconfigure() -> None:
    """Else libraries complain at the exit about objects that are left."""
    gc.unfreeze()


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` neither exports nor compiles, seconds a time: for tests of something else."""
    monkeypatch.setattr("vitrewrite.verification.checks._graphs", lambda *_, **__: ())


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` does not run a folder's source in a process of its own, which imports torch."""
    untried = Check("model.py runs alone", None, "not tried")
    monkeypatch.setattr("vitrewrite.verification.folder._clean_interpreter", lambda *_: untried)
