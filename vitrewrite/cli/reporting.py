"""The command `report`: what the folders of results say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import FileError
from ..text import giga, plural, table
from .commands import _json, cli
from .common import PATH, echo_json
from .output import signed

_HOLDS = {True: "ok", False: "FAILS", None: "open"}


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="DIR...")
@_json
def report(folders: tuple[Path, ...], as_json: bool) -> None:
    """Tells what is in folders of results: clauses, parameters, MACs, claims as they were measured.

    Nothing is computed: it is what 'report.json' says, compared with its hash.
    """
    found = [(folder, _report(folder)) for folder in folders]
    if as_json:
        each = [{"folder": str(folder), **content} for folder, content in found]
        echo_json({"reports": each})
        return
    for number, (folder, content) in enumerate(found):
        click.echo(f"{'' if number == 0 else chr(10)}{folder}: {_title(content)}\n")
        click.echo(signed("\n".join(_lines(content, folder))))


def _report(folder: Path) -> Mapping[str, Any]:
    from ..folder.lock import Folder

    content = Folder.open(folder).json("report.json")
    if not isinstance(content, dict):
        raise _strange(folder)
    return content


def _strange(folder: Path) -> FileError:
    return FileError("VR703", f"'{folder}' has no report of vitrewrite")


def _title(content: Mapping[str, Any]) -> str:
    lowered = ", lowered" if content.get("lowered") else ""
    model, weights = content.get("model"), content.get("weights")
    return f"{content.get('spec')} on {model}, weights {weights}{lowered}"


def _lines(content: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines about one folder.

    Raises:
        FileError: VR703 if the report is none of vitrewrite's.
    """
    try:
        claims = table(list(_claims(content)))
        counts = table(list(_counts(content)))
        clauses = table(list(_clauses(content)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _strange(folder) from error
    notes = [f"warning: {text}" for text in content.get("warnings") or ()]
    return [*clauses, *([""] if clauses else []), *counts, *claims, *notes]


def _clauses(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for clause in content["clauses"]:
        sites = plural(len(clause["sites"]), "site")
        count = f"{clause['parameters']:,} parameters"
        yield clause["change"], str(clause["line"]), clause["clause"], sites, count


def _counts(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    params = content["params"]
    own = params["trainable_without_head"]
    share = f"without head {own:,} ({100 * own / max(params['total'], 1):.2f} %)"
    yield "parameters", f"{params['total']:,}", f"trainable {params['trainable']:,}", share
    macs = (content[key] for key in ("macs", "macs_base", "macs_lowered"))
    own, base, lowered = map(giga, macs)
    yield "MACs", own, f"base {base}", f"lowered {lowered}"


def _claims(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for number, claim in enumerate(content["claims"]):
        found = claim["measured"]
        said = "" if found is None else f"measured {found:.3g}"
        if isinstance(found, int):
            said = f"measured {found:,}"
        yield "claim" if number == 0 else "", _HOLDS[claim["holds"]], claim["claim"], said
