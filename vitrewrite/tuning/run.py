"""The state of a run: what a procedure sees, and what a checkpoint holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..catalog.declare import Pass
from ..data import Data
from ..data.seeding import mixed
from ..editing.fitting import initialise
from ..errors import TuneError
from ..language.settings import Settings
from ..rewrite.initial import inherit
from ..rewrite.rewritten import Rewritten
from ..tasks import Task
from ..tracing.unit import duplicate
from .procedure import Hooks, ParameterGroup, Phase, Procedure

if TYPE_CHECKING:
    from .cached import Features
    from .teachers import Teacher


@dataclass
class Run:
    """A run of `tune`.

    Attributes:
        original: the model as it was given.
        rewritten: the model of this phase, with the tensors it started from.
        module: what is trained: a copy of `rewritten.module` on the device, in parts if sharded.
        memory: what procedures want to remember; in every checkpoint.
        copies: of what is trained, by what they are: see `copies`; in every checkpoint.
        phase: the current phase, and `settings` are its settings.
        step: steps done in this phase, out of `steps`; `total` counts over all phases.
        task: the loss, and what an evaluation counts.
        results: of the last evaluation.
        recipe: what the settings of the phase add to every step.
        teacher: of the recipe, frozen: called with images it yields class scores, in eval.
        features: what the frozen part of the phase's model yields, if that was computed before;
            a batch has them in place of images.
        seconds: spent, in earlier sessions too.
    """

    original: Rewritten
    data: Data
    task: Task
    base_settings: Settings
    seed: int
    procedures: tuple[Procedure, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)
    copies: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    position: int = 0
    step: int = 0
    total: int = 0
    results: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    phases: tuple[Phase, ...] = ()
    recipe: tuple[Hooks, ...] = ()
    teacher: Teacher | None = None
    features: Features | None = field(default=None, repr=False)
    rewritten: Rewritten = field(init=False)
    module: nn.Module = field(init=False)
    per_epoch: int = 1
    steps: int = 0
    _settings: dict[int, Settings] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.rewritten = self.original
        self.module = self.original.module

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[self.position]

    @property
    def settings(self) -> Settings:
        """The settings of the current phase."""
        if self.position not in self._settings:
            self._settings[self.position] = self.base_settings.changed(self.phase.settings)
        return self._settings[self.position]

    @property
    def epoch(self) -> float:
        """Epochs done in this phase."""
        return self.step / self.per_epoch

    @property
    def progress(self) -> float:
        """How much of the phase is done, from 0 to 1."""
        return self.step / self.steps if self.steps else 1.0

    @functools.cached_property
    def base(self) -> nn.Module:
        """The model before it was rewritten, frozen, in eval mode, on the device: a teacher."""
        return self.frozen(self.original.base)

    def frozen(self, root: nn.Module) -> nn.Module:
        """A copy of a model in eval mode, on the device of the run, that nothing trains."""
        device = next(self.module.parameters()).device

        def parameter(old: nn.Parameter) -> nn.Parameter:
            return nn.Parameter(old.detach().to(device), requires_grad=False)

        return duplicate(root, parameter, lambda b: b.to(device)).eval()

    def program(self, module: nn.Module) -> Callable[[Any], Any]:
        """What a step calls with the images of a batch: a model, or the trained part of it."""
        return module if self.features is None else self.features.program(module)

    @property
    def score(self) -> float | None:
        """The figure that the task is judged by, in the last evaluation; a fraction."""
        return self.results.get(self.task.metric)

    @property
    def hooks(self) -> tuple[Hooks, ...]:
        """Everything that acts in this phase, the phase last."""
        return (*self.recipe, *self.procedures, self.phase)

    @property
    def groups(self) -> list[ParameterGroup]:
        """The parameter groups that the hooks ask for."""
        return [group for hooks in self.hooks for group in hooks.groups(self)]

    def generator(self, purpose: str = "") -> torch.Generator:
        """A generator on the CPU for this step: the same on all ranks and after a resume."""
        seed = mixed(self.seed, "procedure", purpose, self.position, self.step)
        return torch.Generator().manual_seed(seed)

    def inserted(self, name: str) -> list[nn.Module]:
        """The modules in `module` that a pass put in."""
        insertions = self.rewritten.result.editor.insertions
        return [self.module.get_submodule(i.path) for i in insertions if i.pass_name == name]

    @torch.no_grad()
    def rewind(self) -> None:
        """A fresh start of the phase's model, for `Phase.start`.

        What passes put in is drawn anew; what else is trained is as it was given.
        """
        result, given = self.rewritten.result, self.original.module
        for insertion in result.editor.insertions:
            generator = self.generator(insertion.path)
            initialise(result.methods.of(insertion), insertion.module, generator)
            inherit(result, insertion)
        for name in result.base_trained:
            self.rewritten.module.get_parameter(name).copy_(given.get_parameter(name))

    def refuse(self, message: str, suggestion: str | None = None) -> TuneError:
        """An error of a procedure that cannot do its work here, to be raised."""
        return TuneError("VR866", message, suggestion=suggestion)

    def keep(self, name: str) -> None:
        """Remembers the tensors of the phase's result, so that a later phase can `recall` them."""
        self.memory |= {f"{name}.{k}": v.clone() for k, v in self.rewritten.delta().items()}

    def recall(self, name: str) -> None:
        """Makes the tensors that were kept those of the phase's model."""
        for key, tensor in self.rewritten.delta().items():
            tensor.copy_(self.memory[f"{name}.{key}"])

    def passes(self, name: str) -> list[Pass]:
        """The pass of each of these modules, with its options there: they may differ by site."""
        result = self.rewritten.result
        return [result.methods.of(i) for i in result.editor.insertions if i.pass_name == name]

    def replicate(self) -> nn.Module:
        """A copy of the phase's model: what is frozen is shared, what is trained is copied."""

        def parameter(old: nn.Parameter) -> nn.Parameter:
            value = old.detach().clone() if old.requires_grad else old.detach()
            return nn.Parameter(value, requires_grad=old.requires_grad)

        return duplicate(self.rewritten.module, parameter, lambda b: b.clone())

    def own(self) -> set[str]:
        """Names of the tensors that are not the base's: what a checkpoint has to hold."""
        base = {t.data_ptr() for t in self.original.base.parameters() if t.numel()}
        parameters = self.rewritten.module.named_parameters(remove_duplicate=True)
        own = {n for n, p in parameters if p.requires_grad or p.data_ptr() not in base}
        return own | {n for n, _ in persistent_buffers(self.rewritten.module)}


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that a state dict has."""
    known = module.state_dict().keys()
    return ((n, b) for n, b in module.named_buffers() if n in known)
