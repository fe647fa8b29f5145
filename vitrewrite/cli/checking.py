"""The commands `verify` and `check-pass`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError, raise_all
from .commands import _MARKS, _json, _overrides, _trust, cli
from .common import busy, echo_json, is_folder, request, starting, trusted

if TYPE_CHECKING:
    from ..checking.subject import Subject


@cli.command()
@click.argument("target")
@_overrides
@click.option("--compile", "compiled", is_flag=True, help="Also compare torch.compile's code.")
@click.option(
    "--no-graphs", is_flag=True, help="Leave out export and torch.compile: half the time."
)
@_trust
@_json
def verify(
    target: str,
    overrides: tuple[str, ...],
    compiled: bool,
    no_graphs: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Verifies a folder that vitrewrite wrote, or a spec on its model.

    Of a folder, code runs only if --trust or model=FILE.py:CALLABLE says so.
    """
    folder = is_folder(target)
    wanted = None if folder else request(target, overrides)
    with starting():
        from ..verification import verify_rewritten
        from ..verification.folder import verify_folder
    with busy(f"verifying {target}"):
        if wanted is None:
            allowed = trusted(target, overrides, trust)
            checks = verify_folder(Path(target), allowed, compiled=compiled, graphs=not no_graphs)
        else:
            checks = verify_rewritten(
                wanted.apply(judge=False), compiled=compiled, graphs=not no_graphs, judge=True
            )
    if as_json:
        echo_json(
            {
                "ok": all(c.holds is not False for c in checks),
                "checks": [c.to_json() for c in checks],
            }
        )
    else:
        for each in checks:
            click.echo(f"{_MARKS[each.holds]}  {each}")
    raise_all([c.error() for c in checks if c.holds is False])


@cli.command("check-pass")
@click.argument("file")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--at", "sites", help="Where to put it; default by what the pass attaches to.")
@_json
def check_pass(file: str, options: tuple[str, ...], sites: str | None, as_json: bool) -> None:
    """Checks a pass in FILE.py on tiny models: what it declares, does and claims.

    FILE is the path of a pass, FILE.py:CLASS where it has several, or the name or file of an
    installed one. Its code runs.
    """
    subject = _subject(file, options, sites)
    with starting():
        from ..checking.passes import checks
    failed, found = False, []
    with busy(f"checking {file}"):
        for check in checks(subject):
            failed |= check.holds is False
            found.append(check)
            if not as_json:
                click.echo(f"{_MARKS[check.holds]}  {check}")
    if as_json:
        echo_json({"ok": not failed, "checks": [c.to_json() for c in found]})
    if failed:
        raise click.exceptions.Exit(1)


def _subject(file: str, options: tuple[str, ...], sites: str | None) -> Subject:
    from .. import catalog
    from ..checking.subject import Subject

    if odd := [o for o in options if "=" not in o]:
        raise UsageError("VR910", f"'{odd[0]}' is no option of a pass, such as rank=4")
    known = file if file in catalog.passes() else catalog.name_of(Path(file))
    if known:
        return Subject(catalog.signature(known), known, Path(), options, sites)
    name, _, class_name = file.rpartition(":") if ".py:" in file else (file, "", "")
    path = Path(name)
    if not class_name:
        class_name = catalog.pass_in(path).class_name
    info = catalog.signature(f"{path}:{class_name}")
    return Subject(info, f"./{path.name}:{class_name}", path.parent, options, sites)
