"""Models of Hugging Face transformers: `hf:` and a shipped name, a folder, or a name on the hub.

Only configurations and safetensors are read: never a pickle, never code of a repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..catalog.models import HUGGING_FACE, config_of, shipped
from ..errors import FileError, MatchError
from ..storage.hashing import parsed, read_bytes
from ..text import did_you_mean, first_line, listing, shown
from ..tracing.construction import construct
from .bounds import refuse_huge
from .image_processors import FILE, record_of

SUPERVISION = "output_auxiliary_logits"  # as configurations call it


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A model with random weights.

    Args:
        name: `hf:` and a shipped name, a folder with a `config.json`, or a name on the hub.
        options: entries of the configuration to change.

    Raises:
        MatchError: VR310 for an unknown model, VR311 for options that it does not have, VR313
            without transformers.
    """
    config, cls = _configured(name, options)
    return _with_record(name, _created(name, cls, config, options))


def supervised(name: str) -> dict[str, Any]:
    """Options that make a model return every prediction that its loss supervises, if it has some.

    Raises:
        MatchError: as `build`.
    """
    config, _ = _configured(name, {})
    return {SUPERVISION: True} if hasattr(config, SUPERVISION) else {}


def pretrained(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A model with the weights in its folder, or those of the hub.

    Raises:
        MatchError: as `build`.
        FileError: VR710 if there are none, VR712 if they lack something.
    """
    config, cls = _configured(name, options)
    folder = _weights_folder(name)
    model = construct(lambda: _created(name, cls, config, options))
    with _quiet():
        try:
            loaded, report = cls.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes="num_labels" in options,
                output_loading_info=True,
            )
        except Exception as error:  # the library raises many kinds
            raise FileError(
                "VR711", f"cannot read the weights in '{folder}': {first_line(error)}"
            ) from error
    missing = sorted(report["missing_keys"])
    if missing and "num_labels" not in options:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileError(
            "VR712",
            f"the weights of '{name}' do not fit the model",
            notes=[f"missing: {missing[0]}{more}"],
        )
    model.load_state_dict(loaded.state_dict())
    return _with_record(name, model)


def _with_record(name: str, model: nn.Module) -> nn.Module:
    """Has a model know how its images are prepared, in a record as timm's models have one."""
    kind = str(_values(name)["model_type"])
    if found := record_of(kind, _beside(name, FILE)):
        model.__dict__["pretrained_cfg"] = found
    return model


def _beside(name: str, file: str) -> Path | None:
    """A file beside a checkpoint, if there is one."""
    short = name.removeprefix(HUGGING_FACE)
    folder = Path(short).expanduser()
    if name in shipped() or folder.is_dir():
        path = folder / file
        return path if name not in shipped() and path.is_file() else None
    try:
        return Path(download(short, file))
    except Exception:  # whatever the hub's client raises: not every checkpoint has one
        return None


def _created(name: str, cls: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
    with _quiet():
        try:
            model: nn.Module = cls(config)
        except Exception as error:  # whatever a constructor raises for what makes no sense
            raise _refused(name, options, first_line(error)) from error
    return model


def _refused(name: str, options: Mapping[str, Any], reason: str, **more: Any) -> MatchError:
    given = ", ".join(f"{k}={v}" for k, v in options.items()) or "its configuration"
    return MatchError("VR311", f"'{name}' cannot be built with {given}: {reason}", **more)


# -- configurations -------------------------------------------------------------------------------


def _configured(name: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configuration with the options in it, and the class that takes it."""
    transformers = _transformers()
    values = _values(name)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise MatchError("VR310", f"no model '{name}': transformers knows no {shown(kind)}")
    refuse_huge(name, values)
    with _quiet():
        try:
            config = transformers.CONFIG_MAPPING[kind].from_dict(values)
            cls, config = _class(transformers, name, config)
            for key, value in options.items():
                _set(name, config, key, value, options)
            config = type(config).from_dict(config.to_dict())  # validates, and rebuilds its parts
        except MatchError:
            raise
        except Exception as error:  # configurations validate themselves, each in its own way
            raise _refused(name, options, first_line(error)) from error
    return config, cls


def _set(name: str, config: Any, key: str, value: Any, options: Mapping[str, Any]) -> None:
    known = ["num_labels", *(k for k in config.to_dict() if not k.startswith("_"))]
    if key not in known and not hasattr(config, key):
        near = did_you_mean(key, known)
        raise _refused(name, options, f"its configuration has no '{key}'", suggestion=near)
    old = getattr(config, key, None)
    if isinstance(value, str) and isinstance(old, (int, float, list, tuple)):
        kind = "true or false" if isinstance(old, bool) else "a number"
        kind = "a list" if isinstance(old, (list, tuple)) else kind
        raise _refused(name, options, f"{key} is {kind}, not {shown(value)}")
    sides = value if isinstance(value, tuple) else (value, value)
    if key == "image_size" and not (len(sides) == 2 and all(_is_count(side) for side in sides)):
        raise _refused(name, options, f"{key} is a number of pixels, or height and width")
    if key == "num_labels" and not _is_count(value):
        raise _refused(name, options, f"{key} is a number of classes, at least 1")
    setattr(config, key, list(value) if isinstance(value, tuple) else value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _class(transformers: Any, name: str, config: Any) -> tuple[Any, Any]:
    """The class for a configuration; of a model for images and text, the part for images."""
    tower = getattr(config, "vision_config", None)
    if tower is not None and getattr(config, "text_config", None) is not None:
        config, wanted = tower, [type(tower).__name__.replace("Config", "Model")]
    else:
        wanted = list(getattr(config, "architectures", None) or ())
    for each in wanted:
        cls = getattr(transformers, str(each), None)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            return cls, config
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.MODEL_MAPPING[type(config)], config
    raise MatchError("VR310", f"no model '{name}': transformers has no {listing(wanted)}")


def _values(name: str) -> dict[str, Any]:
    """What the `config.json` of a model says."""
    short = name.removeprefix(HUGGING_FACE)
    if name in shipped():
        return _read(config_of(name), name)
    folder = Path(short).expanduser()
    if folder.is_dir():
        return _read(folder / "config.json", name)
    if short.startswith((".", "/", "~")):
        raise MatchError("VR310", f"no folder '{short}' to take a model from")
    try:
        path = download(short, "config.json")
    except Exception as error:  # whatever the hub's client raises
        raise MatchError(
            "VR310",
            f"no model '{name}' here, and its configuration cannot be downloaded: "
            f"{first_line(error)}",
            notes=[f"without a network: {listing(shipped())}, or hf: and a folder"],
            suggestion=did_you_mean(name, shipped()),
        ) from error
    return _read(Path(path), name)


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        values = parsed(read_bytes(path))
    except (OSError, ValueError) as error:
        reason = f"cannot read '{path}': {first_line(error)}"
        raise MatchError("VR310", f"no model '{name}': {reason}") from error
    if not isinstance(values, dict):
        raise MatchError("VR310", f"no model '{name}': '{path}' holds no configuration")
    return values


def _weights_folder(name: str) -> Path:
    short = name.removeprefix(HUGGING_FACE)
    folder = Path(short).expanduser()
    try:
        if name in shipped():
            raise not_to_be_had(name, "only its configuration is shipped")
        if folder.is_dir():
            if not any(folder.glob("*.safetensors")):
                raise not_to_be_had(name, "its folder has no safetensors")
            return folder
        return Path(download(short, "model.safetensors")).parent
    except FileError:
        raise
    except Exception as error:  # whatever the hub's client raises
        raise not_to_be_had(name, f"download failed: {first_line(error)}") from error


def not_to_be_had(name: str, reason: str) -> FileError:
    """VR710, for any model."""
    return FileError(
        "VR710",
        f"no pretrained weights of '{name}': {reason}",
        suggestion="download them elsewhere and give weights=FILE.safetensors",
    )


def download(repository: str, file: str) -> str:
    """The local path of a file on the hub; raises whatever the hub's client does."""
    import huggingface_hub as hub

    repository, _, revision = repository.partition("@")
    where: dict[str, Any] = {
        "repo_id": repository, "filename": file, "revision": revision or None,
    }  # fmt: skip
    cached = hub.try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return cached
    # The download itself tries again for a minute where there is no network at all.
    hub.get_hf_file_metadata(hub.hf_hub_url(**where), timeout=10)
    return str(hub.hf_hub_download(**where))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MatchError(
            "VR313",
            "models of Hugging Face need transformers, which is not installed",
            suggestion="pip install 'vitrewrite[mask2former]'",
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks that transformers prints about models that are fine."""
    logging = _transformers().logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
