"""Teachers: another model, the base, or an entry of the model itself; frozen, in eval, no gradient.

They lie outside the tree that is trained and its wrappers. An entry shares the weights that are
trained: it is called where the losses are computed, inside of the one wrapped call of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..anatomy.fingerprint import fingerprint_of
from ..data import Preprocessing
from ..editing.fitting import modes_kept
from ..errors import TuneError
from ..language.teachers import teacher_ref
from ..models import create
from ..tasks import QueryTask, logits
from ..text import first_line
from ..tracing.entries import ENTRIES
from ..tracing.inputs import example_of_one
from ..tracing.unit import on_meta
from .adapting import adapted
from .run import Run

BASE, FORWARD = "base", "forward"
OWN = (FORWARD, *ENTRIES)
"""Entries of the model itself."""


class Teacher:
    """Called with images as the model of the run gets them, it yields class scores (B, classes).

    Attributes:
        text: as the settings name it.
        told: what is done to the images before it sees them, and to its checkpoint.
        digest: of its weights, if they are not the run's own.
    """

    def __init__(
        self,
        text: str,
        outputs: Callable[[torch.Tensor], Any],
        told: Sequence[str] = (),
        digest: str = "",
    ) -> None:
        self.text, self.outputs, self.digest = text, outputs, digest
        self.told = tuple(told)

    @property
    def record(self) -> dict[str, Any]:
        """It in a report."""
        return {"model": self.text, "weights": self.digest, "adapted": list(self.told)}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Its scores, without gradient."""
        return logits(self.outputs(images))


def teacher_of(run: Run, device: torch.device) -> Teacher | None:
    """The teacher that the settings name, if they do.

    Raises:
        VitrewriteError: what is wrong with the model or its weights.
        TuneError: VR858 for a matching loss, VR864 for a teacher that does not fit.
    """
    text = run.base_settings.teacher
    if text is None:
        return None
    if isinstance(run.task, QueryTask):
        message = f"teacher = {text} is for scores of classes, and this loss matches queries"
        raise TuneError("VR858", message, suggestion="leave it out")
    example = example_of_one(run.original.module)[0]
    student = logits(on_meta(run.original.module)(*example_of_one(run.original.module)))
    if text == BASE:
        made = Teacher(text, lambda images: run.base(images))
        scores = _scores(text, on_meta(run.original.base), example)
    elif text in OWN:
        made = Teacher(text, lambda images: _entry(run, text, images))
        scores = _scores(text, getattr(on_meta(run.original.module), text, None), example)
    else:
        made = _model(run, text, device)
        scores = _scores(text, made, torch.zeros(example.shape, device=device))
    if scores.shape[1:] != student.shape[1:]:
        own, other = (_classes(shape) for shape in (student.shape, scores.shape))
        raise TuneError("VR864", f"the teacher '{text}' has {other}, and the model has {own}")
    return made


def _scores(text: str, call: Any, images: torch.Tensor) -> torch.Tensor:
    """What it yields for an image."""
    if call is None:
        raise TuneError("VR864", f"the model has no entry '{text}' to learn from")
    try:
        with torch.no_grad():
            return logits(call(images))
    except Exception as error:  # whatever it says of images that it does not take
        shape = "x".join(map(str, images.shape[1:]))
        message = f"the teacher '{text}' takes no images of {shape}: {first_line(error)}"
        raise TuneError("VR864", message) from error


def _classes(shape: torch.Size) -> str:
    if len(shape) == 2:
        return f"{shape[1]} classes"
    return f"an output of {'x'.join(map(str, shape[1:]))}"


def _entry(run: Run, name: str, images: torch.Tensor) -> Any:
    with modes_kept(run.module):
        module = run.module.eval()
        # FSDP2 gathers parameters where a module is called, and in the entries that it knows.
        return module(images) if name == FORWARD else getattr(module, name)(images)


def _model(run: Run, text: str, device: torch.device) -> Teacher:
    ref, told = teacher_ref(text), list[str]()
    options: dict[str, Any] = dict(ref.values)
    weights = options.pop("weights", None)
    if not isinstance(weights, str):
        raise TuneError(
            "VR864",
            f"the weights of the teacher '{text}' are not stated",
            suggestion=f"write {ref.name}(weights=pretrained), or weights=FILE",
        )
    module = create(ref.name, options, weights=weights, seed=run.seed, told=told)
    module.eval().requires_grad_(False).to(device)
    digest = fingerprint_of(module.state_dict(), set())
    given = Preprocessing.of(run.original.base)
    adapt, notes = adapted(module, given)
    return Teacher(text, lambda images: module(adapt(images)), [*told, *notes], digest)
