"""What `apply` and `lower` write: a folder, all or nothing."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import __version__
from .disk import LOCK, MADE_BY, open_to_readers, replacing, replacing_file, reported
from .errors import FileError
from .fingerprint import fingerprint_of
from .reading import regular

if TYPE_CHECKING:
    from .rewrite.rewritten import Rewritten

DELTA_FORMAT = "vitrewrite delta 1"


def emit(rewritten: Rewritten, out: str | Path, *, weights: bool = True) -> Path:
    """Writes the folder of a rewritten model.

    Args:
        rewritten: the model.
        out: the folder; one that vitrewrite made is replaced, any other is refused.
        weights: whether to write `weights.safetensors`.

    Raises:
        FileError: VR701 if the folder is something else, VR702 if it cannot be written.
    """
    target = Path(out)
    with replacing(target) as folder:
        _write_all(rewritten, folder, weights)
    return target


def emit_into(rewritten: Rewritten, folder: Path, *, weights: bool = True) -> None:
    """Writes the files of a rewritten model into a folder that holds other things too.

    File by file; the lock file, which makes it a folder of vitrewrite, is the last.

    Raises:
        FileError: VR702 if it cannot be written.
    """
    with reported(folder), tempfile.TemporaryDirectory(prefix=".files.", dir=folder) as name:
        temporary = Path(name)
        _write_all(rewritten, temporary, weights)
        open_to_readers(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == LOCK):
            path.replace(folder / path.name)


def _write_all(rewritten: Rewritten, folder: Path, weights: bool) -> None:
    from safetensors.torch import save_file

    from .originals import save_originals
    from .report.picture import picture

    texts = {
        "model.py": model_text(rewritten),
        "test_model.py": test_text(rewritten),
        "report.json": json_text(rewritten.report),
        "graph.svg": picture(rewritten),
        "plan.md": plan_markdown(rewritten),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if weights:
        save_file(state_of(rewritten.module), folder / "weights.safetensors")
        if rewritten.unlowered is not None:
            save_originals(rewritten, folder)
    save_delta(rewritten, folder / "delta.safetensors")
    (folder / LOCK).write_text(json_text(lock(rewritten, folder)), encoding="utf-8")


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with storage of its own for every tensor, as safetensors wants it."""
    return {k: v.detach().cpu().clone().contiguous() for k, v in module.state_dict().items()}


def lock(rewritten: Rewritten, folder: Path) -> dict[str, Any]:
    """What it takes to make the folder again, and hashes of what is in it."""
    import timm

    return {
        "made_by": MADE_BY,
        "lowered": rewritten.lowered,
        "spec_name": rewritten.spec.name,
        "spec": str(rewritten.spec),
        "spec_hash": rewritten.spec.hash,
        "model": rewritten.model_name,
        "model_options": rewritten.model_options,
        "weights": rewritten.weights_request,
        "seed": rewritten.seed,
        "allocations": {
            k: a.to_json(entries=True) for k, a in rewritten.result.allocations.items()
        },
        "base_fingerprint": fingerprint(rewritten),
        "versions": {
            "vitrewrite": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "files": {p.name: _hash(p) for p in sorted(folder.iterdir())},
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=20)
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(rewritten: Rewritten) -> str:
    """Identifies the frozen weights of the original model."""
    return fingerprint_of(rewritten.base.state_dict(), rewritten.result.base_trained)


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


# -- deltas ---------------------------------------------------------------------------------------


def save_delta(rewritten: Rewritten, path: str | Path) -> None:
    """Writes what the spec added or trains, with what it belongs to in the metadata.

    Raises:
        FileError: VR702 if the file cannot be written.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": DELTA_FORMAT,
        "model": rewritten.model_name,
        "spec": rewritten.spec.name,
        "spec_hash": rewritten.spec.hash,
        "base_fingerprint": fingerprint(rewritten),
        "vitrewrite": __version__,
        "torch": torch.__version__,
    }
    tensors = {k: v.cpu().clone().contiguous() for k, v in rewritten.delta().items()}
    with replacing_file(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def load_delta(rewritten: Rewritten, path: str | Path) -> None:
    """Loads a delta into a model that the same spec made from the same base.

    Raises:
        FileError: VR711 if it cannot be read, VR720 for another base, VR721 for another spec,
            VR722 for missing, unexpected or misshapen tensors. Nothing is changed then.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(regular(path)), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileError("VR711", f"cannot read the delta '{path}': {error}") from error
    _check_delta(rewritten, metadata, tensors, path)
    with torch.no_grad():
        for name, tensor in rewritten.delta().items():
            tensor.copy_(tensors[name])


def _check_delta(
    rewritten: Rewritten,
    metadata: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
) -> None:
    known = {"model", "spec", "spec_hash", "base_fingerprint"} <= metadata.keys()
    if metadata.get("format") != DELTA_FORMAT or not known:
        raise FileError("VR711", f"'{path}' is no delta of vitrewrite")
    if metadata["spec_hash"] != rewritten.spec.hash:
        raise FileError(
            "VR721",
            f"the delta '{path}' is of the spec '{metadata['spec']}', which is not this one",
            notes=["the spec was changed, or other overrides were given"],
        )
    if metadata["base_fingerprint"] != fingerprint(rewritten):
        raise FileError(
            "VR720",
            f"the delta '{path}' was made on other base weights of {metadata['model']}",
            suggestion="apply the spec to the weights that it was trained on",
        )
    own = rewritten.delta()
    odd = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    found = (
        ("missing", sorted(own.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - own.keys())),
        ("of another shape", sorted(odd)),
    )
    notes = [f"{what}: {', '.join(names[:4])}" for what, names in found if names]
    if notes:
        raise FileError("VR722", f"the delta '{path}' does not fit", notes=notes)
