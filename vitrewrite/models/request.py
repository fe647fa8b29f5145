"""Which model is meant, by name or as an object, and how it is built."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import nn

from .. import models
from ..catalog.models import with_own
from ..errors import MatchError
from ..language.model import Spec
from ..tracing import inputs, trace
from ..tracing.about import about, tell
from .records import state

DROP_PATH = "drop_path_rate"
"""What constructors call the rate of stochastic depth; in recipes it is `drop_path`."""


class Request:
    """Which model to rewrite: an object, or a name with constructor arguments and weights."""

    def __init__(
        self,
        spec: Spec,
        model: nn.Module | str | None,
        weights: str,
        seed: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = spec
        self.module = model if isinstance(model, nn.Module) else None
        self.options = {**(options or {}), **spec.model_arguments}
        self.input = spec.input
        self.weights, self.seed = weights, seed
        self.told: list[str] = []  # what of a checkpoint was adapted
        self.ref = spec.model if model is None else None
        if isinstance(model, str):
            self.name = model
        elif self.module is not None:
            self.name, self.weights = type(self.module).__name__, "given"
        elif spec.model is not None:
            self.name = spec.model.name
            self.options = {**spec.model.values, **self.options}
            self.input = self.input or spec.model.input
        else:
            raise MatchError(
                "VR312",
                f"the spec '{spec.name}' names no model",
                suggestion="add a line 'model vit_base_patch16_224', or give model=vit_base",
            )
        rate = spec.tune.values.get("drop_path")
        self._recipe = {} if rate is None or self.module is not None else {DROP_PATH: rate}
        self.options = with_own(self.name, {**self._recipe, **self.options})

    def traced(self, example: Any = None, *, meta: bool) -> tuple[nn.Module, nn.Module]:
        """The model, and its captured tree, which knows the recipe of the spec.

        Raises:
            VitrewriteError: what is wrong with it, at the line that names it.
        """
        model, root = self.captured(example, meta=meta)
        self.tell_recipe(root)
        return model, root

    def captured(self, example: Any = None, *, meta: bool) -> tuple[nn.Module, nn.Module]:
        """The model and its captured tree, whatever the recipe.

        Raises:
            VitrewriteError: what is wrong with it, at the line that names it.
        """
        with models.asked_by(self.ref):
            model = self.build(meta=meta)
            if example is None:
                example = inputs.stated_input(model, self.input)
            root = trace(model, example)
            tell(root, notes=(*about(root).notes, *self.told))
        return model, root

    def tell_recipe(self, root: nn.Module) -> None:
        """Has a captured tree know what the recipe says of images.

        Raises:
            DataError: VR755 if that makes no sense.
        """
        spans = {each.name: each.span for each in self.spec.tune.settings}
        state(root, self.spec.tune.values, spans.get("inputs"))

    def build(self, *, meta: bool) -> nn.Module:
        """The model."""
        if self.module is not None:
            return self.module
        self.told.clear()
        try:
            return models.create(
                self.name,
                self.options,
                weights=self.weights,
                seed=self.seed,
                meta=meta,
                told=self.told,
            )
        except MatchError as error:
            unknown = error.message.partition(": ")[2]  # what the constructor says
            if error.code != "VR311" or not self._recipe or f"'{DROP_PATH}'" not in unknown:
                raise
            raise self._no_drop_path() from error

    def _no_drop_path(self) -> MatchError:
        rate = next(s for s in self.spec.tune.settings if s.name == "drop_path")
        message = f"tune.drop_path = {rate.value} is for models that take {DROP_PATH}"
        return MatchError(
            "VR311",
            f"{message}, and '{self.name}' does not",
            span=rate.span,
            suggestion="leave it out",
        )

    @property
    def key(self) -> Hashable:
        """What the captured model depends on; None if that is more than what is asked for."""
        if self.module is not None or self.weights != "random":
            return None
        return self.name, repr(sorted(self.options.items())), self.input

    @property
    def described(self) -> str:
        """The weights, in words."""
        return f"random (seed {self.seed})" if self.weights == "random" else self.weights
