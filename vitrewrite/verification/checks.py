"""What is true of every rewritten model, as checks with measured values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..editing.fitting import modes_kept
from ..editing.narrowing import piece
from ..tracing.undisturbed import undisturbed
from .check import Check
from .claims import judged
from .compiled import compiled as compiles
from .compiled import compiled_gradients, compiled_training, exported, recompiled
from .numeric import eager, given, lowering_error, over_largest, randomised, sample
from .promises import identities, lowerings, properties
from .reference import MODULE, OWN, Runs, reference
from .runs import Situation, outcome, tensors
from .stitches import stitches

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

LOWERING = {torch.float32: 2e-5, torch.bfloat16: 6e-2}
"""Largest relative error of an exact lowering by dtype; bfloat16 rounds the folded weights."""

LOOSE = 6e-2
"""The same for other dtypes."""

APART = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""How far an image's output may depend on the size of its batch, relative, by dtype."""


@undisturbed()
def quick(rewritten: Rewritten) -> list[Check]:
    """The checks that `apply` always makes: seconds for ViT-B."""
    with modes_kept(rewritten.module):
        return list(_quick(Runs(rewritten), full=False))


@undisturbed()
def verify_rewritten(
    rewritten: Rewritten, *, compiled: bool = False, graphs: bool = True, judge: bool = False
) -> list[Check]:
    """All checks.

    Args:
        rewritten: the model; it is not changed.
        compiled: whether to compare with inductor's code too, which takes minutes on a CPU;
            otherwise only that the model compiles to one graph is checked.
        graphs: whether to export and compile it at all.
        judge: whether the claims of the spec are yet to be judged; what that runs is not run again.

    Raises:
        VerifyError: VR501 for every claim that does not hold, together.
    """
    with modes_kept(rewritten.module):
        runs = Runs(rewritten)
        if judge:
            judged(rewritten, runs.measure)
        return list(_all(runs, compiled=compiled, graphs=graphs))


def _all(runs: Runs, *, compiled: bool, graphs: bool) -> Iterator[Check]:
    rewritten = runs.rewritten
    yield from _quick(runs, full=True)
    yield from identities(runs)
    yield from properties(runs)
    yield _gradients(runs)
    yield from _lowering(runs)
    yield from _unlowered(runs)
    yield _images_apart(runs)
    yield from stitches(rewritten)
    yield from _guards(rewritten)
    if graphs:
        yield from _graphs(rewritten, compiled=compiled)
    yield from _claims(rewritten)


def _quick(runs: Runs, *, full: bool) -> Iterator[Check]:
    yield _finite(runs)
    yield from reference(runs, runs.situations if full else runs.few)
    yield from _frozen(runs.rewritten)
    yield _keys(runs.rewritten)


def _graphs(rewritten: Rewritten, *, compiled: bool) -> Iterator[Check]:
    yield exported(rewritten)
    yield compiles(rewritten, "inductor" if compiled else "eager")
    yield compiled_training(rewritten)
    if compiled:
        yield from compiled_gradients(rewritten, "inductor")
    yield recompiled(rewritten)


def _finite(runs: Runs) -> Check:
    """No tensor and no output is infinite or not a number; buffers may mask with infinities."""
    module = runs.rewritten.module
    odd = [n for n, p in module.named_parameters() if not _is_finite(p)]
    odd += [n for n, b in module.named_buffers() if b.is_floating_point() and bool(b.isnan().any())]
    made = runs(MODULE, Situation())
    if not odd and not isinstance(made, Exception):
        own = made if isinstance(runs.own, str) else runs(OWN, Situation())
        odd = [
            f"output {i}"
            for i, t in enumerate(made)
            if not bool(t.isfinite().all()) and not _same_infinities(t, own, i)
        ]
    return Check("weights and outputs are finite", not odd, f"{len(odd)} not", ", ".join(odd[:3]))


def _is_finite(tensor: torch.Tensor) -> bool:
    """Looks at the least and the largest number: either is nan where one of them all is."""
    if not tensor.numel() or tensor.is_complex():
        return bool(tensor.isfinite().all())
    return all(bool(end.isfinite()) for end in tensor.detach().aminmax())


def _same_infinities(made: torch.Tensor, own: Any, index: int) -> bool:
    """Whether the user's module yields the same infinities, in scores that it masks."""
    if isinstance(own, Exception) or index >= len(own) or bool(made.isnan().any()):
        return False
    return own[index] is not made and torch.equal(own[index].isinf(), made.isinf())


def _frozen(rewritten: Rewritten) -> Iterator[Check]:
    if rewritten.lowered:
        return
    now = rewritten.module.state_dict()
    trained = rewritten.result.base_trained
    frozen = {k: v for k, v in _kept(rewritten).items() if k not in trained}
    changed = [k for k, v in frozen.items() if k not in now or not torch.equal(v, now[k])]
    yield Check(
        f"{len(frozen)} frozen tensors bit-identical",
        not changed,
        f"{len(changed)} changed",
        ", ".join(changed[:3]),
    )


def _kept(rewritten: Rewritten) -> dict[str, torch.Tensor]:
    """The state of the original model without what the spec takes out of it."""
    editor = rewritten.result.editor
    gone, state = tuple(f"{path}." for path in editor.removed), rewritten.base.state_dict()
    left = (k for k in state if not k.startswith(gone) and k not in editor.removed)
    return {k: piece(editor, k, state[k]) for k in left}


def _keys(rewritten: Rewritten) -> Check:
    lost = _kept(rewritten).keys() - rewritten.module.state_dict().keys()
    note = ", ".join(sorted(lost)[:3])
    return Check("state-dict keys of the base kept", not lost, f"{len(lost)} lost", note)


def _lowering(runs: Runs) -> Iterator[Check]:
    """Clause by clause in the model's own dtype, at once in another."""
    rewritten = runs.rewritten
    if rewritten.lowered or not rewritten.result.editor.insertions:
        return
    own = _dtype(rewritten)
    yield from lowerings(runs, LOWERING.get(own, LOOSE))
    for dtype in dict.fromkeys((own, *LOWERING)):
        if dtype == own:
            error = over_largest(runs.twins_output, runs.stages[-1].output)
        else:
            error = lowering_error(rewritten, dtype, runs.casts)
        name = f"lowered model equal in {str(dtype).removeprefix('torch.')}"
        holds = error <= LOWERING.get(dtype, LOOSE)
        why = "" if holds else _not_claimed(rewritten)
        yield Check(name, None if why else holds, error, why)


def _not_claimed(rewritten: Rewritten) -> str:
    """Why lowering may change what the model computes, if a pass does not claim the contrary."""
    waived = rewritten.result.editor.waived.items()
    sites = (sites for (_, claim), sites in waived if claim == "lowers_exactly")
    return next((f"not claimed: {why}" for each in sites for why in each.values()), "")


def _dtype(rewritten: Rewritten) -> torch.dtype:
    """What the model's weights are in; of several the first."""
    found = (p.dtype for p in rewritten.base.parameters() if p.is_floating_point())
    return next(found, torch.float32)


def _gradients(runs: Runs) -> Check:
    """With random inserted parameters, so that no branch is zero and hides another.

    In evaluation; what only training computes, as heads for the loss alone, or reaches, as what
    decides there softly, is looked at there.
    """
    rewritten, module = runs.rewritten, runs.twin.module
    some = _backward(runs.twins_made)
    wrong = [n for n, p in module.named_parameters() if not _gradient_fits(p)]
    left = _wrong_in_training(rewritten) if wrong else set()
    if not some and left == set(wrong) and not left & rewritten.result.unreached:
        return Check("nothing is trained", not wrong, "no gradient")
    reached = [n for n in wrong if n not in left]
    wrong = [n for n in wrong if n in left]
    known = [n for n in wrong if n in rewritten.result.unreached]
    wrong = [n for n in wrong if n not in known]
    trained = sum(p.requires_grad for p in module.parameters()) - len(known)
    notes = [f"{len(reached)} of them in training alone"] if reached else []
    behind = "of stitches" if rewritten.measures.stitches else "in front of what is read"
    behind += "" if rewritten.measures.stitches else " without gradient"
    notes += [f"{len(known)} more are {behind}"] if known else []
    note = "; ".join(notes)
    return Check(
        f"gradients reach exactly the {trained} trained tensors",
        not wrong,
        f"{len(wrong)} wrong",
        ", ".join(wrong[:3]) or note,
    )


def _wrong_in_training(rewritten: Rewritten) -> set[str]:
    """The parameters that training reaches and should not, or the other way round."""
    module = randomised(rewritten).module.train()  # a copy: batch norms keep what they see
    _backward(list(tensors(module(*sample(rewritten)))))
    return {n for n, p in module.named_parameters() if not _gradient_fits(p)}


def _backward(made: list[torch.Tensor]) -> bool:
    """Gradients of a random sum of outputs, if any has some."""
    outputs = [t for t in made if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    probes = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    if outputs:
        pairs = zip(outputs, probes, strict=True)
        sum((t * probe).sum() for t, probe in pairs).backward()  # type: ignore[union-attr]
    return bool(outputs)


def _gradient_fits(parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad:
        return parameter.grad is None
    return parameter.grad is not None and bool(parameter.grad.isfinite().all())


def _unlowered(runs: Runs) -> Iterator[Check]:
    """A lowered model against what it was lowered from."""
    unlowered = runs.rewritten.unlowered
    if unlowered is None:
        return
    dtype = _dtype(runs.rewritten)
    now = given(runs(MODULE, Situation()))
    error = over_largest(eager(unlowered.module, runs.rewritten, dtype), now)
    yield Check("equal to what it was lowered from", error <= LOWERING.get(dtype, LOOSE), error)


def _images_apart(runs: Runs) -> Check:
    """An image's output does not depend on what else is in the batch."""
    inputs = sample(runs.rewritten, 2)
    second = outcome(runs.rewritten.module, lambda m: m(*(v[1:] for v in inputs)), Situation())
    whole = given(runs(MODULE, Situation(2)))
    alone = given(runs(MODULE, Situation())), given(second)
    pairs = [
        (both.float(), torch.cat(one).float())
        for both, *one in zip(whole, *alone, strict=True)
        if both.dim() and len(both) == 2 and all(len(t) == 1 for t in one)  # a batch comes first
    ]
    error = over_largest(*map(list, zip(*pairs, strict=True))) if pairs else 0.0
    return Check("images do not see each other", error < APART[_dtype(runs.rewritten)], error)


def _guards(rewritten: Rewritten) -> Iterator[Check]:
    """A model that is fixed in image size says so when it gets another."""
    from ..tracing.guards import check_input

    unit: Any = rewritten.module
    if not any(n.target is check_input for n in unit.template.graph.nodes):
        return
    (image, *rest) = sample(rewritten, 1)
    larger = torch.nn.functional.pad(image, (0, 32, 0, 32))
    try:
        unit(larger, *rest)
        message = "accepted"
    except ValueError as error:
        message = str(error)
    yield Check("another image size is refused", message.startswith("captured for"), message)


def _claims(rewritten: Rewritten) -> Iterator[Check]:
    for verdict in rewritten.claims:
        yield Check(f"require {verdict.claim}", verdict.holds, verdict.measured)
