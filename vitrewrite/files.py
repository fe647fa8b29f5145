"""What `apply` and `lower` write: a folder, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import __version__
from .errors import FileError

if TYPE_CHECKING:
    from .rewrite.rewritten import Rewritten

LOCK = "lock.json"
MADE_BY = "vitrewrite"
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
    with _replacing(target) as folder:
        _write_all(rewritten, folder, weights)
    return target


def _write_all(rewritten: Rewritten, folder: Path, weights: bool) -> None:
    from safetensors.torch import save_file

    from .report.picture import picture

    texts = {
        "model.py": model_text(rewritten),
        "test_model.py": test_text(rewritten),
        "report.json": _json(rewritten.report),
        "graph.svg": picture(rewritten),
        "plan.md": plan_markdown(rewritten),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if weights:
        save_file(state_of(rewritten.module), folder / "weights.safetensors")
    save_delta(rewritten, folder / "delta.safetensors")
    (folder / LOCK).write_text(_json(lock(rewritten, folder)), encoding="utf-8")


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
    digest = hashlib.blake2b(digest_size=20)
    trained = rewritten.result.base_trained
    for name, tensor in sorted(rewritten.base.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if name not in trained:
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()


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
    from .report.text import claim_lines, clause_lines, measure_lines

    blocks = [
        clause_lines(rewritten.result.steps),
        measure_lines(rewritten.measures),
        claim_lines(rewritten.claims),
    ]
    body = "\n\n".join("\n".join(lines) for lines in blocks if lines)
    return (
        f"# {rewritten.spec.name} on {rewritten.model_name}\n\n"
        f"Weights: {rewritten.weights}.\n\n```\n{body}\n```\n\n![what changed](graph.svg)\n"
    )


def _json(value: Mapping[str, Any]) -> str:
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
    with _replacing_file(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def load_delta(rewritten: Rewritten, path: str | Path) -> None:
    """Loads a delta into a model that the same spec made from the same base.

    Raises:
        FileError: VR711 if it cannot be read, VR720 for another base, VR721 for another spec,
            VR722 for missing, unexpected or misshapen tensors. Nothing is changed then.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
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


# -- all or nothing -------------------------------------------------------------------------------


def check_target(target: Path) -> None:
    """Refuses a folder that vitrewrite did not make, or that cannot be written.

    Raises:
        FileError: VR701 or VR702.
    """
    with _reported(target):
        _check_place(target, _place(target))


def _place(target: Path) -> Path:
    """Where a folder lies really; a link to it stays a link."""
    return Path(os.path.realpath(target))


def _check_place(target: Path, place: Path) -> None:
    here = Path.cwd()
    if place in (here, *here.parents):
        what = "the folder that we are in"
    elif place.is_dir():
        if not any(place.iterdir()) or _is_ours(place):
            return
        what = "a folder that vitrewrite did not make"
    elif place.exists():
        what = "a file that vitrewrite did not make"
    else:
        parent = next(p for p in place.parents if p.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"'{parent}' is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write to '{parent}'")
        return
    raise FileError(
        "VR701",
        f"'{target}' is {what}, and is left alone",
        suggestion="give another folder with --out",
    )


def _is_ours(folder: Path) -> bool:
    try:
        text = (folder / LOCK).read_text(encoding="utf-8")
        return bool(json.loads(text)["made_by"] == MADE_BY)
    except (ValueError, KeyError, TypeError, OSError):
        return False


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` when everything is written."""
    with _reported(target):
        place = _place(target)
        old = place.with_name(f".{place.name}.old")
        if not place.exists() and _is_ours(old):
            old.rename(place)  # a run was killed between the two renames of `_swap`
        _check_place(target, place)
        made = [p for p in place.parents if not p.exists()]  # the innermost first
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with _reported(target):
            yield temporary
            _open_to_readers(temporary)
            _swap(temporary, place, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def _swap(temporary: Path, place: Path, old: Path) -> None:
    if not place.exists():
        temporary.rename(place)
        return
    if _is_ours(old):  # left by a run that was killed
        shutil.rmtree(old)
    place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _reported(target: Path) -> Iterator[None]:
    """What the system refuses, as an error of ours."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FileError("VR702", f"cannot write '{target}': {reason}") from error
    except SafetensorError as error:  # its own kind of error for a full disk
        raise FileError("VR702", f"cannot write '{target}': {error}") from error


def _open_to_readers(path: Path) -> None:
    """Temporary folders and safetensors files are private; ours are as the umask says."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    for file in path.glob("*.safetensors"):
        _open_to_readers(file)


@contextmanager
def _replacing_file(target: Path) -> Iterator[Path]:
    with _reported(target):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(descriptor)
    temporary = Path(name)
    try:
        with _reported(target):
            yield temporary
            _open_to_readers(temporary)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
