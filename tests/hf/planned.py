"""Plans for a small Mask2Former, which share what was captured."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import vitrewrite as vr
from tests.hf.zoo import mask2former
from vitrewrite.rewrite.captures import Captures

SHALLOW = {"decoder_layers": 4}  # one round over the three feature maps
CAPTURES = Captures()
_KEPT = TemporaryDirectory()


@cache
def _named(*options: tuple[str, Any]) -> str:
    """A name for the model with some options: plans of one name share its capture."""
    folder = Path(_KEPT.name) / str(len(list(Path(_KEPT.name).iterdir())))
    model: Any = mask2former("resnet", **dict(options))
    model.config.save_pretrained(folder)
    return f"hf:{folder}"


def planned(spec: str, sides: tuple[int, int] = (128, 128), /, **more: Any) -> Any:
    """A plan.

    Args:
        spec: a text, or the name of a shipped spec.
        sides: of the images.
        more: options of the model, and of passes (`hrca.omega`).
    """
    options = {k: v for k, v in more.items() if "." not in k}
    others = {k: v for k, v in more.items() if "." in k}
    example = "x".join(map(str, (2, 3, *sides)))
    return vr.plan(spec, _named(*options.items()), captures=CAPTURES, input=example, **others)
