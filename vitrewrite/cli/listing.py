"""What `list`, `explain`, `fmt` and `diff` print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .. import catalog
from ..catalog.explain import explain_code
from ..catalog.models import known_models
from ..catalog.signatures import OptionInfo, PassInfo
from ..errors import FileError, SpecError, VitrewriteError, raise_all
from ..language.conventions import CONVENTIONS
from ..text import did_you_mean, listing, shown
from .topics import SINGULAR, TOPICS

CLAUSES = {
    "insert": "insert P at|before|after SITES: puts a pass at sites of the model. An option that "
    "is a list has one value per site, such as rank=[4, 8, 0, 8]; 0 or none puts nothing there.",
    "prepend": "prepend P to SITES: puts tokens or rows in front of what a site gets.",
    "replace": "replace SITES with P: swaps parts of the model for others.",
    "stitch": "stitch small=M1, base=M2[, large=M3] with P: makes one model of several. It is the "
    "first clause; behind it selectors start at a name, such as 'small.blocks[*]', or are of all: "
    "'every base.blocks[*]'. Models without a name are a, b and c.",
    "add": "add P to SITES: gives a part of the model something more to compute.",
    "drop": "drop SITES: takes blocks out of the model, such as 'drop blocks[8:]'. The others keep "
    "their names and numbers: wherever a clause stands, its positions are those of the base. "
    "drop SITES by P: those of them that P finds in training.",
    "train": "train SITES: the parameters there are trained. All others are frozen as soon as a "
    "spec inserts or trains anything.",
    "freeze": "freeze SITES: the parameters there are not trained.",
    "require": "require CLAIM: a claim that apply and verify check; if it does not hold, nothing "
    "is written and the exit status is 1.\nClaims: params, params_lowered, trainable, share, "
    "storage, macs, macs_lowered, flops, max_error, tokens at SITES, each with <, <=, ==, >=, > or "
    "'within 1% of'; 'identity at init'; 'lowers exactly'. 'excluding SITES' leaves parts out of "
    "params, trainable and MACs.\nparams(head=940/19) and trainable(head=940/19) count the head "
    "for so many classes; share(of=base) is that of the trained parameters in the base without "
    "its head, with it (base_and_head) or with all that was added (all); storage(tasks=19) is what "
    "tasks take that share a base, in bases, matrices of few bits packed. macs(stitches=least) is "
    "that of the cheapest of several stitches, most of the dearest. macs(convention=norms) "
    "counts as papers do:\n"
    + "\n".join(f"  {name:<13}{each.about}" for name, each in CONVENTIONS.items()),
    "row": 'row "TABLE: ROW": a row of a paper\'s table that the spec stands for.',
    "param": "param NAME: TYPE = DEFAULT in LOW..HIGH: a value that NAME=VALUE overrides.",
    "let": "let NAME = EXPRESSION: a name for a value.",
    "include": "include SPEC or include SPEC(param=value, ...): the clauses of another spec, in "
    "this place, with other values of its params.",
    "if": "CLAUSE if CONDITION, require CLAIM if CONDITION: there only if a condition over params "
    "and lets holds, such as 'if rank > 0 and mode != off'. 'plan' tells what is not there.",
    "tune": "tune { key = value, lr(SITES) = FACTOR ... }: hyperparameters of training; "
    "tune.key=value overrides one. lr and weight_decay have factors for the parameters at sites.",
    "model": "model NAME(key=value, ...): the model to rewrite, and its constructor arguments.",
}


def entries(what: str) -> list[tuple[str, str]]:
    """Names with one line about each."""
    if what == "passes":
        return [(n, first_line(catalog.signature(n).doc)) for n in catalog.passes()]
    if what == "specs":
        return [(n, _about_spec(catalog.spec_path(n))) for n in catalog.specs()]
    return known_models()


def names(what: str) -> list[str]:
    """The names alone, which takes no reading of files."""
    known = {"passes": catalog.passes, "specs": catalog.specs}
    return known[what]() if what in known else [name for name, _ in known_models()]


def matching(
    found: list[tuple[str, str]], what: str, patterns: Sequence[str]
) -> list[tuple[str, str]]:
    """Those whose name fits one of some patterns; all without any.

    Raises:
        SpecError: VR895 if none does.
    """
    wild = [p.lower() if set(p) & set("*?[") else f"*{p.lower()}*" for p in patterns]
    fitting = [each for each in found if any(fnmatchcase(each[0].lower(), p) for p in wild)]
    if patterns and not fitting:
        raise SpecError(
            "VR895",
            f"none of {len(found):,} {what} fits {' or '.join(map(shown, patterns))}",
            suggestion=did_you_mean(patterns[0].strip("*?"), [name for name, _ in found]),
        )
    return fitting if patterns else found


def first_line(text: str) -> str:
    """The first line of a docstring."""
    return text.strip().splitlines()[0] if text.strip() else ""


def _about_spec(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""


def explanation(topic: str) -> str:
    """The text for an error code, a pass or a clause.

    Raises:
        SpecError: VR229 if it is none of these.
    """
    if re.fullmatch(r"[Vv][Rr]\d{3}", topic):
        return str(explain_code(topic))
    if topic == "tune":
        from ..language.settings import options as settings_of_tune

        return "\n".join([CLAUSES[topic], "", "Settings", *option_lines(settings_of_tune())])
    if topic in CLAUSES:
        return CLAUSES[topic]
    if (named := SINGULAR.get(topic, topic)) in TOPICS:
        return TOPICS[named]
    if topic in catalog.passes():
        return pass_page(catalog.signature(topic))
    known = [*catalog.passes(), *CLAUSES, *TOPICS]
    raise SpecError(
        "VR229",
        f"nothing to explain about '{topic}'",
        notes=[f"passes: {listing(catalog.passes())}", f"clauses: {listing(CLAUSES)}",
               f"topics: {listing(TOPICS)}"],
        suggestion=did_you_mean(topic, known),
    )  # fmt: skip


def pass_page(info: PassInfo) -> str:
    """The reference page of a pass: its docstring and its options."""
    return "\n".join([info.doc.strip(), "", "Options", *option_lines(info.options)])


def option_lines(options: Mapping[str, OptionInfo]) -> list[str]:
    """A line about each option."""
    lines = []
    for option in options.values():
        default = "required" if option.required else f"default {_shown(option.default)}"
        bounds = ("minimum", "above", "maximum", "below")
        limits = [f"{n} {v}" for n in bounds if (v := getattr(option, n)) is not None]
        if option.choices:
            limits.append(f"one of {', '.join(map(str, option.choices))}")
        if option.words:
            words = ", ".join(option.words)
            limits.append(f"{words} or another" if option.type == "str" else f"or {words}")
        if option.needs:
            limits.append(f"only if {option.needs}")
        if option.rest is not None:
            limits.append(f"{_shown(option.rest)} behind the end of a list by site")
        facts = ", ".join([str(option), default, *limits])
        lines.append(f"    {option.name}: {facts}. {option.help}".rstrip())
    return lines


def _shown(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def options_of(topic: str) -> list[dict[str, Any]]:
    """The options of a pass, or the settings of training, for programs."""
    if topic == "tune":
        from ..language.settings import options as settings_of_tune

        found: Mapping[str, OptionInfo] = settings_of_tune()
    elif topic in catalog.passes():
        found = catalog.signature(topic).options
    else:
        return []
    return [_facts(option) for option in found.values()]


def _facts(option: OptionInfo) -> dict[str, Any]:
    limits = ("minimum", "above", "maximum", "below", "choices", "words", "needs", "rest")
    known = {name: getattr(option, name) for name in limits}
    given = {} if option.required else {"default": option.default}
    said = {name: value for name, value in known.items() if value not in (None, (), "")}
    return {"name": option.name, "type": str(option), **given, **said, "help": option.help}


def format_files(files: tuple[str, ...], changed: list[str], *, only_check: bool) -> None:
    """Formats specs in place, or finds which would change.

    Args:
        files: the specs.
        changed: gets the names of those that are not formatted.
        only_check: change no file.

    Raises:
        VitrewriteError: for files that cannot be read or are malformed; the others are formatted.
    """
    from ..disk import replacing_file
    from ..language import format_text
    from ..language.source import read_source

    errors: list[VitrewriteError] = []
    for name in files:
        path = Path(name)
        try:
            old = read_source(path, name).text
            new = format_text(old, name)
            if new != old and not only_check:
                with replacing_file(path) as growing:
                    growing.write_text(new, encoding="utf-8", newline="")
        except VitrewriteError as error:
            errors.append(error)
        else:
            changed += [name] * (new != old)
    raise_all(errors)


def differences(first: str, second: str) -> list[str]:
    """A unified diff of two resolved specs, then counts and allocations that differ.

    Args:
        first: a spec, a folder that vitrewrite wrote, or a JSON file of its report or a plan.
        second: what to compare with.

    Raises:
        VitrewriteError: for specs that are wrong; VR703 for a folder or file that is not ours.
    """
    from ..sensitivity.text import changes

    specs, reports, bought = zip(*(_content(name) for name in (first, second)), strict=True)
    lines = list(difflib.unified_diff(specs[0], specs[1], first, second, lineterm="", n=1))
    for key in sorted(reports[0].keys() & reports[1].keys()):
        a, b = (report.get(key) for report in reports)
        if a != b:
            lines.append(f"{key}: {a} -> {b}")
    try:
        return [*lines, *changes(*bought)]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        message = f"an allocation of '{first}' or '{second}' was changed since it was written"
        raise FileError("VR703", message) from error


def _content(name: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The lines of a spec, counts of its model, and allocations."""
    from ..folder.lock import Folder
    from ..language import parse_spec
    from ..storage.hashing import parsed, read_bytes

    path = Path(name)
    is_report = path.suffix == ".json" and catalog.is_file(path)
    if not is_report and not catalog.is_file(path / "lock.json"):
        return str(parse_spec(name)).splitlines(), {}, {}
    folder = None if is_report else Folder.open(path)
    try:
        report = parsed(read_bytes(path)) if folder is None else folder.json("report.json")
        counts = {k: report[k] for k in ("macs", "macs_lowered", "tokens", "weights", "model")}
        counts |= report["params"]
        if folder is None:
            return [c["clause"] for c in report["clauses"]], counts, report["allocations"]
        return folder.lock["spec"].splitlines(), counts, dict(folder.lock["allocations"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = "report" if is_report else "folder"
        message = f"'{path}' is no {what} that vitrewrite wrote, or was changed since"
        raise FileError("VR703", message) from error
