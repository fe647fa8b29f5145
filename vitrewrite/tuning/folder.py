"""The folder of a run: which run it is, its checkpoints, and at last what `apply` writes.

The checkpoints lie in the folder from the first step on, so it is not swapped into place at the
end. It is a folder of vitrewrite, for `verify` and `lower`, as soon as it has its `lock.json`,
which is written last.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..data import Data
from ..disk import LOCK, MADE_BY, RUN, replacing_file, reported
from ..errors import FileError, shown
from ..files import emit_into, fingerprint, json_text
from ..language.model import Tune
from ..reading import read_json
from ..rewrite.rewritten import Rewritten
from .settings import Settings

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


def identity(rewritten: Rewritten, data: Data, settings: Settings, seed: int) -> dict[str, Any]:
    """What a run that goes on must share with the one that was interrupted."""
    spec = rewritten.spec
    bare = dataclasses.replace(spec, tune=Tune((), spec.tune.span))
    return {
        "spec": str(bare),
        "spec_hash": spec.hash,
        "model": rewritten.model_name,
        "model_options": {k: str(v) for k, v in rewritten.model_options.items()},
        "weights": rewritten.weights,
        "base weights": fingerprint(rewritten),
        "data": data.name,
        "images": data.fingerprint,
        "seed": seed,
        "tune": settings.binding(),
        "allocations": {k: a.digest for k, a in rewritten.result.allocations.items()},
    }


class RunFolder:
    """The folder `--out` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / METRICS
        self.checkpoints = path / CHECKPOINTS

    def check(self, *, resume: bool) -> None:
        """Whether a run can start, or go on, in the folder; read only.

        Raises:
            FileError: VR730 if it holds something, VR731 if there is nothing to resume.
        """
        if resume:
            self._known()
            return
        with reported(self.path):
            if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
                return
        suggestion = "give another folder with --out"
        what = "something else"
        if (self.path / RUN).is_file():
            finished = (self.path / LOCK).is_file()
            what = "a finished run" if finished else "a run that was interrupted"
            if not finished:
                suggestion = "give --resume to go on with it, or another folder with --out"
        message = f"'{self.path}' holds {what}, and is left alone"
        raise FileError("VR730", message, suggestion=suggestion)

    def open(self, wanted: dict[str, Any], *, resume: bool) -> None:
        """Makes the folder of a new run, or checks that an old one is the same run.

        Raises:
            FileError: as `check`; VR732 if the run in the folder is another; VR702.
        """
        self.check(resume=resume)
        if resume:
            found = self._known()
            notes = list(_differences(found, json.loads(json.dumps(wanted))))
            if notes:
                message = f"the run in '{self.path}' is another one, and cannot go on as this"
                raise FileError("VR732", message, notes=notes)
            return
        with reported(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        with replacing_file(self.path / RUN) as temporary:
            record = {"made_by": MADE_BY, "vitrewrite": __version__, "run": wanted}
            temporary.write_text(json_text(record), encoding="utf-8")

    def _known(self) -> dict[str, Any]:
        """What the run in the folder is."""
        try:
            record = read_json(self.path / RUN)
            return dict(record["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"nothing to resume in '{self.path}'"
            raise FileError("VR731", message, suggestion="leave out --resume") from error

    def finish(self, rewritten: Rewritten) -> None:
        """Writes what `apply` writes, beside the checkpoints.

        Raises:
            FileError: VR702 if it cannot be written; the checkpoints are still there.
        """
        for left in self.path.glob(".files.*"):  # by a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        emit_into(rewritten, self.path)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now or key == "spec_hash":
            continue
        name = f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{key}.")
        elif key == "spec":
            yield _first_line_apart(str(before), str(now))
        else:
            yield f"{name} was {shown(before)}, is {shown(now)}"


def _first_line_apart(before: str, now: str) -> str:
    old, new = ([*text.splitlines(), "nothing"] for text in (before, now))
    first, second = next((a, b) for a, b in zip(old, new, strict=False) if a != b)
    return f"the spec had {shown(first)}, has {shown(second)}"
