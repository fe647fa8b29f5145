"""What is true of every rewritten model, as checks with measured values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..context import undisturbed
from .check import Check
from .compiled import compiled as compiles
from .compiled import compiled_gradients, compiled_training, exported, recompiled
from .numeric import difference, lowering_error, randomised, sample, tensors

if TYPE_CHECKING:
    from ..rewrite.editor import Insertion
    from ..rewrite.rewritten import Rewritten

LOWERING = {torch.float32: 2e-5, torch.bfloat16: 6e-2}
"""Largest relative error of an exact lowering by dtype; bfloat16 rounds the folded weights."""


@undisturbed()
def quick(rewritten: Rewritten) -> list[Check]:
    """The checks that `apply` always makes: seconds for ViT-B."""
    return [*_identity(rewritten), *_frozen(rewritten), _keys(rewritten), _emitted(rewritten)]


@undisturbed()
def verify_rewritten(
    rewritten: Rewritten, *, compiled: bool = False, graphs: bool = True
) -> list[Check]:
    """All checks.

    Args:
        rewritten: the model; it is not changed.
        compiled: whether to compare with inductor's code too, which takes minutes on a CPU;
            otherwise only that the model compiles to one graph is checked.
        graphs: whether to export and compile it at all.
    """
    return [
        *quick(rewritten),
        *_gradients(rewritten),
        _images_apart(rewritten),
        *_properties(rewritten),
        *_lowering(rewritten),
        *_guards(rewritten),
        *(_graphs(rewritten, compiled=compiled) if graphs else ()),
        *_claims(rewritten),
    ]


def _graphs(rewritten: Rewritten, *, compiled: bool) -> Iterator[Check]:
    yield exported(rewritten)
    yield compiles(rewritten, "inductor" if compiled else "eager")
    yield compiled_training(rewritten)
    if compiled:
        yield from compiled_gradients(rewritten, "inductor")
    yield recompiled(rewritten)


def _identity(rewritten: Rewritten) -> Iterator[Check]:
    methods = rewritten.result.methods.values()
    if rewritten.lowered or rewritten.trained or not methods:
        return
    if all("same_output_at_init" in m.claims for m in methods):
        error = difference(rewritten.base, rewritten.module, sample(rewritten))
        yield Check("same output as the base at initialisation", error == 0, error)


def _frozen(rewritten: Rewritten) -> Iterator[Check]:
    if rewritten.lowered:
        return
    now = rewritten.module.state_dict()
    trained = rewritten.result.base_trained
    frozen = {k: v for k, v in _kept(rewritten).items() if k not in trained}
    changed = [k for k, v in frozen.items() if k not in now or not torch.equal(v, now[k])]
    yield Check(
        f"{len(frozen)} frozen tensors bit-identical", not changed, f"{len(changed)} changed",
        ", ".join(changed[:3]),
    )  # fmt: skip


def _kept(rewritten: Rewritten) -> dict[str, torch.Tensor]:
    """The state of the original model without that of modules which the spec replaces."""
    gone = tuple(f"{path}." for path in rewritten.result.editor.removed)
    return {k: v for k, v in rewritten.base.state_dict().items() if not k.startswith(gone)}


def _keys(rewritten: Rewritten) -> Check:
    lost = _kept(rewritten).keys() - rewritten.module.state_dict().keys()
    note = ", ".join(sorted(lost)[:3])
    return Check("state-dict keys of the base kept", not lost, f"{len(lost)} lost", note)


def _emitted(rewritten: Rewritten) -> Check:
    """Executes the emitted text, builds the model from it and loads the weights, strictly."""
    from ..files import model_text

    space: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(model_text(rewritten), "model.py", "exec", dont_inherit=True), space)
    twin: nn.Module = space["build"]()
    twin.load_state_dict(rewritten.module.state_dict())
    error = difference(rewritten.module, twin, sample(rewritten))
    return Check("emitted source gives the same output", error == 0, error)


def _gradients(rewritten: Rewritten) -> Iterator[Check]:
    """With random inserted parameters, so that no branch is zero and hides another."""
    module = randomised(rewritten).module.eval()
    outputs = [t for t in tensors(module(*sample(rewritten))) if t.requires_grad]
    if not outputs:
        yield Check("nothing is trained", not rewritten.measures.params.trainable, "no gradient")
        return
    generator = torch.Generator().manual_seed(1)
    probes = [torch.randn(t.shape, generator=generator) for t in outputs]
    sum((t * probe).sum() for t, probe in zip(outputs, probes, strict=True)).backward()  # type: ignore[union-attr]
    wrong = [n for n, p in module.named_parameters() if not _gradient_fits(p)]
    trained = sum(p.requires_grad for p in module.parameters())
    yield Check(
        f"gradients reach exactly the {trained} trained tensors", not wrong,
        f"{len(wrong)} wrong", ", ".join(wrong[:3]),
    )  # fmt: skip


def _gradient_fits(parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad:
        return parameter.grad is None
    return parameter.grad is not None and bool(parameter.grad.isfinite().all())


@torch.no_grad()
def _images_apart(rewritten: Rewritten) -> Check:
    """An image's output does not depend on what else is in the batch."""
    inputs = sample(rewritten, batch=3, seed=2)
    module = rewritten.module.eval()
    together = tensors(module(*inputs))
    apart = [tensors(module(*(v[i : i + 1] for v in inputs))) for i in range(3)]
    pairs = [
        (whole, torch.cat(each))
        for whole, *each in zip(together, *apart, strict=True)
        if len(whole) == 3 and all(len(one) == 1 for one in each)  # a batch comes first
    ]
    scale = max((float(a.abs().max()) for a, _ in pairs), default=0.0) or 1.0
    error = max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / scale
    return Check("images do not see each other", error < 1e-4, error)


@torch.no_grad()
def _properties(rewritten: Rewritten) -> Iterator[Check]:
    """What passes claim of each call of their modules."""
    module = rewritten.module.eval()
    found: dict[str, float] = {}

    def watch(insertion: Insertion) -> Any:
        method = rewritten.result.methods[insertion.clause]

        def hook(child: nn.Module, inputs: Any, outputs: Any) -> None:
            for claim, error in method.errors(child, inputs, outputs).items():
                found[claim] = max(error, found.get(claim, 0.0))

        return module.get_submodule(insertion.path).register_forward_hook(hook)

    handles = [watch(insertion) for insertion in rewritten.result.editor.insertions]
    try:
        module(*sample(rewritten))
    finally:
        for handle in handles:
            handle.remove()
    for claim, error in found.items():
        yield Check(claim, error < 1e-3, error)


def _lowering(rewritten: Rewritten) -> Iterator[Check]:
    if rewritten.lowered or not rewritten.result.editor.insertions:
        return
    for dtype, allowed in LOWERING.items():
        error = lowering_error(rewritten, dtype)
        name = str(dtype).removeprefix("torch.")
        yield Check(f"lowered model equal in {name}", error <= allowed, error)


def _guards(rewritten: Rewritten) -> Iterator[Check]:
    """A model that is fixed in image size says so when it gets another."""
    from ..tracing.guards import check_input

    unit: Any = rewritten.module
    if not any(n.target is check_input for n in unit.template.graph.nodes):
        return
    (image, *rest) = sample(rewritten, batch=1)
    larger = torch.nn.functional.pad(image, (0, 32, 0, 32))
    try:
        unit(larger, *rest)
        message = "accepted"
    except ValueError as error:
        message = str(error)
    yield Check("another image size is refused", message.startswith("captured for"), message)


def _claims(rewritten: Rewritten) -> Iterator[Check]:
    for verdict in rewritten.claims:
        yield Check(f"require {verdict.claim}", bool(verdict.holds), verdict.measured)
