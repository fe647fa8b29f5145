"""What several commands share: requests, JSON, the progress line."""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import catalog
from ..errors import UsageError
from ..text import EveryMinute, draws, minutes, shown
from .output import current
from .trusting import refuse_code

if TYPE_CHECKING:
    from torch import nn

    from ..folder.reading import Trust
    from ..language import Spec
    from ..rewrite.compilation import Compilation
    from ..rewrite.rewritten import Rewritten


_PROFILE = "vitrewrite.profile"


class _Path(click.Path):
    """A path; what no file can be named is refused before the system is asked."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..disk import check_name

        check_name(value)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)


@dataclass(frozen=True)
class Invocation:
    """A spec with the reserved overrides taken out of the command line."""

    spec: Spec
    arguments: dict[str, Any]
    device: str = "cpu"
    data: str | None = None
    delta: str | None = None

    @property
    def names_model(self) -> bool:
        """Whether there is a model to rewrite."""
        return self.spec.model is not None or bool(self.spec.bases)

    def plan(self) -> Compilation:
        """The plan; imports torch."""
        start(self.spec)
        from ..api import plan

        return plan(self.spec, **self.measured)

    def compiled(self) -> tuple[nn.Module, Compilation]:
        """The model, and the spec carried out on it."""
        start(self.spec)
        from ..api import compiled

        return compiled(self.spec, **self.measured)

    def apply(self, *, judge: bool = True) -> Rewritten:
        """The rewritten model; imports torch."""
        from ..api import finished

        original, plan = self.compiled()
        return finished(plan, original, self.delta, self.calibration, judge=judge)

    def features(self, plan: Compilation) -> dict[str, int]:
        """What `tune` would keep of all images, if the spec asks for that and there are any."""
        if not plan.features or self.data is None:
            return {}
        from ..data import Preprocessing, open_data

        data = open_data(self.data, Preprocessing.of(plan.base), measured=False)
        count = len({*data.train.indices, *data.val.indices})
        return {**plan.features, "images": count, "total": count * plan.features["bytes"]}

    @property
    def lacks_measurements(self) -> bool:
        """Whether the spec asks for measurements, and there are none."""
        from ..sensitivity.calls import wanted_by

        return bool(wanted_by(self.spec)) and "profile" not in self.arguments and not self.data

    @property
    def calibration(self) -> str | None:
        """The data that layers between models are solved from, if there is any."""
        return self.data if self.spec.bases else None

    @functools.cached_property
    def measured(self) -> dict[str, Any]:
        """The arguments, with measurements if the spec asks for some and there is data for them."""
        from ..sensitivity.calls import wanted_by

        if self.data is None or "profile" in self.arguments or not wanted_by(self.spec):
            return self.arguments
        from ..profiling.run import measure

        with progress_bar() as told:
            found = measure(
                self.spec, data=self.data, device=self.device, progress=told, **self.arguments
            )
        return {**self.arguments, "profile": found}

    def default_folder(self) -> Path:
        """`./<spec>-<model>`, without the folders and the suffix of a model's file."""
        name = self.spec.model.name if self.spec.model else "model"
        name = "-".join(self.spec.bases) or name
        if ".py:" in name:
            path, _, function = name.rpartition(":")
            name = f"{Path(path).stem}_{function}"
        whole = f"{self.spec.name}-{name}"
        return Path("".join(c if c.isalnum() or c in "._-" else "_" for c in whole))


def request(spec: str, overrides: tuple[str, ...]) -> Invocation:
    """Reads a spec and its overrides.

    Raises:
        VitrewriteError: everything that is wrong with them; VR585 if the spec names code that the
            command does not.
    """
    from ..language import RESERVED, parse_overrides, parse_spec
    from ..language.inputs import INPUT

    found: dict[str, str] = parse_overrides(overrides)
    arguments: dict[str, Any] = {}
    if "weights" in found:
        arguments["weights"] = found["weights"]
    if "seed" in found:
        arguments["seed"] = _seed(found["seed"])
    others = set(RESERVED) - {"model", INPUT}
    given = {k: v for k, v in found.items() if k not in others}
    # A spec may have a param of this name, which is no reserved one.
    delta = given.pop("delta", None)
    parsed = parse_spec(spec, given, models=True)
    if delta is not None and "delta" in parsed.params:
        parsed, delta = parse_spec(spec, {**given, "delta": delta}, models=True), None
    refuse_code(parsed)
    context = click.get_current_context(silent=True)
    if context is not None and (path := context.meta.get(_PROFILE)) is not None:
        arguments["profile"] = path
    device = found.get("device", "cpu")
    return Invocation(parsed, arguments, device, found.get("data"), delta)


def keep_profile(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Keeps the file of measurements for `request`."""
    context.meta[_PROFILE] = value


def _seed(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (seed := int(text)) < 1 << 64:
            return seed
    raise UsageError("VR903", f"seed must be an int from 0 to 2^64 - 1, got {shown(text)}")


def is_folder(target: str) -> bool:
    """Whether the argument means a folder that `apply` wrote, rather than a spec."""
    folder = Path(target)
    if catalog.is_file(folder / "lock.json"):
        return True
    return os.path.isdir(target) and target not in catalog.specs()  # noqa: PTH112 - never raises


def trusted(target: str, overrides: tuple[str, ...], trust: bool) -> Trust:
    """What the user allows a folder: the code that it names, or a model that he names himself.

    Raises:
        UsageError: VR905 for any other override, VR903 for a model that is no code in a file.
    """
    from ..folder.reading import Trust
    from ..language import parse_overrides

    given = parse_overrides(overrides)
    for key in given.keys() - {"model"}:
        raise UsageError(
            "VR905", f"'{target}' is a folder, which takes no overrides such as {key}={given[key]}"
        )
    model = given.get("model")
    if model is not None and ".py:" not in model:
        raise UsageError(
            "VR903",
            f"model must be FILE.py:CALLABLE for a folder, got {shown(model)}",
            suggestion="leave it out: a folder has its model in it",
        )
    return Trust(trust, model)


def check_device(name: str) -> None:
    """Whether torch can compute on a device.

    Raises:
        UsageError: VR904 if there is none of that name here.
    """
    import torch

    try:
        torch.empty(1, device=name).cpu()
    except Exception as error:  # each backend has its own kind
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError("VR904", f"no device {shown(name)} here: {reason}") from error


def echo_written(place: Path, end: str = "") -> None:
    """Says where the output is; a name that would move the cursor is quoted on one line."""
    name = f"{place}{end}"
    click.echo(f"written   {name if name.isprintable() else shown(name, 200)}")


def echo_shown(
    data: Mapping[str, Any],
    lines: Iterable[str],
    as_json: bool,
    out: Path | None,
    measured: Path | None = None,
) -> None:
    """What a picture shows, as data or line by line, and where it is, if it was drawn.

    Args:
        data: what `--json` prints; with the picture's place.
        lines: what is printed without.
        as_json: which of them.
        out: the picture.
        measured: a file of numbers that was written, too.
    """
    if as_json:
        echo_json({**data, **({} if out is None else {"out": str(out)})})
        return
    for line in lines:
        click.echo(line)
    for place in (measured, out):
        if place is not None:
            echo_written(place)


def echo_json(value: Mapping[str, Any]) -> None:
    """Prints JSON on stdout: when the command ends, with the errors if there are any."""
    output = current()
    output.document = value
    if click.get_current_context(silent=True) is None:
        output.finish()


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A progress line on stderr, one a minute where that is no terminal; one for each with -v."""
    output = current()
    if output.verbose:
        began = time.monotonic()
        yield
        click.echo(f"{what}: {time.monotonic() - began:.1f} s", err=True)
        return
    if output.quiet or not draws():
        with nullcontext() if output.quiet else minutes(what):
            yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def start(*specs: Spec) -> None:
    """Imports torch, and the libraries of the models that specs name."""
    with starting():
        from .. import api  # noqa: F401
        from ..models import import_library

        for name in (ref.name for spec in specs for ref in spec.models):
            import_library(name)


_LIBRARIES = {"torch", "timm"}


@contextmanager
def starting() -> Iterator[None]:
    """While libraries are imported: none of what they hold is garbage, so none is searched."""
    first, enabled = not sys.modules.keys() >= _LIBRARIES, gc.isenabled()
    gc.disable()
    try:
        with busy("starting torch"):
            yield
    finally:
        if first:
            gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr; told what is done, and which share of it is.

    Where that is no terminal, it is a line a minute.
    """
    if current().quiet:
        yield lambda what, share: None
        return
    if not draws():
        every = EveryMinute()
        yield lambda what, share: every.tell(f"{share:4.0%}  {what}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
