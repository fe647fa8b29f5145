"""What `apply` and `lower` write: a folder, all or nothing."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..catalog.models import full_name
from ..disk import LOCK, MADE_BY, check_target, filling, replacing
from ..errors import EmitError
from ..language import Spec
from ..models import buffers_of
from ..storage.hashing import digest_of, hashed_once
from ..storage.tensors import check_finite, write_tensors
from ..text import listing
from ..tracing import inputs
from ..tracing.about import about
from ..tracing.undisturbed import undisturbed
from ..version import __version__
from .base import save_base
from .delta import save_delta
from .gates import opened
from .identity import fingerprint
from .lock import DELTA, ORIGINALS, WEIGHTS, lock_text
from .readme import docstring_lines, readme
from .usage import PREPROCESSING, Usage

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten


ARCHITECTURE = "architecture.peft"
"""What a search found, as a spec: it makes the same model anew."""


@undisturbed()
def emit(rewritten: Rewritten, out: str | Path, *, weights: bool = True) -> Path:
    """Writes the folder of a rewritten model.

    Args:
        rewritten: the model.
        out: the folder; one that vitrewrite made is replaced, any other is refused. What others
            put into it stays.
        weights: whether to write `weights.safetensors`.

    Raises:
        FileError: VR701 if the folder is something else, VR702 if it cannot be written, VR716 if a
            tensor is not finite, VR734 if a file of somebody else is in the way, VR735 if another
            process is writing it.
        EmitError: VR80x if the source does not run, or computes something else; nothing is
            written then.
    """
    target = Path(out)
    check_target(target)
    source = checked_text(rewritten)
    with replacing(target) as folder, hashed_once():
        _write_all(rewritten, source, folder, weights)
    return target


@undisturbed()
def emit_into(
    rewritten: Rewritten,
    folder: Path,
    *,
    weights: bool = True,
    others: Mapping[str, str] | None = None,
) -> None:
    """Writes the files of a rewritten model into a folder that holds other things too.

    File by file; the lock file, which makes it a folder of vitrewrite, is the last.

    Args:
        rewritten: the model.
        folder: where to.
        weights: whether to write `weights.safetensors`.
        others: hashes of files that are there already, by name, which the folder answers for.

    Raises:
        FileError: VR702 if it cannot be written, VR716 if a tensor is not finite.
        EmitError: as `emit`.
    """
    source = checked_text(rewritten)
    with filling(folder, frozenset(others or ())) as growing, hashed_once():
        _write_all(rewritten, source, growing, weights, others)


def _write_all(
    rewritten: Rewritten,
    source: str,
    folder: Path,
    weights: bool,
    others: Mapping[str, str] | None = None,
) -> None:
    from ..report.picture import picture
    from .originals import save_originals

    usage = Usage.of(rewritten)
    texts = {
        "README.md": readme(rewritten, usage, weights=weights),
        **({PREPROCESSING: json_text(usage.to_json())} if usage is not None else {}),
        "model.py": source,
        "test_model.py": test_text(rewritten),
        "report.json": json_text(rewritten.report),
        "graph.svg": picture(rewritten),
        "plan.md": plan_markdown(rewritten),
        **({ARCHITECTURE: str(rewritten.stated)} if rewritten.result.found else {}),
    }
    files = {name: write_file(folder / name, text) for name, text in texts.items()}
    if weights:
        state = rewritten.module.state_dict()
        check_finite(state, "the model", buffers_of(rewritten.module))
        files[WEIGHTS] = write_tensors(folder / WEIGHTS, state)
        if rewritten.unlowered is not None:
            files[ORIGINALS] = save_originals(rewritten, folder)
    base = fingerprint(rewritten)
    files[DELTA] = save_delta(rewritten, folder / DELTA, base)
    program, reason = save_base(rewritten, folder, weights)
    files |= {**program, **(others or {})}
    write_file(folder / LOCK, lock_text(lock(rewritten, files, base, reason)))


def write_file(path: Path, text: str) -> str:
    """Writes a text; returns the hash of the file."""
    content = text.encode()
    path.write_bytes(content)
    return digest_of(content)


def lock(
    rewritten: Rewritten, files: Mapping[str, str], base: str, reason: str = ""
) -> dict[str, Any]:
    """What it takes to make the folder again.

    Args:
        rewritten: what is in the folder.
        files: the hash of each file in it.
        base: the fingerprint of the base.
        reason: why the base is not in it as data, if it is not.
    """
    import timm

    stated = inputs.statement(rewritten.base, about(rewritten.base).example)
    return {
        "made_by": MADE_BY,
        "lowered": rewritten.lowered,
        "spec_name": rewritten.spec.name,
        "spec": str(rewritten.spec),
        "spec_hash": rewritten.stated.hash,
        **_beside(rewritten.spec),
        "places": [list(place) for place in rewritten.spec.places],
        "model": rewritten.model_name,
        "model_options": rewritten.model_options,
        **({} if stated is None else {"input": stated}),
        "weights": rewritten.weights_request,
        "seed": rewritten.seed,
        "allocations": {
            k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()
        },
        **rewritten.result.chosen,
        **opened(rewritten),
        "base_fingerprint": base,
        **({"notes": list(notes)} if (notes := about(rewritten.base).notes) else {}),
        **({"no_program": reason} if reason else {}),
        "versions": {
            "vitrewrite": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "files": dict(sorted(files.items())),
    }


def _beside(spec: Spec) -> dict[str, str]:
    """Where files of passes lie that a spec names, if it names any."""
    found = [c.use.folder for c in spec.clauses if c.use is not None and c.use.file]
    return {"spec_folder": str(found[0].resolve())} if found else {}


# -- texts ----------------------------------------------------------------------------------------


def model_text(rewritten: Rewritten) -> str:
    """The text of `model.py`."""
    from ..emission.file import model_file, patterns
    from ..emission.source import print_classes

    module = rewritten.module
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    what = "lowered from" if rewritten.lowered else "rewritten by"
    title = f"{rewritten.model_name} {what} {rewritten.spec.name}, written by vitrewrite."
    names = [n for n, _ in module.named_parameters()]
    spec = "\n".join(f"    {line}".rstrip() for line in _done(rewritten))
    chosen, usage = patterns(trained, names), Usage.of(rewritten)
    story = "\n\n".join(filter(None, (spec, docstring_lines(usage)))) or "No clauses."
    stated = inputs.statement(module, rewritten.result.example)
    source = rewritten.source
    printed: Any = getattr(module, "printed", None)
    if printed is not None and printed.text != source.text:  # `set_grad_checkpointing` since
        source = print_classes(module)[0]
    return model_file(rewritten.result.root, source, title, story, chosen, stated)


def _done(rewritten: Rewritten) -> list[str]:
    """What was done to which model; what was asked of that, the folder's `README.md` says."""
    model, clauses = rewritten.spec.model, list(map(str, rewritten.spec.clauses))
    told = [] if model is None or str(model) == rewritten.model_name else [f"model {model}"]
    between = [""] if told and clauses else []
    lines = "\n".join((*told, *between, *clauses)).splitlines()
    broken = textwrap.TextWrapper(96, subsequent_indent="    ", break_on_hyphens=False)
    return [part for line in lines for part in broken.wrap(line) or [""]]


def checked_text(rewritten: Rewritten) -> str:
    """The text of `model.py`, which was run: it makes the model, and that computes the same.

    Raises:
        EmitError: VR80x if it does not.
    """
    from ..emission.checked import check_text

    bare = [k for k, v in rewritten.module.state_dict().items() if v.is_meta]
    if bare:
        message = f"the model has no weights: {listing(bare, 3)} on the meta device"
        raise EmitError("VR809", message, suggestion="build it on a real device")
    text = model_text(rewritten)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return text  # a sharded model runs in all processes or in none, and one of them writes
    check_text(text, rewritten.module, rewritten.result.example)
    return text


def test_text(rewritten: Rewritten) -> str:
    """The text of `test_model.py`."""
    from ..emission.file import render
    from ..tracing.guards import check_input

    unit: Any = rewritten.result.root
    fixed = any(n.target is check_input for n in unit.template.graph.nodes)
    params = rewritten.measures.params
    single = isinstance(unit.template.graph.output_node().args[0], fx.Node)
    examples = rewritten.result.example
    example, many = examples[0], len(examples) > 1
    exact = example.dtype in (torch.float32, torch.float64)
    timms = _starts_as_timms(rewritten)
    alone, through = _tried(rewritten)
    return render(
        "test_model.py.jinja",
        shape=tuple(example.shape[1:]),
        fixed=fixed and not many,
        many=many,
        inputs=[(tuple(v.shape[1:]), v.dtype) for v in examples],
        single=single,
        total=params.total,
        trainable=params.trainable,
        dtype="" if example.dtype == torch.float32 else str(example.dtype),
        close="rtol=1e-3, atol=1e-4" if exact else "rtol=6e-2, atol=6e-2",
        original=repr(full_name(rewritten.model_name)) if timms and not many else "",
        options=pformat(rewritten.model_options, width=88, sort_dicts=True),
        alone=alone,
        through=through,
    )


def _starts_as_timms(rewritten: Rewritten) -> bool:
    """Whether it starts as a model that timm builds, so that its tests can compare the two."""
    methods = rewritten.result.methods.values()
    starts_equal = all("same_output_at_init" in m.claims for m in methods)
    named = rewritten.weights_request != "given" and ":" not in rewritten.model_name
    whole = not rewritten.result.anatomy.gone
    one = not rewritten.spec.bases
    return named and starts_equal and whole and one and not rewritten.lowered


def _tried(rewritten: Rewritten) -> tuple[list[int], list[int]]:
    """Numbers of stitches that are models by themselves, and of one through each layer."""
    space = rewritten.measures.stitches
    found: dict[int | None, list[int]] = {}
    for stitch in space.stitches if space is not None else ():
        found.setdefault(stitch.path.layer, []).append(stitch.number)
    alone = found.pop(None, [])
    return alone, [numbers[0] for numbers in found.values()]


def plan_markdown(rewritten: Rewritten) -> str:
    """The text of `plan.md`: what changed."""
    from ..emission.literals import one_line
    from ..rewrite.text import (
        allocation_lines,
        claim_lines,
        clause_lines,
        measure_lines,
        order_lines,
        size_lines,
    )

    blocks = [
        [
            *clause_lines(rewritten.result.steps),
            *map(str, rewritten.spec.absent),
            *order_lines(rewritten.result.orders),
            *size_lines(rewritten.result.stream.holding),
        ],
        allocation_lines(rewritten.result.allocations)[:-1],
        measure_lines(rewritten.measures),
        claim_lines(rewritten.claims),
    ]
    body = "\n".join(
        one_line(line)
        for i, lines in enumerate(filter(None, blocks))
        for line in ([""] if i else []) + "\n".join(lines).split("\n")
    )
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return (
        f"# {one_line(rewritten.spec.name)} on {one_line(rewritten.model_name)}\n\n"
        f"Weights: {one_line(rewritten.weights)}.\n\n{fence}\n{body}\n{fence}\n\n"
        "![what changed](graph.svg)\n"
    )


def json_text(value: Mapping[str, Any]) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=2) + "\n"
