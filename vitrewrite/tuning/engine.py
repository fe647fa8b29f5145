"""Processes, devices, precision and sharding: the part of training that accelerate does."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..data.loading import ProcessShare
from ..errors import TuneError
from ..language.settings import Settings
from ..tracing.unit import checkpointed

if TYPE_CHECKING:
    from .run import Run

T = TypeVar("T")
_LOGS = "tensorboard"  # the folder of a tracker, in that of the run


class Engine:
    """One of the processes of a run.

    Args:
        settings: `precision` and `shard` hold for the whole run.
        device: `cpu`, `cuda`, or None for what there is.
        folder: of the run, where a tracker writes.

    Raises:
        TuneError: VR851 without accelerate, VR852 for what this machine cannot do, VR863 without
            what a tracker needs.
    """

    def __init__(
        self, settings: Settings, device: str | None = None, *, folder: Path = Path()
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise TuneError(
                "VR851", "tune needs accelerate", suggestion="pip install 'vitrewrite[tune]'"
            ) from error
        gpu = device != "cpu" and torch.accelerator.is_available()
        launched = _launched_for_fsdp(gpu)
        if settings.precision == "fp16" and not gpu:
            raise TuneError(
                "VR852", "precision fp16 needs a GPU", suggestion="take bf16, or no mixing"
            )
        # Unless told that it is on a CPU, accelerate leaves processes without a GPU unconnected.
        self.accelerator: Any = Accelerator(
            mixed_precision=settings.precision, cpu=not gpu, **_tracking(settings, folder)
        )
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        self.sharded = settings.shard or launched
        if self.sharded and not torch.distributed.is_initialized():
            raise TuneError(
                "VR852",
                "sharding needs several processes",
                suggestion="start it with 'torchrun --nproc-per-node 2 -m vitrewrite tune ...'",
            )

    def share(self, pieces: int = 1) -> ProcessShare:
        """This process's part of the images of a step."""
        return ProcessShare(self.rank, self.processes, pieces)

    # -- models -----------------------------------------------------------------------------------

    def place(self, run: Run) -> nn.Module:
        """A trainable copy of the phase's model on the device, in parts if sharded.

        Raises:
            TuneError: VR862 if gradients are to be checkpointed, and the model has no blocks.
        """
        module = run.replicate().to(self.device)
        if run.settings.checkpoint_gradients:
            _checkpoint(module)
        if self.sharded:
            _shard(module, _block_paths(run), self.device)
        return module

    def prepare(
        self, objective: nn.Module, optimiser: torch.optim.Optimizer, *, skips: bool
    ) -> tuple[nn.Module, Any]:
        """The objective under DDP and mixed precision, the optimiser under loss scaling."""
        if self.sharded:
            return objective, self.accelerator.prepare_optimizer(optimiser)
        from accelerate.utils import DistributedDataParallelKwargs

        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=skips)
        model, prepared = self.accelerator.prepare(objective, optimiser)
        # What scales no loss steps as the optimiser itself does; accelerate looks for packages.
        return model, prepared if self.accelerator.scaler else optimiser

    def backward(self, loss: torch.Tensor) -> None:
        """The gradient of a loss, which is scaled in half precision."""
        if self.accelerator.scaler:
            self.accelerator.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def piece(self, objective: nn.Module, module: nn.Module, *, last: bool) -> Iterator[None]:
        """The computation of one piece of a step; gradients are exchanged in the last one."""
        if self.sharded:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        alone = nullcontext() if last or self.sharded else self.accelerator.no_sync(objective)
        with alone, self.accelerator.autocast():
            yield

    def release(self) -> None:
        """Forgets the objects of a phase; on a CPU without collecting garbage, which takes long."""
        if self.device.type != "cpu":
            self.accelerator.free_memory()
        for kept in ("_models", "_optimizers"):
            getattr(self.accelerator, kept).clear()

    def close(self) -> None:
        """Lets another run in this process start with other settings."""
        from accelerate.state import AcceleratorState

        self.release()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state(reset_partial_state=self.processes == 1)

    # -- trackers ---------------------------------------------------------------------------------

    def track(self, total: int) -> None:
        """Starts the tracker, if there is one; what it knows of later steps is not shown."""
        names = [str(kind) for kind in self.accelerator.log_with]
        kept = {name: {"purge_step": total + 1} for name in names}
        self.accelerator.init_trackers(_LOGS, init_kwargs=kept)

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers for the tracker, if there is one."""
        self.accelerator.log(values, step=step)

    # -- processes --------------------------------------------------------------------------------

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, on their device."""
        reduced: torch.Tensor = self.accelerator.reduce(values, "mean")
        return reduced

    @property
    def waits(self) -> bool:
        """Whether reading a number waits for a device that has more to do."""
        return self.device.type != "cpu"

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Runs something on the main process; if it fails, all processes stop."""
        result, failure = None, None
        if self.is_main:
            try:
                result = action()
            except BaseException as error:
                failure = error
        if self.processes > 1:
            from accelerate.utils import broadcast_object_list

            (failed,) = broadcast_object_list([failure is not None])
            if failed and not self.is_main:
                raise SystemExit(1)  # the main process says what is wrong
        if failure is not None:
            raise failure
        return result


def _tracking(settings: Settings, folder: Path) -> dict[str, Any]:
    """What accelerate is told of a tracker.

    Raises:
        TuneError: VR863 if what it needs is not installed; accelerate would leave it out.
    """
    if settings.tracker == "none":
        return {}
    from accelerate.utils import ProjectConfiguration, is_tensorboard_available

    if not is_tensorboard_available():
        raise TuneError(
            "VR863",
            f"tracker = {settings.tracker} needs tensorboard",
            suggestion="pip install 'vitrewrite[tensorboard]'",
        )
    return {
        "log_with": settings.tracker,
        "project_config": ProjectConfiguration(logging_dir=str(folder)),
    }


def _launched_for_fsdp(gpu: bool) -> bool:
    """Whether `accelerate launch` asks for FSDP2; it then takes our sharded module as it is.

    Raises:
        TuneError: VR852 on a CPU, where accelerate runs DDP without a word, and for FSDP1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("1", "true", "yes", "on"):
        return False
    if gpu and os.environ.get("FSDP_VERSION") == "2":
        return True
    what = "FSDP1 is not supported" if gpu else "accelerate's FSDP would be DDP on a CPU"
    suggestion = "launch without --use_fsdp and set tune.shard=true"
    raise TuneError("VR852", what, suggestion=suggestion)


def _checkpoint(module: nn.Module) -> None:
    """Has the blocks of a copy be computed again in backward; the model itself stays as it is."""
    module.set_grad_checkpointing(True)  # type: ignore[operator]
    if not checkpointed(module):
        raise TuneError(
            "VR862",
            "checkpoint_gradients = true finds no blocks that can be computed again",
            suggestion="leave it out",
        )


# -- FSDP2 ----------------------------------------------------------------------------------------


def _shard(module: nn.Module, blocks: list[str], device: torch.device) -> None:
    """Blocks are groups of their own, the root takes the rest.

    A block that shares a parameter with another module stays in the root's group: a tensor can
    be gathered by one group only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from .entries import register_entries

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    for path in blocks:
        block = module.get_submodule(path)
        inside = Counter(id(p) for _, p in block.named_parameters(remove_duplicate=False))
        if all(uses[each] == count for each, count in inside.items()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_entries(module)
    if device.type == "cpu":  # gloo of torch 2.8 takes an average of gradients for a sum
        for each in module.modules():
            if isinstance(each, FSDPModule):
                each.set_force_sum_reduction_for_comms(True)


def _block_paths(run: Run) -> list[str]:
    """Paths of the blocks that are modules and hold parameters, inner ones first."""
    units = {str(block.unit) for block in run.rewritten.result.anatomy.blocks if block.unit}
    known = {n: m for n, m in run.rewritten.module.named_modules() if n in units}
    return sorted((n for n, m in known.items() if any(True for _ in m.parameters())), reverse=True)
