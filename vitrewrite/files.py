"""What `apply` and `lower` write: a folder, all or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import __version__
from .disk import LOCK, MADE_BY, open_to_readers, replacing, reported
from .folder.base import save_base
from .folder.delta import fingerprint, save_delta
from .folder.lock import DELTA, ORIGINALS, WEIGHTS, lock_text
from .models import buffers_of
from .storage.hashing import digest_of
from .storage.tensors import check_finite, write_tensors

if TYPE_CHECKING:
    from .rewrite.rewritten import Rewritten


def emit(rewritten: Rewritten, out: str | Path, *, weights: bool = True) -> Path:
    """Writes the folder of a rewritten model.

    Args:
        rewritten: the model.
        out: the folder; one that vitrewrite made is replaced, any other is refused.
        weights: whether to write `weights.safetensors`.

    Raises:
        FileError: VR701 if the folder is something else, VR702 if it cannot be written, VR716 if
            a tensor is not finite.
    """
    target = Path(out)
    with replacing(target) as folder:
        _write_all(rewritten, folder, weights)
    return target


def emit_into(
    rewritten: Rewritten, folder: Path, *, weights: bool = True,
    others: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Writes the files of a rewritten model into a folder that holds other things too.

    File by file; the lock file, which makes it a folder of vitrewrite, is the last.

    Args:
        rewritten: the model.
        folder: where to.
        weights: whether to write `weights.safetensors`.
        others: hashes of files that are there already, by name, which the folder answers for.

    Raises:
        FileError: VR702 if it cannot be written, VR716 if a tensor is not finite.
    """
    with reported(folder), tempfile.TemporaryDirectory(prefix=".files.", dir=folder) as name:
        temporary = Path(name)
        _write_all(rewritten, temporary, weights, others)
        open_to_readers(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == LOCK):
            path.replace(folder / path.name)


def _write_all(
    rewritten: Rewritten, folder: Path, weights: bool, others: Mapping[str, str] | None = None
) -> None:
    from .originals import save_originals
    from .report.picture import picture

    texts = {
        "model.py": model_text(rewritten),
        "test_model.py": test_text(rewritten),
        "report.json": json_text(rewritten.report),
        "graph.svg": picture(rewritten),
        "plan.md": plan_markdown(rewritten),
    }
    files = {name: write_file(folder / name, text) for name, text in texts.items()}
    if weights:
        state = rewritten.module.state_dict()
        check_finite(state, "the model", buffers_of(rewritten.module))
        files[WEIGHTS] = write_tensors(folder / WEIGHTS, state)
        if rewritten.unlowered is not None:
            files[ORIGINALS] = save_originals(rewritten, folder)
    files[DELTA] = save_delta(rewritten, folder / DELTA)
    program, reason = save_base(rewritten, folder, weights)
    files |= {**program, **(others or {})}
    write_file(folder / LOCK, lock_text(lock(rewritten, files, reason)))


def write_file(path: Path, text: str) -> str:
    """Writes a text; returns the hash of the file."""
    content = text.encode()
    path.write_bytes(content)
    return digest_of(content)


def lock(rewritten: Rewritten, files: Mapping[str, str], reason: str = "") -> dict[str, Any]:
    """What it takes to make the folder again.

    Args:
        rewritten: what is in the folder.
        files: the hash of each file in it.
        reason: why the base is not in it as data, if it is not.
    """
    import timm

    return {
        "made_by": MADE_BY,
        "lowered": rewritten.lowered,
        "spec_name": rewritten.spec.name,
        "spec": str(rewritten.spec),
        "spec_hash": rewritten.spec.hash,
        "places": [list(place) for place in rewritten.spec.places],
        "model": rewritten.model_name,
        "model_options": rewritten.model_options,
        "weights": rewritten.weights_request,
        "seed": rewritten.seed,
        "allocations": {
            k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()
        },
        "base_fingerprint": fingerprint(rewritten),
        **({"no_program": reason} if reason else {}),
        "versions": {
            "vitrewrite": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "files": dict(sorted(files.items())),
    }


# -- texts ----------------------------------------------------------------------------------------


def model_text(rewritten: Rewritten) -> str:
    """The text of `model.py`."""
    from .emission.file import model_file, patterns

    module = rewritten.module
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    what = "lowered from" if rewritten.lowered else "rewritten by"
    title = f"{rewritten.model_name} {what} {rewritten.spec.name}, written by vitrewrite."
    names = [n for n, _ in module.named_parameters()]
    spec = "\n".join(f"    {line}".rstrip() for line in str(rewritten.spec).strip().splitlines())
    story = spec.replace("\\", "\\\\").replace('"""', "'''") or "    No clauses."
    chosen = patterns(trained, names) if rewritten.result.steps else ()
    return model_file(rewritten.result.root, rewritten.source, title, story, chosen)


def test_text(rewritten: Rewritten) -> str:
    """The text of `test_model.py`."""
    from .emission.file import render
    from .tracing.guards import check_input

    unit: Any = rewritten.result.root
    fixed = any(n.target is check_input for n in unit.template.graph.nodes)
    params = rewritten.measures.params
    single = isinstance(unit.template.graph.output_node().args[0], fx.Node)
    return render(
        "test_model.py.jinja", shape=tuple(rewritten.result.example[0].shape[1:]), fixed=fixed,
        single=single, total=params.total, trainable=params.trainable,
    )  # fmt: skip


def plan_markdown(rewritten: Rewritten) -> str:
    """The text of `plan.md`: what changed."""
    from .report.text import allocation_lines, claim_lines, clause_lines, measure_lines

    blocks = [
        clause_lines(rewritten.result.steps),
        allocation_lines(rewritten.result.allocations)[:-1],
        measure_lines(rewritten.measures),
        claim_lines(rewritten.claims),
    ]
    body = "\n\n".join("\n".join(lines) for lines in blocks if lines)
    return (
        f"# {rewritten.spec.name} on {rewritten.model_name}\n\n"
        f"Weights: {rewritten.weights}.\n\n```\n{body}\n```\n\n![what changed](graph.svg)\n"
    )


def json_text(value: Mapping[str, Any]) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=2) + "\n"
