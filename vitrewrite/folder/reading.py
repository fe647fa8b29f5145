"""Folders read back into models, out of the folder alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from .. import models
from ..disk import LOCK
from ..errors import FileError, VitrewriteError
from ..language import Spec, parse_spec
from ..models.stitched import requested
from ..rewrite.compilation import Compilation
from ..rewrite.lowered import lowered
from ..rewrite.rewritten import Rewritten
from ..rewrite.unlowering import same_bits
from ..rewrite.weights import weighted
from ..storage.tensors import check_finite, read_tensors
from ..text import first_line, listing
from ..tracing import inputs, trace
from ..tracing.about import about, tell
from .base import load_base
from .delta import load_delta
from .gates import open_as
from .identity import fingerprint
from .lock import DELTA, ORIGINALS, PROGRAM, WEIGHTS, Folder
from .originals import unlowered_state
from .usage import PREPROCESSING, Usage


@dataclass(frozen=True)
class Trust:
    """What a user allows a folder of somebody.

    Attributes:
        code: whether code that its lock file names may run.
        model: `file.py:callable` to build the model with, named by the user.
    """

    code: bool = False
    model: str | None = None


NONE = Trust()


def load_folder(path: Path, trust: Trust = NONE) -> Rewritten:
    """The rewritten model of a folder, with its delta; a lowered one with its weights.

    The model is made of what is in the folder. Only where that is not enough it is built by name,
    and code in a file only if the user trusts it.

    Raises:
        FileError: VR703 if it is no folder of ours, VR704 if it has neither its base nor a name for
            it, VR711 to VR716, VR719 to VR722 for files that are damaged or not of this folder,
            VR718 if it takes code that the user did not name.
    """
    return Loader(Folder.open(path), trust).load()


def rewritten_folder(path: Path, trust: Trust = NONE, delta: Path | None = None) -> Rewritten:
    """The rewritten model of a folder that is not lowered.

    Args:
        path: the folder.
        trust: what it may do.
        delta: a file to take the delta from, in place of the folder's own.

    Raises:
        FileError: VR705 if it is lowered, and what `load_folder` raises.
    """
    folder = Folder.open(path)
    if folder.lock["lowered"]:
        raise FileError(
            "VR705",
            f"'{path}' is lowered already",
            suggestion="'vitrewrite lower --undo' turns it back",
        )
    return Loader(folder, trust).load(delta)


def unlowered_folder(path: Path, trust: Trust = NONE) -> Rewritten:
    """The model that a lowered folder was made from, bit for bit, out of that folder alone.

    Raises:
        FileError: VR703; VR706 if it is not lowered; VR704, VR718 if its model cannot be built
            again; VR711 to VR716 if its weights or originals are damaged; VR720 if they are not
            those of the lock file.
    """
    folder = Folder.open(path)
    if not folder.lock["lowered"]:
        raise FileError(
            "VR706",
            f"'{path}' is not lowered, so there is nothing to turn back",
            suggestion="leave out --undo to lower it",
        )
    return Loader(folder, trust).unlowered()


@dataclass(frozen=True)
class Loader:
    """Makes the model of a folder."""

    folder: Folder
    trust: Trust

    def load(self, delta: Path | None = None) -> Rewritten:
        """The model, lowered if the folder is."""
        if self.folder.lock["lowered"]:
            return self._lowered()
        state = self._weights()
        rewritten = self._applied(state)
        self._check_base(rewritten)
        if delta is not None:
            load_delta(rewritten, delta)
            return rewritten
        load_delta(rewritten, self._path(DELTA), self.folder.digest(DELTA))
        if state is not None:
            self._check_weights(rewritten, state)
        return rewritten

    def unlowered(self) -> Rewritten:
        """Of a lowered folder: the model that it was made from."""
        state = unlowered_state(self.folder)
        rewritten = self._applied(state)
        models.load_state(rewritten.module, state, str(self.folder.path))
        own = rewritten.module.state_dict()
        if not all(same_bits(v, state[k]) for k, v in own.items()):
            raise self._others()
        self._check_base(rewritten)
        return rewritten

    def _lowered(self) -> Rewritten:
        if self.folder.has(ORIGINALS):
            rewritten = lowered(self.unlowered())
        else:  # the base is not known: what is there gives the structure
            made = self._applied(self._weights(), whole=False)
            try:
                open_as(self.folder, made)
            except (AttributeError, IndexError, TypeError) as error:
                raise self._odd(f"{type(error).__name__} {first_line(error)}") from error
            rewritten = lowered(made)
            rewritten.unlowered = None
        models.load_weights(rewritten.module, self._path(WEIGHTS), self.folder.digest(WEIGHTS))
        return rewritten

    def _path(self, name: str) -> Path:
        return self.folder.path / name

    def _weights(self) -> dict[str, torch.Tensor] | None:
        if not self.folder.has(WEIGHTS):
            return None
        return read_tensors(self._path(WEIGHTS), digest=self.folder.digest(WEIGHTS)).tensors

    # -- the base ---------------------------------------------------------------------------------

    def _applied(
        self, state: Mapping[str, torch.Tensor] | None, *, whole: bool = True
    ) -> Rewritten:
        """The spec of the lock file, carried out again on the base."""
        lock = self.folder.lock
        if re.search(
            r"^\s*include\b", lock["spec"], re.MULTILINE
        ):  # it is resolved: that reads files
            raise self._odd("its spec includes another")
        beside = Path(lock.get("spec_folder") or ".")
        spec = parse_spec(lock["spec"] + "\n", folder=beside).renamed(lock["spec_name"])
        self._refuse_files(spec)
        if len(spec.clauses) != len(lock["places"]):
            raise self._odd("it has other clauses than places of them")
        spec = spec.placed(lock["places"])
        request = requested(spec, lock["model"], lock["weights"], lock["seed"], self._options)
        original, base = self._base(state, whole)
        base.eval()  # as models by name are
        where = self._path(WEIGHTS) if state is not None else self.folder.path
        check_finite(base.state_dict(), where, models.buffers_of(base))
        try:
            known = {**lock["allocations"], **lock.get("choices", {})}
            made = Compilation.of(request, base, allocations=known)
            rewritten = weighted(made)
        except VitrewriteError:
            raise
        except Exception as error:  # a program or allocation of others makes torch say anything
            raise self._odd(f"{type(error).__name__} {first_line(error)}") from error
        rewritten.trained = True
        rewritten.original, rewritten.buildable = original, self._may_build
        return rewritten

    def _refuse_files(self, spec: Spec) -> None:
        """Passes in files that the spec names are code of whoever wrote it."""
        files = [c.use.key for c in spec.clauses if c.use is not None and c.use.file]
        if files and not self.trust.code:
            raise FileError(
                "VR718",
                f"'{self.folder.path}' was written with the code {files[0]!r}",
                suggestion="--trust runs it",
            )

    @cached_property
    def _options(self) -> dict[str, object]:
        found = self.folder.lock["model_options"]
        return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}

    @property
    def _may_build(self) -> bool:
        """Whether the model of the lock file may be built by its name."""
        lock = self.folder.lock
        code = ".py:" in lock["model"] and not (self.trust.code or self.trust.model)
        return lock["weights"] != "given" and not code

    def _base(
        self, state: Mapping[str, torch.Tensor] | None, whole: bool
    ) -> tuple[nn.Module | None, nn.Module]:
        """The model itself, if it has to be built, and the captured one."""
        if self.trust.model is None and state is not None and self.folder.has(PROGRAM):
            return None, load_base(self.folder, state, whole=whole)
        original = self._built(state)
        example = inputs.stated_input(original, self.folder.lock.get("input"))
        base = trace(original, example)
        if self.folder.has(PREPROCESSING):  # what was told of the images is in no code
            usage = Usage.from_json(self.folder.json(PREPROCESSING))
            tell(base, pretrained_cfg={**(about(base).pretrained_cfg or {}), **usage.record})
        return original, base

    def _built(self, state: Mapping[str, torch.Tensor] | None) -> nn.Module:
        """The model by name, where the folder does not have all of it."""
        lock, path = self.folder.lock, self.folder.path
        named = self.trust.model
        if named is None and not self._may_build:
            lacks = "no weights" if state is None else f"no {PROGRAM}"
            notes = (
                [f"because {lock['no_program']}"] if isinstance(lock.get("no_program"), str) else []
            )
            if lock["weights"] == "given":
                raise FileError(
                    "VR704",
                    f"'{path}' was made from a model object and has {lacks} to build it from",
                    notes=notes,
                    suggestion="apply the spec in Python and use vitrewrite.load",
                )
            raise FileError(
                "VR718",
                f"'{path}' has {lacks}, and its model is the code {lock['model']!r}",
                notes=notes,
                suggestion="--trust runs it, or model=FILE.py:CALLABLE names it",
            )
        weights = lock["weights"] if state is None else "random"
        weights = "random" if weights == "given" else weights
        model = models.create(
            named or lock["model"], self._options, weights=weights, seed=lock["seed"]
        )
        if state is not None:
            own = model.state_dict().keys()
            models.load_state(model, {k: v for k, v in state.items() if k in own}, str(path))
        return model

    def _odd(self, reason: str) -> FileError:
        return FileError("VR703", f"'{self._path(LOCK)}' says what no run wrote: {reason}")

    # -- checks -----------------------------------------------------------------------------------

    def _check_base(self, rewritten: Rewritten) -> None:
        if fingerprint(rewritten) != self.folder.lock["base_fingerprint"]:
            raise self._others()

    def _others(self) -> FileError:
        where = self._path(WEIGHTS) if self.folder.has(WEIGHTS) else self.folder.path
        return FileError(
            "VR720", f"the weights in '{where}' are not those that its {LOCK} is about"
        )

    def _check_weights(self, rewritten: Rewritten, found: Mapping[str, torch.Tensor]) -> None:
        """The weights are what the delta makes of the base, bit by bit."""
        own = rewritten.module.state_dict()
        odd = [
            k
            for k in sorted(own.keys() | found.keys())
            if k not in own or k not in found or not same_bits(own[k], found[k])
        ]
        if odd:
            raise FileError(
                "VR714",
                f"'{self._path(WEIGHTS)}' is not what '{DELTA}' makes of the base: "
                f"{listing(odd, 3)}",
                suggestion="write the folder again with vitrewrite.emit",
            )
