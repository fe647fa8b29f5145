"""The frozen part of a rewritten model, apart from what training changes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import TuneError
from ..features.cut import FeatureCut, UnsteadyError
from ..tracing.unit import Unit
from .engine import Rewrite

_SETTING = "cache = features"


def cut_of(result: Rewrite, root: nn.Module, base: nn.Module | None = None) -> FeatureCut:
    """The cut through a rewritten model.

    Args:
        result: what was carried out.
        root: the model, with weights or without.
        base: the original, which has the weights that nothing changes; without, those that a
            gradient reaches are the only ones that change.

    Raises:
        TuneError: VR550 if nothing is frozen that could be kept, VR551 if it is random.
    """
    assert isinstance(root, Unit)
    try:
        cut = FeatureCut.of(root, result.example, {*_trained(result, root, base)}, {*_led(result)})
    except UnsteadyError as error:
        raise _random(result, error.path) from error
    if not cut.kept:
        raise TuneError(
            "VR550",
            f"{_SETTING} would keep nothing: what is trained reads the images themselves",
            suggestion="leave tune.cache out: every step needs the whole model",
        )
    return cut


def _trained(result: Rewrite, root: nn.Module, base: nn.Module | None) -> Iterator[str]:
    """Names of the tensors that training may change, in one phase or another."""
    fixed = None if base is None else {p.data_ptr() for p in base.parameters() if p.numel()}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        own = fixed is not None and parameter.numel() and parameter.data_ptr() not in fixed
        if parameter.requires_grad or own:
            yield name
    yield from result.base_trained
    for path in _inserted(result):
        module = root.get_submodule(path)
        tensors = (*module.named_parameters(), *module.named_buffers())
        yield from (f"{path}.{name}" for name, _ in tensors)


def _inserted(result: Rewrite) -> Iterator[str]:
    """Paths of what passes put in, but for parts of the model in another order."""
    return (i.path for i in result.editor.insertions if not isinstance(i.module, Unit))


def _led(result: Rewrite) -> Iterator[str]:
    """Paths of modules whose pass leads the training, and may change them in any way."""
    for insertion in result.editor.insertions:
        if result.methods.of(insertion).procedure() is not None:
            yield insertion.path


def _random(result: Rewrite, path: str) -> TuneError:
    tuned = result.spec.tune.values.get("drop_path")
    options = {o.name: o.value for o in (result.spec.model.options if result.spec.model else ())}
    named = next((n for n in options if "drop" in n), None)
    if tuned:
        why, instead = f"drop_path = {tuned:g}", "leave tune.drop_path out"
    elif "drop_path" in path:  # many models have a rate of their own
        why, instead = f"the model's {named or 'drop path'}", "write tune.drop_path=0"
    else:
        why, instead = f"the model's {named or 'dropout'}", f"build it without {named or 'dropout'}"
    return TuneError(
        "VR551",
        f"{_SETTING} keeps what is the same in every epoch, and '{path}' is drawn anew in "
        f"each step of training: {why}",
        suggestion=f"{instead}, or leave tune.cache out",
    )
