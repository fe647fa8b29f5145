"""The commands. Each imports what it needs when it runs: most must start without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, VitrewriteError, raise_all
from ..text import did_you_mean, megabytes, shown
from ..version import __version__
from .common import (
    PATH,
    busy,
    echo_json,
    echo_written,
    keep_profile,
    request,
    starting,
    trusted,
)
from .costs import best_at, cost, expect_one, time

if TYPE_CHECKING:
    from ..checking.specs import Checked, Wanted


class Commands(click.Group):
    """A group that tells the command that was probably meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; an unknown name gets the nearest one, whatever its case."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = did_you_mean(args[0], self.commands)
            ctx.fail(
                f"No such command {shown(args[0])}." + (f" {near.capitalize()}" if near else "")
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="vitrewrite %(version)s")
@click.option("--debug", is_flag=True, help="Show Python tracebacks.")
def cli(debug: bool) -> None:
    """Rewrites vision transformers by specs: verified, readable, standalone."""


def _overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """KEY=VALUE arguments, and the file of measurements that `sensitive(...)` uses."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.option(
        "--profile",
        type=PATH,
        expose_value=False,
        callback=keep_profile,
        help="Measurements of 'vitrewrite profile'; without, 'sensitive(...)' runs data=DATA.",
    )(command)


_MARKS = {True: "ok   ", False: "FAILS", None: "open "}
_COUNT = click.IntRange(min=1)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_trust = click.option(
    "--trust", is_flag=True, help="Of a folder: run the code that its files name or hold."
)


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
        click.echo(str(plan))
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
    echo_json(known) if as_json else click.echo(str(result))
    if size and not as_json:
        click.echo(f"features     {megabytes(size['total'])} for {size['images']:,} images")
    raise_all([v.error() for v in result.claims if v.holds is False])


@cli.command()
@click.argument("specs", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Check all shipped specs.")
@click.option("--papers", type=PATH, help="Check all, and write the papers' rows there.")
@_json
def check(specs: tuple[str, ...], every: bool, papers: Path | None, as_json: bool) -> None:
    """Checks specs: syntax, names, types, and claims that need no weights.

    Arguments of the form KEY=VALUE are overrides.
    """
    from .. import catalog
    from ..checking.specs import FEW, start
    from ..checking.specs import check as checked
    from ..language.load import is_text

    overrides = tuple(s for s in specs if "=" in s and not (s.endswith(".peft") or is_text(s)))
    names = [s for s in specs if s not in overrides] + (catalog.specs() if every or papers else [])
    if not names:
        raise UsageError("VR902", "nothing to check", suggestion="name specs, or give --all")
    errors: list[VitrewriteError] = []
    results, everything = [], []
    if len(names) > FEW:
        start()
    given = [_read(name, overrides) for name in names]
    told = _tell(given)
    for found in checked(given):
        errors += [error for error in found.errors if error not in told]
        results.append(found.to_json())
        everything.append(found)
        if not as_json:
            label = "<text>" if is_text(found.name) else found.name
            click.echo(f"{'error' if found.errors else 'ok   '}  {label}")
    if as_json:
        echo_json({"specs": results})
    elif len(results) > 1:
        claims = sum(len(result["claims"]) for result in results)
        rows = sum(len(result.get("rows", ())) for result in results)
        wrong = sum(not result["ok"] for result in results)
        click.echo(
            f"{len(results) - wrong} of {len(results)} specs hold: {claims} claims, {rows} rows"
        )
    if papers is not None:
        from ..checking.papers import write_page

        write_page(papers, everything)
    raise_all(errors)
    if told:
        raise click.exceptions.Exit(1)


def _tell(given: list[Wanted | Checked]) -> list[VitrewriteError]:
    """Tells what needs no torch before that is imported; the errors among it."""
    from ..checking.specs import FEW, Checked

    for each in given:
        for warning in each.spec.warnings if each.spec else ():
            click.echo(f"warning: {warning.render()}", err=True)
    known = [each for each in given if isinstance(each, Checked)]
    if len(known) == len(given):
        return []
    errors = [error for each in known for error in each.errors]
    for error in errors:
        click.echo(error.render(shell=True), err=True)
    if len(given) <= FEW:  # other processes have more
        with starting():
            from .. import api  # noqa: F401
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
@_json
def list_(what: str, as_json: bool) -> None:
    """Lists models, passes or specs."""
    from .listing import entries

    found = entries(what)
    if as_json:
        echo_json({what: [{"name": n, "about": a} for n, a in found]})
        return
    width = max((len(name) for name, _ in found), default=0)
    for name, about in found:
        click.echo(f"{name:<{width}}  {about}".rstrip())


@cli.command()
@click.argument("topic")
def explain(topic: str) -> None:
    """Explains an error code, a pass or a clause."""
    from .listing import explanation

    click.echo(explanation(topic))


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 if unformatted.")
def fmt(files: tuple[str, ...], only_check: bool) -> None:
    """Formats specs in place."""
    from .listing import format_files

    changed = format_files(files, only_check=only_check)
    for name in changed:
        click.echo(f"{'would change' if only_check else 'formatted'}  {name}")
    if changed and only_check:
        raise click.exceptions.Exit(1)


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
