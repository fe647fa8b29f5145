"""The Python API: `import vitrewrite as vr`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import files
from .context import undisturbed, without_garbage
from .errors import raise_all
from .folder.delta import load_delta, save_delta
from .language import parse_spec
from .language.model import Spec
from .rewrite.apply import apply as apply
from .rewrite.apply import lower as lower
from .rewrite.apply import plan as plan
from .rewrite.fitting import modes_kept
from .rewrite.rewritten import Rewritten
from .tracing import trace
from .tracing.captured import Captured
from .verification import Check, verify_rewritten


def parse(source: str | Path, **overrides: object) -> Spec:
    """Reads and checks a spec.

    Args:
        source: a path, the name of a shipped spec, or the text of one.
        overrides: values of params, by name; `**{"lora.rank": 4}` sets an option of a pass.

    Raises:
        VitrewriteError: everything that is wrong with it, together.
    """
    return parse_spec(source, overrides)


@undisturbed()
@without_garbage()
def capture(model: nn.Module, example: Any = None) -> Captured:
    """Captures a model as graphs, one per distinct module forward.

    Args:
        model: any module, a flat `fx.GraphModule` too; it stays as it was.
        example: what it is called with (a tensor, a tuple, or a dict of keywords); by default
            what the model says of itself. Only shapes and dtypes matter.

    Returns:
        A callable module with the same state-dict keys, sharing the model's parameters.
        `.graphs` are its graphs by class name, `.flat()` is one `fx.GraphModule`.

    Raises:
        CaptureError: if a forward cannot be followed.
    """
    from .emission.realise import realise

    root = trace(model, example)
    realise(root)
    assert isinstance(root, Captured)
    return root


def verify(rewritten: Rewritten, *, compiled: bool = False, graphs: bool = True) -> list[Check]:
    """Checks a rewritten model; see `verify.checks` for what is checked.

    Args:
        rewritten: the model; it is not changed.
        compiled: whether to compare with inductor's code too.
        graphs: whether to export and compile it, which takes most of the time.

    Raises:
        VerifyError: for every check that fails, together.
    """
    checks = verify_rewritten(rewritten, compiled=compiled, graphs=graphs)
    raise_all([check.error() for check in checks if check.holds is False])
    return checks


def emit(rewritten: Rewritten, out: str | Path, *, weights: bool = True) -> Path:
    """Writes source, weights, delta and report to the folder `out`, all or nothing.

    Raises:
        FileError: if the folder is something else, or cannot be written.
    """
    with modes_kept(rewritten.module, rewritten.base):
        return files.emit(rewritten, out, weights=weights)


def save(rewritten: Rewritten, path: str | Path) -> None:
    """Writes the delta to a safetensors file.

    A folder is written as a whole, with `emit`; its own delta cannot be replaced.

    Raises:
        FileError: if it cannot be written, belongs to a folder, or has a tensor that is not finite.
    """
    save_delta(rewritten, path)


def load(rewritten: Rewritten, path: str | Path) -> Rewritten:
    """Loads a delta, strictly, into a model that the same spec made from the same base.

    Returns:
        `rewritten`, changed in place.

    Raises:
        FileError: for another base or spec, for missing or unexpected tensors or ones that are not
            finite, and for a file that was changed since it was written.
    """
    load_delta(rewritten, path)
    rewritten.trained = True
    return rewritten
