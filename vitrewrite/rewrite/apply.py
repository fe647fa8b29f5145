"""`plan`, `apply` and `lower`: from a spec and a model to a rewritten one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models
from ..context import undisturbed, without_garbage
from ..emission.realise import realise
from ..errors import MatchError, RewriteError, raise_all
from ..fingerprint import trunk_fingerprint
from ..language import parse_spec
from ..language.model import Spec
from ..sensitivity.profile import Profile
from ..tracing import inputs, trace, walk
from ..tracing.unit import checkpointed, duplicate, on_meta
from .claims import judge
from .conflicts import needed
from .engine import Rewrite, example_of_one, rewrite
from .fitting import modes_kept
from .initial import draw
from .lowering import lowered_tree
from .measure import BrokenError, Propagation
from .plan import Plan, measure
from .rewritten import Rewritten
from .stream import Tokens


def as_spec(spec: Spec | str | Path, overrides: Mapping[str, object]) -> Spec:
    """The spec itself, or what a path, shipped name or text says."""
    return spec if isinstance(spec, Spec) else parse_spec(spec, overrides)


def as_profile(profile: Profile | str | Path | None) -> Profile | None:
    """The profile itself, or that of a file."""
    return Profile.load(profile) if isinstance(profile, (str, Path)) else profile


class Request:
    """Which model to rewrite: an object, or a name with constructor arguments and weights."""

    def __init__(
        self, spec: Spec, model: nn.Module | str | None, weights: str, seed: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.module = model if isinstance(model, nn.Module) else None
        self.options = {**(options or {}), **spec.model_arguments}
        self.input = spec.input
        self.weights, self.seed = weights, seed
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

    def traced(self, example: Any = None, *, meta: bool) -> tuple[nn.Module, nn.Module]:
        """The model, and its captured tree.

        Raises:
            VitrewriteError: what is wrong with it, at the line that names it.
        """
        with models.asked_by(self.ref):
            model = self.build(meta=meta)
            if example is None:
                example = inputs.stated_input(model, self.input)
            return model, trace(model, example)

    def build(self, *, meta: bool) -> nn.Module:
        """The model."""
        if self.module is not None:
            return self.module
        return models.create(
            self.name, self.options, weights=self.weights, seed=self.seed, meta=meta
        )

    @property
    def described(self) -> str:
        """The weights, in words."""
        return f"random (seed {self.seed})" if self.weights == "random" else self.weights


@undisturbed()
@without_garbage()
def plan(
    spec: Spec | str | Path, model: nn.Module | str | None = None, *, example: Any = None,
    weights: str = "random", seed: int = 0, profile: Profile | str | Path | None = None,
    **overrides: object,
) -> Plan:  # fmt: skip
    """What `spec` would change in `model`; no weight is allocated or read.

    Args:
        spec: a `Spec`, a path, the name of a shipped spec, or a text.
        model: a module, or a name; by default the spec's own.
        example: what the model is called with, if it does not say so itself.
        weights: what `apply` would start from; only named here.
        seed: of random weights.
        profile: measurements for `sensitive(...)`, or the file of one.
        overrides: params and pass options of the spec.

    Raises:
        VitrewriteError: everything that is wrong with the spec on this model.
    """
    spec = as_spec(spec, overrides)
    request = Request(spec, model, weights, seed)
    root = on_meta(request.traced(example, meta=True)[1])
    original = _run(root)
    with torch.device("meta"):
        result = rewrite(spec, root, profile=as_profile(profile), original=original)
    measures = measure(result, original)
    claims = judge(spec, measures, result)
    return Plan(
        spec, request.name, request.described, result.anatomy, tuple(result.steps), measures,
        claims, tuple(result.warnings), result.allocations, result.orders, checkpointed(root),
    )  # fmt: skip


@undisturbed()
def apply(
    spec: Spec | str | Path, model: nn.Module | str | None = None, *, example: Any = None,
    weights: str = "random", seed: int = 0, model_options: Mapping[str, Any] | None = None,
    profile: Profile | str | Path | None = None,
    allocations: Mapping[str, Any] | None = None, **overrides: object,
) -> Rewritten:  # fmt: skip
    """Rewrites a model; the input model is unchanged and shares its frozen weights.

    Args:
        spec: a `Spec`, a path, the name of a shipped spec, or a text.
        model: a module, or a name; by default the spec's own.
        example: what the model is called with, if it does not say so itself.
        weights: `random`, `pretrained` or a safetensors file, for a model by name.
        seed: of random weights, and of what the passes add.
        model_options: constructor arguments of a model by name.
        profile: measurements for `sensitive(...)`, or the file of one.
        allocations: what each `sensitive(...)` bought before, as a lock file has it.
        overrides: params and pass options of the spec.

    Raises:
        VitrewriteError: everything that is wrong, claims that do not hold included.
    """
    spec = as_spec(spec, overrides)
    request = Request(spec, model, weights, seed, model_options)
    original, base = request.traced(example, meta=False)
    if request.module is None:
        base.eval()
    made = carry_out(request, spec, base, profile=as_profile(profile), allocations=allocations)
    made.original = original
    return made


def carry_out(
    request: Request, spec: Spec, base: nn.Module, *, profile: Profile | None = None,
    allocations: Mapping[str, Any] | None = None,
) -> Rewritten:  # fmt: skip
    """Rewrites a captured model, which becomes the base of the result.

    Args:
        request: what it was captured from, and the seed of what the passes add.
        spec: what to do.
        base: the captured model; only its classes change.
        profile: measurements for `sensitive(...)`.
        allocations: what each `sensitive(...)` bought before, as a lock file has it.

    Raises:
        VitrewriteError: as `apply`.
    """
    root = duplicate(base, _shared, lambda b: b.clone())
    before = _run(base)
    result = rewrite(spec, root, profile=profile, allocations=allocations, original=before)
    if profile is not None and result.allocations:
        profile.check(trunk_fingerprint(base, result.anatomy))
    draw(result, request.seed)
    _own_trained(result)
    measures = measure(result, before)
    realise(base)
    source = realise(root)
    rewritten = Rewritten(
        root, base, result, source, request.name, request.described, measures,
        model_options=request.options, seed=request.seed, weights_request=request.weights,
    )  # fmt: skip
    from ..verification.numeric import measure_claim

    with modes_kept(root, base):
        rewritten.claims = judge(
            spec, measures, result, numeric=lambda metric: measure_claim(rewritten, metric)
        )
    raise_all([v.error() for v in rewritten.claims if v.holds is False])
    return rewritten


@undisturbed()
def lower(rewritten: Rewritten) -> Rewritten:
    """The cheapest equal model: what can be folded into weights is folded.

    `rewritten` is unchanged, and stays in the result as `unlowered`. The result's report has the
    error of every fold and clause by dtype, measured when it is first asked for; see
    `verification.lowered`. A model that is lowered already is its own cheapest equal.
    """
    if rewritten.lowered:
        return rewritten
    root, editor = lowered_tree(rewritten)
    result = replace(rewritten.result, root=root, editor=editor)
    measures = measure(result, _run(rewritten.base), lowered=True)
    return replace(
        rewritten, module=root, result=result, source=realise(root), measures=measures,
        lowered=True, unlowered=rewritten,
    )  # fmt: skip


def _run(root: nn.Module) -> Propagation:
    """The original model, run on meta.

    Raises:
        RewriteError: VR405 if it does not run for one image.
    """
    try:
        return Propagation(on_meta(root), example_of_one(root))
    except BrokenError as error:
        told = needed(error, Tokens(0, None))
        raise RewriteError("VR405", f"the model does not run for one image: {told}") from error


def _shared(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of its own on the same storage."""
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def _own_trained(result: Rewrite) -> None:
    """Parameters of the original that will be trained get storage of their own; ties stay."""
    named = dict(result.root.named_parameters())
    trained = {id(named[name]) for name in result.base_trained}
    made: dict[int, nn.Parameter] = {}
    for module in walk.modules(result.root):
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in trained:
                if id(parameter) not in made:
                    own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    made[id(parameter)] = own
                module._parameters[leaf] = made[id(parameter)]
