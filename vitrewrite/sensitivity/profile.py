"""Measurements on a model, as a file: what `vitrewrite profile` writes and specs use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..disk import replacing_file
from ..errors import FileError, ProfileError
from ..storage.tensors import read_tensors, write_tensors
from ..text import first_line, listing
from .listing import Candidate

SENSITIVITY = "sensitivity."
"""Prefix of sums of squared gradients, by parameter name."""

ACTIVATION = "activation."
"""Prefix of activations [samples, tokens, channels], by site and side: `blocks[3].output`."""


@dataclass(frozen=True)
class Profile:
    """Named measurements and how they were made.

    Attributes:
        tensors: by name: `sensitivity.<parameter>`, `activation.<site>.output` (and `.input`).
        about: how many samples, which rule, the model's fingerprint.
    """

    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def sensitivities(self, candidates: Sequence[Candidate]) -> dict[str, torch.Tensor]:
        """Squared gradients by parameter name, checked against the model's candidates.

        Raises:
            ProfileError: VR760 if parameters are missing or shaped otherwise, VR762 for numbers
                that are not finite, VR769 if it holds other measurements only.
        """
        if not any(name.startswith(SENSITIVITY) for name in self.tensors):
            raise ProfileError(
                "VR769",
                "the profile holds no sensitivities",
                suggestion="profile a spec with sensitive(...)",
            )
        found = {}
        for name in dict.fromkeys(c.parameter for c in candidates):
            tensor = self.tensors.get(f"{SENSITIVITY}{name}")
            ends = [c.rows[1] if c.rows else c.shape[0] for c in candidates if c.parameter == name]
            if tensor is None or tensor.shape[0] != max(ends):
                shown = "missing" if tensor is None else f"shaped {list(tensor.shape)}"
                raise ProfileError(
                    "VR760",
                    f"the profile is of another model: {name} is {shown}",
                    suggestion="run 'vitrewrite profile' on this model",
                )
            if not bool(tensor.isfinite().all()):
                raise ProfileError("VR762", f"the sensitivities of {name} are not finite")
            found[name] = tensor
        return found

    def check(self, fingerprint: str) -> None:
        """Whether it was measured on these weights, as far as the file says.

        Raises:
            ProfileError: VR760 if it was measured on others.
        """
        if self.about.get("fingerprint", fingerprint) != fingerprint:
            raise ProfileError(
                "VR760",
                "the profile was measured on other weights than the model's",
                notes=[f"on {self.about.get('model')}, weights {self.about.get('weights')}"],
                suggestion="run 'vitrewrite profile' on these weights",
            )

    def check_way(self, wanted: Mapping[str, Any]) -> None:
        """Whether it was measured as a selector wants it, as far as the file says.

        Args:
            wanted: `samples` and `per`.

        Raises:
            ProfileError: VR769 if it was measured another way.
        """
        made = {key: self.about.get("way", wanted).get(key) for key in wanted}
        if made != wanted:
            old, new = (f"{w['samples']} samples, per {w['per']}" for w in (made, wanted))
            raise ProfileError(
                "VR769",
                f"the profile was made from {old}, and the spec wants {new}",
                suggestion="run 'vitrewrite profile' on this spec",
            )

    def activation(self, site: str, side: str = "output") -> torch.Tensor:
        """Values [samples, tokens, channels] that leave a site, or enter it with side `input`.

        Raises:
            ProfileError: VR767 if they were not kept.
        """
        name = f"{site}.{side}"
        name = self.about.get("activations", {}).get("same", {}).get(name, name)
        if f"{ACTIVATION}{name}" not in self.tensors:
            kept = [n.removeprefix(ACTIVATION) for n in self.tensors if n.startswith(ACTIVATION)]
            raise ProfileError(
                "VR767",
                f"the profile holds no {name}",
                notes=[f"it holds: {listing(kept)}"],
                suggestion=f"profile with --activations '{site}'",
            )
        return self.tensors[f"{ACTIVATION}{name}"]

    def save(self, path: str | Path) -> None:
        """Writes the file, all or nothing.

        Raises:
            FileError: VR702 if it cannot be written.
        """
        metadata = {"vitrewrite": json.dumps(dict(self.about))}
        with replacing_file(Path(path)) as temporary:
            write_tensors(temporary, self.tensors, metadata, seal=True)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Reads a file that `save` wrote.

        Raises:
            ProfileError: VR763 if it cannot be read.
        """
        try:
            found = read_tensors(path, code="VR763", what="the profile")
            about = json.loads(found.metadata["vitrewrite"])
        except FileError as error:
            raise ProfileError("VR763", error.message) from error
        except (ValueError, RecursionError) as error:
            message = f"cannot read the profile '{path}': {first_line(error)}"
            raise ProfileError("VR763", message) from error
        except KeyError:
            about = None
        if not isinstance(about, dict):
            raise ProfileError("VR763", f"'{path}' is no file that 'vitrewrite profile' wrote")
        if not found.intact:
            raise ProfileError("VR763", f"the profile '{path}' was changed since it was written")
        return cls(found.tensors, about)
