"""A pass on tiny models: what it declares, what it does, and what it claims, line by line."""

from __future__ import annotations

import ast
import copy
import importlib.util
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..api import apply, capture, plan
from ..emission.realise import realise
from ..errors import VitrewriteError
from ..folder.writing import model_text
from ..language import Spec
from ..rewrite.rewritten import Rewritten
from ..sensitivity.profile import Profile
from ..text import listing
from ..tracing.undisturbed import same_randomness, undisturbed
from ..verification import verify_rewritten
from ..verification.check import Check
from ..verification.compiled import exported
from ..verification.numeric import randomised, tensors
from .bounds import bounded
from .subject import Subject

_OWN_FAULTS = ("VR405", "VR435", "VR808", "VR809", "VR812", *(f"VR42{i}" for i in range(10)))
"""Codes of errors that no value of an option may lead to."""


@undisturbed()
def tiny() -> nn.Module:
    """A ViT of timm with two blocks and random weights that are always the same."""
    from timm.models.vision_transformer import VisionTransformer

    with same_randomness():
        torch.default_generator.manual_seed(0)
        model: nn.Module = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        )
    return model.eval()


def _measured() -> Profile:
    """Sensitivities of the tiny model, as random as can be, for passes that choose entries."""
    generator = torch.Generator().manual_seed(0)
    named = tiny().named_parameters()
    return Profile({f"sensitivity.{n}": torch.rand(p.shape, generator=generator) for n, p in named})


def checks(subject: Subject) -> Iterator[Check]:
    """All checks of a pass; the first that fails ends those that build on it."""
    info = subject.info
    yield Check(f"{info.name} declares a pass", True, f"{info.class_name}: {_declared(subject)}")
    try:
        spec = _fitting(subject)
        rewritten = None if spec is None else apply(spec, tiny(), profile=_measured())
    except VitrewriteError as error:
        unfit = error.code == "VR410"  # the pass says so itself
        yield Check("structure", None if unfit else False, "refused", _told(error))
        return
    if spec is None or rewritten is None:
        yield Check("structure", None, "not tried", "no tiny model has its sites; --at names some")
        return
    yield Check(
        "structure", True, f"{rewritten.measures.params.trainable} trained", str(spec).strip()
    )
    yield _attempt("equal runs", lambda: _repeated(spec, rewritten))
    yield _attempt("bfloat16", lambda: _in_bfloat16(spec))
    try:
        yield from verify_rewritten(rewritten, graphs=False)
    except VitrewriteError as error:
        yield Check("verification", False, "fails", _told(error))
    yield _attempt("training", lambda: _trainable(rewritten))
    yield _attempt("emission", lambda: _fixed_point(rewritten))
    yield _attempt("export", lambda: exported(rewritten))
    yield from _options(subject)


def _declared(subject: Subject) -> str:
    info = subject.info
    parts = [f"{listing(info.verbs)} {listing(info.attaches)}"]
    if info.claims:
        parts.append(f"claims {listing(info.claims)}")
    return ", ".join(parts)


def _fitting(subject: Subject) -> Spec | None:
    """The first of its specs that the tiny model takes.

    Raises:
        VitrewriteError: what is wrong with the first one, if none is taken.
    """
    first: VitrewriteError | None = None
    for spec in subject.specs():
        try:
            plan(spec, tiny(), profile=_measured())
        except VitrewriteError as error:
            if error.code in _OWN_FAULTS:
                raise
            first = first or error
        else:
            return spec
    if first is not None:
        raise first
    return None


def _attempt(name: str, make: Callable[[], Check]) -> Check:
    try:
        return make()
    except VitrewriteError as error:
        return Check(name, False, "fails", _told(error))


def _told(error: VitrewriteError) -> str:
    """An error with its notes, in one line."""
    return "; ".join((f"{error.code} {error.message}", *error.notes))


def _image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return made.to(dtype)


@torch.no_grad()
def _repeated(spec: Spec, rewritten: Rewritten) -> Check:
    """The same spec gives the same bits, and so do two forwards in eval."""
    name = "equal runs give equal bits"
    first, second = rewritten.delta(), apply(spec, tiny(), profile=_measured()).delta()
    differ = [k for k, v in first.items() if not torch.equal(v, second[k])]
    module = rewritten.module.eval()
    if not torch.equal(module(_image()), module(_image())):
        differ.append("the output in eval")
    return Check(name, not differ, f"{len(differ)} differ", ", ".join(differ[:3]))


@torch.no_grad()
def _in_bfloat16(spec: Spec) -> Check:
    """A model in bfloat16 stays one, but for parameters that no cast makes less exact."""
    module = apply(spec, tiny().to(torch.bfloat16), profile=_measured()).module.eval()
    made = module(_image(torch.bfloat16))
    exact = {n: p.dtype for n, p in module.named_parameters() if p.dtype != torch.bfloat16}
    kept = dict(copy.deepcopy(module).to(torch.bfloat16).named_parameters())
    odd = {str(dtype) for n, dtype in exact.items() if kept[n].dtype != dtype}
    odd |= {str(made.dtype)} - {str(torch.bfloat16)}
    return Check("runs in bfloat16", not odd, listing(odd) or "all of it")


def _trainable(rewritten: Rewritten) -> Check:
    """No two factors that are multiplied both start as zero: neither gets a gradient, ever.

    What is zero gets none at first, if what it is multiplied with is zero too; and still none after
    a step, as that was not moved either.
    """
    module = deepcopy(rewritten.module)
    first = _gradients(module)
    stuck = [n for n, g in first.items() if not g.any() and not module.get_parameter(n).any()]
    if stuck:
        with torch.no_grad():
            for name, gradient in first.items():
                module.get_parameter(name).add_(gradient.sign() * 1e-2)
        moved, anywhere = _gradients(module), _gradients(randomised(rewritten).module)
        stuck = [n for n in stuck if not moved[n].any() and anywhere[n].any()]
    names = f"{listing(stuck[:2])} start as zero, and no gradient moves them"
    return Check(
        "what starts as zero can be trained",
        not stuck,
        f"{len(stuck)} stuck",
        names if stuck else "",
    )


@undisturbed()
def _gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Of all that is trained, in training."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    with same_randomness(), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        made = tensors(module.train()(_image()))
        generator = torch.Generator().manual_seed(1)
        loss = torch.stack([(t * torch.randn(t.shape, generator=generator)).sum() for t in made])
        if not loss.requires_grad:  # which another check tells
            return {}
        found = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}


def _fixed_point(rewritten: Rewritten) -> Check:
    """The printed file, captured and printed again, is the same but for its comments."""
    text = model_text(rewritten)
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.py")
        path.write_text(text, encoding="utf-8")
        twin = _built(path)
        twin.load_state_dict(rewritten.module.state_dict())
        with torch.no_grad():
            equal = torch.equal(twin(_image()), rewritten.module.eval()(_image()))
        again = realise(capture(twin)).text
    same = ast.dump(ast.parse(again)) == ast.dump(ast.parse(rewritten.source.text))
    note = "" if equal else "it computes something else"
    measured = f"{len(text.splitlines())} lines"
    return Check("printed, captured and printed again", same and equal, measured, note)


def _built(path: Path) -> nn.Module:
    """The model of a printed file, on random weights."""
    found = importlib.util.spec_from_file_location("emitted", path)
    assert found is not None
    assert found.loader is not None
    space: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(space)
    model: nn.Module = space.build()
    return model.eval()


def _options(subject: Subject) -> Iterator[Check]:
    """Every value of an option is carried out, or refused on purpose."""
    for option in subject.info.options.values():
        tried, wrong = 0, []
        for value in _values(option):
            tried += 1
            try:
                for spec in subject.specs(**{option.name: value}):
                    model, profile = tiny(), _measured()
                    with bounded():
                        plan(spec, model, profile=profile)
                    break
            except VitrewriteError as error:
                if error.code in _OWN_FAULTS:
                    wrong.append(f"{option.name}={value}: {_told(error)}")
        note = wrong[0] if wrong else ""
        yield Check(
            f"values of {option.name} work or are refused", not wrong, f"{tried} tried", note
        )


def _values(option: Any) -> list[Any]:
    """The ends of what an option may be, and what lies far outside."""
    if option.choices:
        return list(option.choices)
    if option.type not in ("int", "float"):
        return [True, False] if option.type == "bool" else []
    ends = [v for v in (option.minimum, option.maximum) if v is not None]
    made = [*ends, 0, -1, 1, 1_000_000]
    made = list(dict.fromkeys(int(v) if option.type == "int" else float(v) for v in made))
    return [(v,) for v in made] if option.many else made
