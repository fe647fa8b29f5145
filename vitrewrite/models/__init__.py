"""Models by name, and their weights."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..catalog import is_file
from ..catalog.models import HUGGING_FACE, full_name, refuse_unknown, with_own
from ..errors import CaptureError, FileError, MatchError, VitrewriteError
from ..language.keys import MODEL_ARGUMENTS
from ..language.references import ModelRef
from ..storage.tensors import check_finite, read_tensors
from ..text import did_you_mean, first_line
from ..tracing.construction import Uninitialised, construct
from ..tracing.undisturbed import seed as seed_torch
from . import hugging_face
from .bounds import refuse_huge
from .checkpoint import read_checkpoint
from .fitting import Fitting


@contextmanager
def asked_by(ref: ModelRef | None) -> Iterator[None]:
    """What is wrong with a model stands where a spec or command line asks for it.

    Args:
        ref: the line; None for a model that comes from Python.
    """
    try:
        yield
    except VitrewriteError as error:
        if ref is not None and error.span is None and isinstance(error, (MatchError, CaptureError)):
            said, _, reason = error.message.partition(": ")
            about = {"VR311": reason, "VR316": said}.get(error.code, "")
            of_arguments = " cannot be built with " in said
            error.span = ref.place_of(about) if of_arguments else ref.span
        raise


def create(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    weights: str = "random",
    seed: int = 0,
    meta: bool = False,
    initialise: bool = True,
    told: list[str] | None = None,
) -> nn.Module:
    """Builds a model.

    Args:
        name: a timm name, an alias, `hf:` and a model of Hugging Face, or `file.py:callable`.
        options: arguments of the constructor, or entries of a Hugging Face configuration.
        weights: `random` (seeded), `pretrained`, or a checkpoint: see `read_checkpoint`.
        seed: of random weights.
        meta: allocate and read no weights.
        initialise: without, random weights are left as memory was: they are loaded afterwards.
        told: gets what of a checkpoint was adapted, a line each.

    Raises:
        MatchError: VR310 for an unknown model, VR311 for arguments that its constructor refuses,
            VR313 where transformers is missing.
        FileError: VR710 to VR712 for weights that cannot be had or do not fit, VR716 for weights
            that are not finite.
    """
    options = with_own(name, options or {})
    refuse_huge(name, options)
    if meta:
        with torch.device("meta"), Uninitialised():  # there is nothing to fill
            model = construct(lambda: _build(name, options))
        model = model.to("meta")  # `torch.Tensor(3, 4)` heeds no device
        if weights not in ("random", "pretrained", "given"):
            _tell(told, Fitting(model, read_checkpoint(weights, meta=True)).fit())
        return model
    state = torch.get_rng_state()
    seed_torch(seed)
    try:
        if weights == "pretrained" and name.startswith(HUGGING_FACE):
            model = hugging_face.pretrained(name, options)
        elif weights == "pretrained":
            model = construct(lambda: _pretrained(name, options))
        else:
            with nullcontext() if initialise else Uninitialised():
                model = construct(lambda: _build(name, options))
    finally:
        torch.set_rng_state(state)
    if weights == "pretrained":
        check_finite(model.state_dict(), f"{name}, pretrained", buffers_of(model))
    elif weights != "random":
        _tell(told, load_checkpoint(model, weights))
    return model


def import_library(name: str) -> None:
    """Imports what builds a model of that name; code in a file imports itself what it needs."""
    if ".py:" not in name and not name.startswith(HUGGING_FACE):
        import timm  # noqa: F401


def load_checkpoint(model: nn.Module, path: str | Path) -> Fitting:
    """Loads a checkpoint, adapted to the model as far as timm does.

    Returns:
        What was adapted.

    Raises:
        FileError: VR711 if it cannot be read, VR712 if it is of another model, VR716 if a tensor
            is not finite; nothing is changed then.
    """
    found = Fitting(model, read_checkpoint(path)).fit()
    check_finite(found.state, found.source, buffers_of(model))
    model.load_state_dict(found.state, strict=False)  # what is fresh is as it was built
    return found


def _tell(told: list[str] | None, found: Fitting) -> None:
    if told is not None:
        told += found.told


# Arguments of timm's `create_model` that read files, pickles among them.
_READING = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
)


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    if ".py:" in name:
        return _from_file(name, options)
    if name.startswith(HUGGING_FACE):
        return hugging_face.build(name, options)
    timm_name = _known(name)
    for key in _READING:
        if key in options:
            raise MatchError(
                "VR311",
                f"'{name}' is not built with {key}",
                suggestion="give weights=pretrained or weights=FILE",
            )
    return _created(name, timm_name, options)


def _known(name: str) -> str:
    """The name that timm knows.

    Raises:
        MatchError: VR310 if it knows none.
    """
    import timm  # noqa: F401 - what code of the user has registered counts, too

    refuse_unknown(name)
    return full_name(name)


def _created(name: str, timm_name: str, options: Mapping[str, Any], **more: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(timm_name, **options, **more)
    except Exception as error:  # whatever a constructor raises for arguments that make no sense
        raise _refused(name, options, error) from error


_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


def _refused(name: str, options: Mapping[str, Any], error: BaseException) -> MatchError:
    """VR311, with the name that an unknown argument is near."""
    given = ", ".join(f"{k}={v}" for k, v in options.items())
    reason = first_line(error)
    unknown = _UNKNOWN.search(reason)
    return MatchError(
        "VR311",
        f"'{name}' cannot be built{' with ' * bool(given)}{given}: {reason}",
        suggestion=did_you_mean(unknown[1], MODEL_ARGUMENTS) if unknown else None,
    )


def _pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    """With weights from the hub, and from safetensors only; timm itself takes pickles as well."""
    if ".py:" in name:
        raise hugging_face.not_to_be_had(name, "only models of timm have some")
    import timm

    timm_name = _known(name)
    try:
        config = timm.models.get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        raise MatchError("VR310", first_line(error)) from error
    if config is None or not config.hf_hub_id:
        raise hugging_face.not_to_be_had(name, "the hub has no safetensors of it")
    source = {"file": _download(name, config.hf_hub_id), "custom_load": False}
    return _created(name, timm_name, options, pretrained=True, pretrained_cfg_overlay=source)


def _download(name: str, repository: str) -> str:
    """The local path of the weights of a repository."""
    try:
        return hugging_face.download(repository, "model.safetensors")
    except Exception as error:  # whatever the hub's client raises
        raise hugging_face.not_to_be_had(name, f"download failed: {first_line(error)}") from error


def _from_file(name: str, options: dict[str, Any]) -> nn.Module:
    path, _, function = name.rpartition(":")
    file = Path(path)
    if not is_file(file):
        raise MatchError("VR310", f"no file '{path}' to take '{function}' from")
    # A name of its own for each file, so that two emitted models can be loaded side by side.
    unique = f"vitrewrite_user_{hashlib.sha1(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
        model = getattr(module, function)(**options)
    except (Exception, SystemExit) as error:
        raise _refused(name, options, error) from error
    if not isinstance(model, nn.Module):
        raise MatchError("VR311", f"'{name}' returned a {type(model).__name__}, not a module")
    return model


def load_weights(model: nn.Module, path: Path, digest: str | None = None) -> None:
    """Loads a safetensors file, strictly.

    Args:
        model: gets them.
        path: the file.
        digest: its hash, if a lock file says so.

    Raises:
        FileError: VR711 if it cannot be read, VR712 if it does not fit, VR715 if it was changed,
            VR716 if a tensor is not finite.
    """
    load_state(model, read_tensors(path, digest=digest).tensors, str(path))


def buffers_of(model: nn.Module) -> set[str]:
    """Names of what is no parameter: masks may hold infinities."""
    return {name for name, _ in model.named_buffers(remove_duplicate=False)}


def load_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str, *, share: bool = False
) -> None:
    """Loads tensors by name, strictly.

    Args:
        model: gets them.
        state: the tensors.
        source: where they are from, in words.
        share: take them as they are where they are of the same kind; nobody may write into them.

    Raises:
        FileError: VR712 if they do not fit, VR716 if one is not finite; nothing is changed then.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    odd = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or odd:
        notes = [
            f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for what, names in (("missing", missing), ("unexpected", extra), ("other shape", odd))
            if names
        ]
        raise FileError("VR712", f"the weights in '{source}' do not fit the model", notes=notes)
    check_finite(state, source, buffers_of(model))
    alike = all(_kind(state[k]) == _kind(t) for k, t in own.items())
    # Of a copy: torch notes in what it is given that it was assigned.
    model.load_state_dict(dict(state), assign=share and alike)


def _kind(tensor: torch.Tensor) -> Any:
    return tensor.dtype, tensor.device
