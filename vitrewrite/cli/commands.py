"""The commands. Each imports what it needs when it runs: most must start without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, VitrewriteError, raise_all
from ..text import megabytes
from .common import PATH, busy, echo_json, echo_written, request, start, starting, trusted
from .costs import best_at, cost, expect_one, time
from .group import COUNT as _COUNT
from .group import MARKS as _MARKS
from .group import Commands, cli
from .group import json_option as _json
from .group import overrides as _overrides
from .output import Output, annotation, current, signed, tell
from .trusting import trust_option as _trust

if TYPE_CHECKING:
    from ..checking.specs import Checked, Wanted

__all__ = ["_COUNT", "_MARKS", "Commands", "_json", "_overrides", "_trust", "cli"]


@cli.command()
@click.argument("spec")
@_overrides
@click.option("--out", type=PATH, help="Folder; default ./SPEC-MODEL.")
@click.option("--no-weights", is_flag=True, help="Do not write weights.safetensors.")
@_json
def apply(
    spec: str, overrides: tuple[str, ...], out: Path | None, no_weights: bool, as_json: bool
) -> None:
    """Rewrites a model and writes source, weights, delta and report."""
    wanted = request(spec, overrides)
    target = out or wanted.default_folder()
    with starting():
        from ..api import finished
        from ..disk import check_target
        from ..folder.writing import emit
        from ..verification import quick
    check_target(target)
    with busy(f"planning {wanted.spec.name}"):
        original, plan = wanted.compiled()
    if not as_json:
        click.echo(signed(str(plan)))
    with busy(f"rewriting {plan.model}"):
        rewritten = finished(plan, original, wanted.delta, wanted.calibration)
    with busy("verifying"):
        checks = quick(rewritten)
    raise_all([c.error() for c in checks if c.holds is False])
    with busy(f"writing {target}"):
        emit(rewritten, target, weights=not no_weights)
    if as_json:
        echo_json({**rewritten.report, "checks": [c.to_json() for c in checks], "out": str(target)})
        return
    click.echo("")
    for check in checks:
        click.echo(f"verified  {check}")
    for verdict in rewritten.claims:
        click.echo(f"claim     {verdict.claim}: {verdict.measured}")
    echo_written(target, "/")


@cli.command()
@click.argument("spec")
@_overrides
@_json
def plan(spec: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Shows what would change, before any weight is touched."""
    wanted = request(spec, overrides)
    with busy("planning"):
        result = wanted.plan()
        size = wanted.features(result)
    known = {**result.to_json(), "features": size} if size else result.to_json()
    echo_json(known) if as_json else click.echo(signed(str(result)))
    if size and not as_json:
        click.echo(f"features     {megabytes(size['total'])} for {size['images']:,} images")
    raise_all([v.error() for v in result.claims if v.holds is False])


@cli.command()
@click.argument("specs", nargs=-1, metavar="SPEC... [KEY=VALUE]...")
@click.option("--all", "every", is_flag=True, help="Check all shipped specs.")
@click.option("--papers", type=PATH, help="Check all, and write the papers' rows there.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    help="What is printed: github is for annotations of a pull request.",
)
@_json
def check(
    specs: tuple[str, ...], every: bool, papers: Path | None, form: str, as_json: bool
) -> None:
    """Checks specs: syntax, names, types, and claims that need no weights."""
    from .. import catalog
    from ..checking.specs import FEW, fork_early
    from ..checking.specs import check as checked
    from ..language.load import is_text

    overrides = tuple(s for s in specs if "=" in s and not (s.endswith(".peft") or is_text(s)))
    names = [s for s in specs if s not in overrides] + (catalog.specs() if every or papers else [])
    if not names:
        raise UsageError("VR902", "nothing to check", suggestion="name specs, or give --all")
    output = current()
    output.as_json = as_json = as_json or form == "json"
    everything: list[Checked] = []
    if len(names) > FEW:
        fork_early()
    given = [_read(name, overrides) for name in names]
    told = _tell(given)
    for found in checked(given):
        everything.append(found)
        if form == "github":
            output.lines += _annotations(found)
        elif not as_json:
            label = "<text>" if is_text(found.name) else found.name
            click.echo(f"{_ERROR if found.errors else _MARKS[True]}  {label}")
    results = [found.to_json() for found in everything]
    if as_json:
        echo_json({"specs": results})
    elif form == "text":
        _count(results)
    if papers is not None:
        from ..checking.papers import write_page

        write_page(papers, everything)
    _fail(output, [error for found in everything for error in found.errors], told)


def _fail(output: Output, errors: list[VitrewriteError], told: list[VitrewriteError]) -> None:
    """Ends with errors if there are any; those that were told are not told again."""
    if told and output.as_json:
        output.finish(errors)
        output.as_json = False  # that was all of it
    raise_all([error for error in errors if error not in told])
    if told:
        raise click.exceptions.Exit(1)


def _count(results: list[dict[str, Any]]) -> None:
    """Says how many of several specs hold."""
    claims = sum(len(result["claims"]) for result in results)
    rows = sum(len(result.get("rows", ())) for result in results)
    right = sum(result["ok"] for result in results)
    if len(results) > 1:
        click.echo(f"{right} of {len(results)} specs hold: {claims} claims, {rows} rows")


_ERROR = click.style("error", fg="red", bold=True)


def _annotations(found: Checked) -> list[str]:
    """Lines that GitHub shows beside those of the spec."""
    wrong = [annotation(each, found.name) for each in found.errors]
    return [*wrong, *(annotation(each, found.name, wrong=False) for each in found.warnings)]


def _tell(given: list[Wanted | Checked]) -> list[VitrewriteError]:
    """Tells what needs no torch before that is imported; the errors among it."""
    from ..checking.specs import FEW, Checked, Wanted

    for each in given:
        for warning in each.spec.warnings if each.spec else ():
            tell(warning, "warning: ")
    known = [each for each in given if isinstance(each, Checked)]
    if len(known) == len(given):
        return []
    errors = [error for each in known for error in each.errors]
    for error in errors:
        tell(error)
    if len(given) <= FEW:  # other processes have more
        start(*(each.spec for each in given if isinstance(each, Wanted)))
    return errors


def _read(name: str, overrides: tuple[str, ...]) -> Wanted | Checked:
    """A spec to check on its model, or what there is to say without one."""
    from ..checking.specs import Checked, Wanted

    try:
        wanted = request(name, overrides)
        if not wanted.names_model or wanted.lacks_measurements:
            return Checked(name, wanted.spec)
        return Wanted(name, wanted.spec, wanted.measured)
    except VitrewriteError as error:
        return Checked(name, None, tuple(getattr(error, "errors", [error])))


@cli.command("list")
@click.argument("what", type=click.Choice(["models", "passes", "specs"]))
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@_json
def list_(what: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Lists models, passes or specs: all, or those that a PATTERN fits.

    A pattern is a part of a name, or has * and ?: 'vitrewrite list models "vit_*dinov2*"'.
    """
    from .listing import entries, matching

    found = matching(entries(what), what, patterns)
    if as_json:
        echo_json({what: [{"name": n, "about": a} for n, a in found]})
        return
    width = max((len(name) for name, _ in found), default=0)
    for name, about in found:
        click.echo(f"{name:<{width}}  {about}".rstrip())


@cli.command()
@click.argument("topic")
@_json
def explain(topic: str, as_json: bool) -> None:
    """Explains an error code, a pass, a clause, or one of selectors, overrides, data, weights."""
    from .listing import explanation, options_of

    text = explanation(topic)
    if not as_json:
        click.echo(text)
        return
    options = options_of(topic)
    echo_json({"topic": topic, "text": text, **({"options": options} if options else {})})


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 if unformatted.")
@_json
def fmt(files: tuple[str, ...], only_check: bool, as_json: bool) -> None:
    """Formats specs in place."""
    from .listing import format_files

    changed: list[str] = []
    try:
        format_files(files, changed, only_check=only_check)
    finally:  # those that could be read are told, whatever else there is
        said = "would_change" if only_check else "formatted"
        if as_json:
            echo_json({said: changed})
        else:
            _echo_each(said.replace("_", " "), changed)
    if changed and only_check:
        raise click.exceptions.Exit(1)


def _echo_each(what: str, names: list[str]) -> None:
    for name in names:
        click.echo(f"{what}  {name}")


@cli.command()
@click.argument("folder", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[model=FILE.py:CALLABLE]")
@click.option("--out", type=PATH, required=True)
@click.option("--undo", is_flag=True, help="Turn a lowered folder back, bit for bit.")
@click.option("--delta", type=PATH, help="Take this delta, not that of the folder.")
@click.option("--stitch", type=int, help="Take out this one of several stitched models.")
@click.option("--macs", callback=cost, metavar="8.4G", help="Take out the best stitch at a cost.")
@click.option("--latency", callback=time, metavar="12ms", help="Take out the best at a latency.")
@click.option("--table", type=PATH, help="The latencies, not those that the run measured.")
@_trust
@_json
def lower(
    folder: Path,
    overrides: tuple[str, ...],
    out: Path,
    undo: bool,
    delta: Path | None,
    stitch: int | None,
    macs: int | None,
    latency: float | None,
    table: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Turns a rewritten model into the cheapest equal one, and measures what that changes.

    The originals of what it changes are kept in the folder, so that --undo gives back every bit.
    """
    allowed = trusted(str(folder), overrides, trust)
    if undo and delta is not None:
        raise UsageError("VR905", "--undo takes no --delta", suggestion="leave one of them out")
    expect_one(undo, **{"--stitch": stitch, "--macs": macs, "--latency": latency, "--table": table})
    with starting():
        from ..api import lower as run
        from ..disk import check_target
        from ..folder.reading import rewritten_folder, unlowered_folder
        from ..folder.writing import emit
        from ..report.lowering import lowering_text
        from ..verification.claims import judged
    check_target(out)
    if macs is not None or latency is not None:
        stitch = best_at(folder, macs, latency, table)
    if undo:
        with busy(f"restoring {folder}"):
            result = judged(unlowered_folder(folder, allowed))
    else:
        with busy(f"lowering {folder}"):
            result = run(judged(rewritten_folder(folder, allowed, delta)), stitch=stitch)
        with busy("measuring"):
            text = str(result.measures) if stitch is not None else lowering_text(result)
    with busy(f"writing {out}"):
        emit(result, out)
    if as_json:
        found = result.report.get("lowering", {}).get("error", {}).get("float32", {})
        echo_json({**result.report, "max_error": found.get("relative"), "out": str(out)})
        return
    if undo:
        count = len(result.module.state_dict())
        click.echo(f"restored  {count} tensors, equal bit for bit to those that were lowered")
    else:
        click.echo(text)
    echo_written(out, "/")


@cli.command()
@click.argument("first")
@click.argument("second")
@_json
def diff(first: str, second: str, as_json: bool) -> None:
    """Compares two specs, two folders that apply wrote, or two reports or plans as JSON.

    Of allocations it says which matrices and vectors are decided otherwise.
    """
    from .listing import differences

    found = differences(first, second)
    if as_json:
        echo_json({"differences": found})
    else:
        click.echo("\n".join(found) if found else "no difference")
