"""`docs/coverage.md` and `docs/coverage.json`, from what was found."""

from __future__ import annotations

import collections
import importlib.metadata
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.zoo.lists import LIBRARIES

_PACKAGES = {
    "open_clip": "open_clip_torch",
    "segment-anything": "segment_anything",
    "MONAI": "monai",
}
_OUTCOMES = ("exact", "refused", "wrong")

_HEAD = """# Coverage

What `make zoo` finds: models are built small (few blocks), with random weights and every drop rate
above zero that they take, captured, emitted, and compared with themselves: two batch sizes,
training at equal seed, one and a half times the image size, bfloat16, and the emitted source in an
interpreter without the library. *Exact* is a difference of 0.0 everywhere, but for torch's own
attention in eval mode (`nn.MultiheadAttention`), which adds in another order: 2e-6 at most there.

- **timm**: every entry of `timm.list_models()` in whose forward an attention runs; of those whose
  modules are configured alike but for numbers, the smallest; none that has more than 120 M
  parameters with two blocks a stage.
- **transformers**: every class of its tables for images that takes `pixel_values` alone, and its
  vision towers, where a configuration made small runs.
- Sizes: *any* runs at other image sizes as the model does; *guarded* refuses them by name, though
  the model takes them; *fixed*: the model itself takes one.
"""

_MATRIX = """What `make matrix` finds: each method on each architecture, both small. *yes*: it
applies, holds what it claims at initialisation and trained, emits what computes the same, trains
what it should, and lowers. A number is a refusal, with its reason below.
"""


def write(
    folder: Path,
    models: list[dict[str, Any]] | None = None,
    cells: list[dict[str, str]] | None = None,
) -> None:
    """Writes both files; what is not given stays as it is there.

    Args:
        folder: where they are.
        models: what was found of each model of the zoo.
        cells: of each method on each architecture.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "coverage.json"
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if models is not None:
        found = sorted(models, key=lambda f: (LIBRARIES.index(_library(f)), f["key"]))
        data |= {"date": _date(), "versions": _versions(found), "models": found}
    data["matrix"] = data.get("matrix", []) if cells is None else cells
    (folder / "coverage.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "coverage.md").write_text(_page(data))


def _date() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


def _versions(found: list[dict[str, Any]]) -> dict[str, str]:
    packages = ["torch", *dict.fromkeys(_PACKAGES.get(lib := _library(f), lib) for f in found)]
    return {name: importlib.metadata.version(name).partition("+")[0] for name in packages}


def _library(found: dict[str, Any]) -> str:
    return str(found["key"].partition(":")[0])


def _page(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    found = data["models"]
    parts = [_HEAD, f"{data['date']}; {versions}.\n", _totals(found), _matrix(data["matrix"])]
    parts.append(_reasons(found))
    parts += [_models(lib, [f for f in found if _library(f) == lib]) for lib in LIBRARIES]
    return "\n".join(part for part in parts if part)


def _totals(found: list[dict[str, Any]]) -> str:
    lines = [
        "## Totals\n",
        "| library | models | exact | refused | wrong | any size | guarded |",
        "|---|---|---|---|---|---|---|",
    ]
    for library in LIBRARIES:
        own = [f for f in found if _library(f) == library and f["outcome"] in _OUTCOMES]
        if not own:
            continue
        counts = collections.Counter(f["outcome"] for f in own)
        sizes = collections.Counter(f["sizes"] for f in own if f["outcome"] == "exact")
        share = f"{counts['exact']} ({100 * counts['exact'] / len(own):.0f} %)"
        rest = (counts["refused"], counts["wrong"], sizes["any"], sizes["guarded"])
        lines.append(f"| {library} | {len(own)} | {share} | " + " | ".join(map(str, rest)) + " |")
    return "\n".join(lines) + "\n"


def _matrix(cells: list[dict[str, str]]) -> str:
    """Methods by architectures; a refusal is a number, which is told below."""
    columns = list(dict.fromkeys(cell["architecture"] for cell in cells))
    reasons = list(dict.fromkeys(_reason(c) for c in cells if c["outcome"] != "works"))
    lines = ["## Methods on architectures\n", _MATRIX, f"| | {' | '.join(columns)} |"]
    lines.append(f"|---|{'---|' * len(columns)}")
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = {c["architecture"]: c for c in cells if c["method"] == method}
        marks = [
            "yes" if own[a]["outcome"] == "works" else f"{reasons.index(_reason(own[a])) + 1}"
            for a in columns
        ]
        lines.append(f"| {method} | {' | '.join(marks)} |")
    told = [f"{i}. {_cell(reason)}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *told]) + "\n"


def _reason(cell: dict[str, str]) -> str:
    """Why, without the model's own name and numbers of places."""
    return f"{'' if cell['outcome'] == 'refused' else 'FAILS: '}{cell['why']}"


def _reasons(found: list[dict[str, Any]]) -> str:
    others = [f for f in found if f["outcome"] != "exact"]
    if not others:
        return ""
    lines = ["## Not exact\n", "| model | | why |", "|---|---|---|"]
    lines += [f"| {f['key']} | {f['outcome']} | {_cell(f['why'])} |" for f in others]
    return "\n".join(lines) + "\n"


def _models(library: str, found: list[dict[str, Any]]) -> str:
    exact = [f for f in found if f["outcome"] == "exact"]
    if not exact:
        return ""
    lines = [
        f"## {library}: exact\n",
        "| model | sizes | largest difference | notes |",
        "|---|---|---|---|",
    ]
    for each in exact:
        name = each["key"].partition(":")[2]
        notes = _cell("; ".join(each["notes"]))
        lines.append(f"| {name} | {each['sizes']} | {each['worst']:.2g} | {notes} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
