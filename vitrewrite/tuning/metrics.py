"""What is measured while training: lines of JSON, and a table that is alive on a terminal."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..disk import reported
from ..text import EveryMinute, draws, giga

if TYPE_CHECKING:
    from rich.live import Live

    from ..tasks import Task
    from .run import Run

_COLUMNS = ("phase", "epoch", "step", "loss", "{}", "rate", "images/s")  # {}: what counts
_ROWS = 12


class Metrics:
    """Writes `metrics.jsonl` and shows the table; on the main process only.

    A line per logging step and per evaluation:
    `{"event": "step", "phase": "train", "epoch": 0.5, "step": 10, "total": 10, "loss": 1.9,
    "terms": {...}, "gradient": 0.4, "rates": {"weights": 0.001}, "seconds": 1.5,
    "images_per_second": 410.0, "peak_memory_mb": 512.0}`;
    an evaluation has `loss`, `images` and the task's figures as fractions: `accuracy`, or `mIoU`
    and `pixel_accuracy`. While structure is searched both have `macs` and, by site, how many parts
    are `open`.

    Args:
        path: the file; lines after the last checkpoint are taken out of it.
        task: whose figure the table shows.
        live: whether there may be a table, or without a terminal a line a minute.
        log: gets the same numbers, with the number of the step over all phases.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        *,
        main: bool,
        live: bool,
        log: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        self.path, self.task, self.log, self.main = path, task, log, main
        self.rows: list[tuple[str, ...]] = []
        shows = main and live and draws()
        self.table: Live | None = _live(task.metric) if shows else None
        self.told = EveryMinute() if main and live and not shows else None
        self.images, self.since = 0, time.perf_counter()

    def __enter__(self) -> Metrics:
        if self.table:
            self.table.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.table:
            self.table.stop()

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float], None]]:
        """A bar in place of the table; told what is done, and which share of it is."""
        if self.table is None:
            told = self.told
            yield lambda what, share: told.tell(f"{share:4.0%}  {what}") if told else None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.table.stop()
        shown = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        try:
            with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("", total=1.0)
                yield lambda what, share: bar.update(task, description=what, completed=share)
        finally:
            self.table.start()

    def rewind(self, size: int) -> None:
        """Keeps the first bytes, as many as there were at a checkpoint."""
        if not self.main or not self.path.is_file():
            return
        with reported(self.path):
            os.truncate(self.path, size)

    def speed(self) -> float:
        """Images per second since it was asked last."""
        now = time.perf_counter()
        result = self.images / max(now - self.since, 1e-9)
        self.images, self.since = 0, now
        return round(result, 2)

    def write(self, run: Run, event: str, **values: Any) -> None:
        """Adds a line.

        Raises:
            FileError: VR702 if it cannot be written.
        """
        if not self.main:
            return
        line = {
            "event": event,
            "phase": run.phase.name,
            "epoch": round(run.epoch, 4),
            "step": run.step,
            "total": run.total,
            **values,
            "seconds": round(run.seconds, 3),
            "peak_memory_mb": peak_memory(),
        }
        with reported(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.log is not None:
            self.log(dict(_numbers(event, values)), run.total)
        self._show(line)

    def _show(self, line: dict[str, Any]) -> None:
        if self.table is None:
            if self.told:
                self.told.tell(_in_words(line, self.task.metric))
            return
        rates = line.get("rates", {})
        row = (
            line["phase"] + (f" {giga(line['macs'])}" if "macs" in line else ""),
            f"{line['epoch']:.2f}",
            str(line["step"]),
            f"{line['loss']:.4f}" if "loss" in line else "",
            f"{line[self.task.metric]:.2%}" if self.task.metric in line else "",
            " ".join(f"{rate:.2g}" for rate in rates.values()),
            f"{line['images_per_second']:.0f}" if "images_per_second" in line else "",
        )
        # Steps give way to the next line, evaluations stay.
        if self.rows and not self.rows[-1][4]:
            self.rows.pop()
        self.rows = [*self.rows, row][-_ROWS:]
        self.table.update(_table(self.rows, self.task.metric), refresh=True)


def _in_words(line: dict[str, Any], metric: str) -> str:
    """What a line of the table says, for a log."""
    found = [line["phase"], f"epoch {line['epoch']:.2f}", f"step {line['step']}"]
    found += [f"loss {line['loss']:.4f}"] if "loss" in line else []
    found += [f"{metric} {line[metric]:.2%}"] if metric in line else []
    speed = "images_per_second"
    return ", ".join([*found, *([f"{line[speed]:.0f} images/s"] if speed in line else [])])


def _numbers(event: str, values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line, by names such as `step/rates/weights`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{event}/{name}", value)
        elif isinstance(value, (int, float)):
            yield f"{event}/{name}", value


def peak_memory() -> float:
    """The most memory that was used: of the GPU, or of the process; in megabytes of 2^20 bytes."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _live(title: str) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(_table([], title), console=Console(stderr=True), auto_refresh=False)


def _table(rows: list[tuple[str, ...]], title: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for name in _COLUMNS:
        table.add_column(name.format(title), justify="left" if name == "phase" else "right")
    for row in rows:
        table.add_row(*row)
    return table
