"""What `torch.compile` and `torch.export` make of a rewritten model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..tracing import tree
from ..tracing.unit import checkpointed, duplicate, on_meta
from .check import Check
from .numeric import relative, sample

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

TOLERANCE = 1e-4
"""Largest difference of generated code from eager, of outputs or gradients, over the largest."""

CALLS = ((False, 2), (False, 3), (True, 2), (True, 3), (False, 2))
"""Training or not, and batch size, of the calls that recompilation is counted over."""

LEAST = 3
"""Graphs that torch makes of any model over `CALLS`: of a fixed batch size, since it makes the
batch symbolic only at the second one, of any batch size, and of training with gradients."""


def exported(rewritten: Rewritten) -> Check:
    """`torch.export` takes the model with a symbolic batch size, and gives the same output."""
    name = "exports with any batch size"
    given, other = sample(rewritten), sample(rewritten, batch=5, seed=3)
    module = rewritten.module.eval()
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, given, dynamic_shapes=tuple({0: batch} for _ in given), strict=False
            )
            made = program.module()(*other)
    except Exception as error:  # export has many ways to say that it cannot
        return Check(name, False, _reason(error))
    apart = relative(module, _Given(made), other)
    return Check(name, apart <= TOLERANCE, apart)


def compiled(rewritten: Rewritten, backend: str) -> Check:
    """`torch.compile` makes one graph of the model, and its code agrees."""
    name = "compiles to one graph"
    inputs, module = sample(rewritten), rewritten.module.eval()
    try:
        with _fresh(), torch.no_grad():
            made = torch.compile(module, backend=backend, fullgraph=True)(*inputs)
    except Exception as error:  # dynamo has many ways to say that it cannot
        return Check(name, False, _reason(error))
    apart = relative(module, _Given(made), inputs)
    return Check(name, apart <= TOLERANCE, apart, f"backend {backend}")


def compiled_training(rewritten: Rewritten) -> Check:
    """A training step, gradients included, is one graph. On meta, so that it costs no arithmetic.

    Dropout and the like are on, and autograd's graph is traced and made functional, as inductor
    needs it. What is checkpointed draws random numbers twice, which torch cannot trace on meta.
    """
    name = "a training step compiles to one graph"
    module = rewritten.module
    module = _own(module) if checkpointed(module) else on_meta(module)
    try:
        with _fresh():
            call = torch.compile(module, backend="aot_eager", fullgraph=True)
            trained = _call(call, module, rewritten, training=True, batch=2)
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, True, "gradients too" if trained else "nothing is trained")


def compiled_gradients(rewritten: Rewritten, backend: str) -> Iterator[Check]:
    """Gradients of the compiled model are those of eager; without dropout, which draws anew."""
    name = "compiled gradients agree"
    try:
        with _fresh():
            made = _gradients(rewritten, lambda m: torch.compile(m, backend=backend))
    except Exception as error:
        yield Check(name, False, _reason(error))
        return
    if made:
        plain = _gradients(rewritten, lambda m: m)
        apart = max(_apart(plain[n], made[n]) for n in plain)
        yield Check(name, apart <= TOLERANCE, apart, f"backend {backend}")


def recompiled(rewritten: Rewritten) -> Check:
    """Between batch sizes, training and evaluation, no more graphs are made than of the base."""
    name = "no recompilation beyond the base's own"
    try:
        count = graphs(rewritten.module, rewritten)
        allowed = LEAST if count <= LEAST else graphs(rewritten.base, rewritten)
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, count <= allowed, count, f"the base: {allowed}" if count > LEAST else "")


def graphs(module: nn.Module, rewritten: Rewritten) -> int:
    """How many graphs `torch.compile` makes of a model over `CALLS`, on meta."""
    made: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    module = on_meta(module)
    with _fresh():
        call = torch.compile(module, backend=backend, fullgraph=True)
        for training, batch in CALLS:
            _call(call, module, rewritten, training=training, batch=batch)
    return len(made)


def _call(
    call: Any, module: nn.Module, rewritten: Rewritten, *, training: bool, batch: int
) -> bool:
    """One call on meta; if training, with a backward pass. Returns whether there was one."""
    device = next((p.device for p in module.parameters()), torch.device("meta"))
    inputs = tuple(v.to(device) for v in sample(rewritten, batch))
    module.train(training)
    with torch.set_grad_enabled(training):
        loss = _sum(call(*inputs))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.requires_grad


def _gradients(rewritten: Rewritten, wrap: Callable[[nn.Module], Any]) -> dict[str, torch.Tensor]:
    """Gradients in eval mode of every trained parameter, from the wrapped model."""
    module = _own(rewritten.module).eval()
    loss = _sum(wrap(module)(*sample(rewritten)))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def _own(root: nn.Module) -> nn.Module:
    """The same weights in parameters whose gradients are their own."""
    return duplicate(
        root,
        lambda p: nn.Parameter(p.detach(), requires_grad=p.requires_grad),
        lambda b: b.clone(),
    )


def _sum(output: Any) -> torch.Tensor:
    """A number that depends on every output, and on each differently."""
    parts = [v for v in tree.leaves(output) if v.is_floating_point()]
    return torch.stack([(v.float() ** 2).sum() for v in parts]).sum()


def _apart(plain: torch.Tensor, made: torch.Tensor) -> float:
    return float((plain - made).abs().max() / plain.abs().max().clamp_min(1e-12))


class _Given(nn.Module):
    """A stand-in that gives what another made of the inputs."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: torch.Tensor) -> Any:
        return self.output


@contextmanager
def _fresh() -> Iterator[None]:
    """Nothing compiled before, and nothing kept after."""
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
