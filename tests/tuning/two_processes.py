"""What each of two processes runs; started by `test_distributed`, not collected.

Every scenario ends in a folder of its own; what cannot be read from it is asserted here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.errors import DataError, FileError
from vitrewrite.tuning import Procedure, Run, Settings, tune
from vitrewrite.tuning.loop import TrainingLoop

AVERAGED = {"shard": True, "ema": 0.5, "report": "best", "teacher": "forward"}
SPEC = """model tiny.py:tied(num_classes=4)
insert lora(rank=2, dropout={dropout}) at blocks[*].attn.{{q, v}}
train head + norm
"""
SETTINGS = Settings(
    steps=8, batch=32, accumulate=2, lr=0.05, optimiser="sgd", checkpoint_every=2, log_every=1
)


class Agreement(Procedure):
    """Ranks see the same choices, and have the same tensors after each step."""

    def before_step(self, run: Run) -> None:
        chosen = torch.rand(3, generator=run.generator())
        assert torch.equal(*gathered(chosen))

    def after_step(self, run: Run) -> None:
        for name, parameter in run.module.named_parameters():
            assert torch.equal(*gathered(parameter.detach())), name


class Sharded(Procedure):
    """All parameters are in parts; the tied block belongs to the root's group."""

    def before_step(self, run: Run) -> None:
        parameters = dict(run.module.named_parameters())
        assert all(isinstance(p, DTensor) for p in parameters.values())
        assert sum(p.requires_grad for p in parameters.values()) < len(parameters) / 2
        blocks: Any = run.module.blocks
        assert [isinstance(b, FSDPModule) for b in blocks] == [False, False, True]
        assert blocks[0].mlp.fc1.weight is blocks[1].mlp.fc1.weight


class Entries(Sharded):
    """The entries yield what they yield where nothing is sharded, and so do their gradients."""

    def before_step(self, run: Run) -> None:
        whole = vr.apply(run.rewritten.spec).module  # as the other is in the first step
        x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(dist.get_rank()))
        for call in (
            lambda model: model.forward_features(x),
            lambda model: model.forward_head(model.forward_features(x)),
            lambda model: model.forward_head(torch.ones(2, 17, 32)),
            lambda model: model(x),
        ):
            found = [gradients(model, call) for model in (whole, run.module)]
            for name, values in found[0].items():
                mean = torch.stack(gathered(values)).mean(0) if name else values
                torch.testing.assert_close(found[1][name], mean)
            assert found[0].keys() == found[1].keys()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all of its parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(model: Any, call: Any) -> dict[str, torch.Tensor]:
    """What a call of a model yields, and the gradients of its square by parameter."""
    output = call(model)
    output.square().mean().backward()
    named = {n: full(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"": output.detach(), **named}


def gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor of each rank."""
    found = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(found, tensor.contiguous())
    return found


def run(out: str, procedure: Procedure | None, **more: Any) -> None:
    """One scenario."""
    catalog.load("lora").procedure = lambda _: procedure  # type: ignore[method-assign, assignment]
    settings = SETTINGS.changed(more.pop("settings", {}))
    spec = SPEC.format(dropout=more.pop("dropout", 0))
    tune(vr.apply(spec), more.pop("data", "digits:0-3"), settings, out=out, **more)


def interrupted(out: str, updates: int) -> None:
    """A sharded run that stops in the middle of a step."""
    original, calls = TrainingLoop._update, []

    def update(loop: TrainingLoop, sums: Any) -> None:
        calls.append(1)
        if len(calls) == updates:
            raise KeyboardInterrupt
        original(loop, sums)

    TrainingLoop._update = update  # type: ignore[assignment, method-assign]
    try:
        run(out, None, settings=AVERAGED, dropout=0.1)
    except KeyboardInterrupt:
        assert len(calls) == updates
    finally:
        TrainingLoop._update = original  # type: ignore[method-assign]


def main() -> None:
    """All scenarios."""
    run("ddp", Agreement())
    run("dropout", Agreement(), dropout=0.3, settings={"teacher": "forward", "distil": "hard"})
    run("fsdp", Sharded(), settings={"shard": True})
    run("entries", Entries(), settings={"shard": True, "steps": 1, "checkpoint_every": 1})
    run("whole", None, settings=AVERAGED, dropout=0.1)
    interrupted("again", 6)
    run("again", None, settings=AVERAGED, dropout=0.1, resume=True)
    # Only the main process says what is wrong with the folder, and all of them stop.
    with pytest.raises(SystemExit if dist.get_rank() else FileError):
        run("ddp", None)
    with pytest.raises(DataError):
        run("nothing", None, data="nowhere")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
