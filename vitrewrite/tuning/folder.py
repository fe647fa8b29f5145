"""The folder of a run: which run it is, its checkpoints, and at last what `apply` writes.

The checkpoints lie in the folder from the first step on, so it is not swapped into place at the
end. It is a folder of vitrewrite, for `verify` and `lower`, as soon as it has its `lock.json`,
which is written last and answers for `tune.json` and `metrics.jsonl` too. Until then `tune.json`
has a hash of itself, and each checkpoint those of its tensors and of the metrics so far: they grow.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy.fingerprint import fingerprint_of
from ..data import Data
from ..disk import (
    LOCK,
    MADE_BY,
    RUN,
    WORKPLACE,
    check_name,
    is_left,
    replacing_file,
    reported,
    workplace,
)
from ..errors import FileError
from ..folder.identity import fingerprint
from ..folder.lock import Folder
from ..folder.writing import emit_into
from ..language.model import Tune
from ..language.settings import Settings
from ..rewrite.rewritten import Rewritten
from ..storage.hashing import digest_of, read_bytes, sealed, unsealed
from ..text import first_line, shown
from ..version import __version__

if TYPE_CHECKING:
    from .teachers import Teacher

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


def identity(
    rewritten: Rewritten, data: Data, settings: Settings, seed: int, teacher: Teacher | None
) -> dict[str, Any]:
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
        "teacher weights": teacher.digest if teacher else "",
        "factors": ", ".join(map(str, spec.tune.factors)),
        "allocations": {k: a.digest for k, a in rewritten.result.allocations.items()},
        **rewritten.result.chosen,
        **({"delta": fingerprint_of(rewritten.delta())} if rewritten.trained else {}),
    }


class RunFolder:
    """The folder `--out` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / METRICS
        self.checkpoints = path / CHECKPOINTS
        self._claim = ExitStack()

    def check(self, *, resume: bool) -> None:
        """Whether a run can start, or go on, in the folder; read only.

        Raises:
            FileError: VR730 if it holds something, VR731 if there is nothing to resume.
        """
        check_name(self.path)
        if resume:
            self._known()
            return
        with reported(self.path):
            if not self.path.exists() or (self.path.is_dir() and self._is_empty()):
                return
        suggestion = "give another folder with --out"
        what = "something else"
        if (self.path / RUN).is_file():
            finished = (self.path / LOCK).is_file()
            what = "a finished run" if finished else "a run that was interrupted"
            if not finished:
                suggestion = "give --resume to go on with it, or another folder with --out"
        message = f"{shown(self.path, 200)} holds {what}, and is left alone"
        raise FileError("VR730", message, suggestion=suggestion)

    def _is_empty(self) -> bool:
        """Whether there is nothing but what a run left that was killed before it began."""
        found = list(self.path.iterdir())
        return all(p.name.endswith(WORKPLACE) and is_left(p) for p in found)

    def open(self, wanted: dict[str, Any], *, resume: bool) -> None:
        """Makes the folder of a new run, or checks that an old one is the same run.

        Until `close`, no other process can open it.

        Raises:
            FileError: as `check`; VR732 if the run in the folder is another; VR702; VR735 if
                another process trains in it.
        """
        check_name(self.path)
        there = (self.path / RUN).is_file()
        if there:  # a run that goes on there is told from one that was interrupted
            self._claim.enter_context(self._claimed())
        self.check(resume=resume)
        if resume:
            found = self._known()
            notes = list(_differences(found, json.loads(json.dumps(wanted))))
            if notes:
                message = (
                    f"the run in {shown(self.path, 200)} is another one, and cannot go on as this"
                )
                raise FileError("VR732", message, notes=notes)
            return
        if not there:
            with reported(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._claim.enter_context(self._claimed())
            self.check(resume=False)  # another one may have begun since
        with replacing_file(self.path / RUN) as growing:
            record = {"made_by": MADE_BY, "vitrewrite": __version__, "run": wanted}
            growing.write_bytes(sealed(record).encode())

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        home = self.path / f".run{WORKPLACE}"
        with reported(self.path), workplace(home, self.path, patience=0):
            yield

    def close(self) -> None:
        """Lets other processes have the folder."""
        self._claim.close()

    def _known(self) -> dict[str, Any]:
        """What the run in the folder is."""
        if (self.path / LOCK).exists():  # a finished run
            folder = Folder.open(self.path)
            for name in (RUN, METRICS):
                folder.read(name)
        try:
            return dict(unsealed(read_bytes(self.path / RUN))["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"nothing to resume in {shown(self.path, 200)}"
            missing = isinstance(error, FileNotFoundError)
            notes = [] if missing else [f"{RUN}: {first_line(error)}"]
            raise FileError(
                "VR731", message, notes=notes, suggestion="leave out --resume"
            ) from error

    def reopen(self) -> None:
        """A finished run goes on: its files will not be those of the lock file for a while."""
        with reported(self.path):
            (self.path / LOCK).unlink(missing_ok=True)

    def finish(self, rewritten: Rewritten) -> None:
        """Writes what `apply` writes, beside the checkpoints.

        Raises:
            FileError: VR702 if it cannot be written, VR716 if a tensor is not finite; the
                checkpoints are still there.
        """
        with reported(self.path):
            found = {name: digest_of(read_bytes(self.path / name)) for name in (RUN, METRICS)}
        emit_into(rewritten, self.path, others=found)


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
