"""Runs tests against mutants in processes that have the big libraries loaded already."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .draw import Mutant

LIBRARIES = ("torch", "timm", "transformers", "torchvision", "pytest", "hypothesis", "networkx")


def preload() -> None:
    """Imports what every test needs, before processes are forked."""
    for name in (*LIBRARIES, "torch._dynamo", "torch.fx", "timm.models", "transformers.models.vit"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def imports(root: Path, mutant: Mutant, seconds: float = 60) -> bool:
    """Whether the module of a mutant, which stands in `root`, can be imported."""
    name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    name = f"vitrewrite.{name}" if name.startswith("passes") else name

    def run(_: Path) -> int:
        importlib.import_module("vitrewrite")
        importlib.import_module(name)
        return 0

    return _forked(root, run, seconds)[0] == 0


def killer(root: Path, tests: Mapping[str, float], seconds: float, scratch: Path) -> str:
    """The test that fails, `hangs` if some take many times as long as they did, or nothing.

    Args:
        root: a tree with the mutant in it.
        tests: in the order in which they run, with how long they took without it.
        seconds: for all of them; what is left then does not run.
        scratch: a folder for what the processes say.
    """
    ends, names = time.monotonic() + seconds, list(tests)
    said = scratch / "said.json"
    for start, size in ((0, 20), (20, 40), (60, 80), (140, 160), (300, 10_000)):
        chunk = names[start : start + size]
        if not chunk or time.monotonic() > ends:
            return ""
        said.unlink(missing_ok=True)
        limit = 60 + 4 * sum(tests[name] for name in chunk)
        code, late = _forked(root, _pytest(chunk, said), min(limit, ends - time.monotonic()))
        if late:
            return "hangs" if time.monotonic() < ends else ""
        if code not in (0, 5):
            return str(json.loads(said.read_text())) if said.exists() else f"exit status {code}"
    return ""


def _pytest(tests: Sequence[str], said: Path) -> Callable[[Path], int]:
    def run(root: Path) -> int:
        import pytest

        class Said:
            @staticmethod
            def pytest_runtest_logreport(report: pytest.TestReport) -> None:
                if report.failed:
                    said.write_text(json.dumps(report.nodeid))

            @staticmethod
            def pytest_collectreport(report: pytest.CollectReport) -> None:
                if report.failed:
                    said.write_text(json.dumps(f"collecting {report.nodeid}"))

        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain"]
        return int(pytest.main([*options, "--rootdir", str(root), *tests], plugins=[Said()]))

    return run


def _forked(root: Path, run: Callable[[Path], int], seconds: float) -> tuple[int, bool]:
    """Exit status of a forked process in `root`, and whether it ran out of time."""
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.dont_write_bytecode = True
        os.chdir(root)
        sys.path.insert(0, str(root))
        sys.path_importer_cache.clear()
        for name in [n for n in sys.modules if n == "tests" or n.startswith("tests.")]:
            del sys.modules[name]
        sink = io.StringIO()
        code = 70
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                code = run(root)
        except BaseException:  # whatever a mutant does
            (root / "crash.txt").write_text(traceback.format_exc() + sink.getvalue())
            code = 71
        os._exit(code)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1, True
