"""What each of two processes runs of the methods beside a frozen model; not collected.

Started by `test_beside_on_two`; every scenario ends in a folder of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.tuning import Procedure, Run, Settings, tune

MODEL = "model tiny.py:build(num_classes=4, img_size={}, patch_size={})\n"
SPECS = {
    "synqt": MODEL.format(16, 4) + "insert synqt(hidden=6, narrow=2, dropout=0, drop_path=0)"
    " at blocks[*]\ntrain head\n",
    "lst": MODEL.format(16, 4) + "insert lst(reduction=4) at blocks[*]\ntrain head\n",
    "side_tuning": MODEL.format(64, 16) + "insert side_tuning() before head\ntrain head\n",
}
SETTINGS = Settings(
    steps=4, batch=32, accumulate=2, lr=0.05, optimiser="sgd", checkpoint_every=4, log_every=1
)


class Parts(Procedure):
    """All parameters are in parts; the entries yield what they yield where nothing is."""

    def before_step(self, run: Run) -> None:
        assert all(isinstance(p, DTensor) for p in run.module.parameters())
        if run.step:
            return
        whole = vr.apply(run.rewritten.spec).module  # as the other is before the first step
        side = 64 if "side_tuning" in str(run.rewritten.spec) else 16
        x = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(dist.get_rank()))
        one, two = (entered(model, x) for model in (whole, run.module))
        torch.testing.assert_close(two, one)


def entered(model: Any, x: torch.Tensor) -> torch.Tensor:
    """What the entries yield one after the other, of a model that has them."""
    made: torch.Tensor
    made = (
        model.forward_head(model.forward_features(x))
        if hasattr(model, "forward_head")
        else model(x)
    )
    return made


def main() -> None:
    """Each method with DDP and in shards."""
    for name, spec in SPECS.items():
        for shard in (False, True):
            procedure = Parts() if shard else None
            catalog.load(name).procedure = lambda _, p=procedure: p  # type: ignore[method-assign, misc]
            settings = SETTINGS.changed({"shard": shard})
            tune(vr.apply(spec), "digits:0-3", settings, out=f"{name}-{'fsdp' if shard else 'ddp'}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
