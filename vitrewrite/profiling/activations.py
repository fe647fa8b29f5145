"""What flows through a model on data, at chosen sites: for passes that start from such values.

A least-squares start of a stitching layer needs what leaves a block, a probe of all layers what
leaves its modules. The values are kept as rows, one per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Anatomy, Attention, Block, ChannelLayer, Linear, Mlp, Place
from ..editing.editor import join
from ..errors import ProfileError
from ..language import parse_spec
from ..selection.select import Selection
from ..selection.within import Named, Site
from ..tracing.unit import Unit, run_graph

LIMIT = 4 * 2**30
"""Bytes of activations that one profile may hold."""


@dataclass(frozen=True)
class Activations:
    """Which activations to keep.

    Attributes:
        sites: a selector, such as `blocks[*]` or `module("blocks.*.mlp.act")`.
        samples: how many images.
        tokens: how many tokens of each image, evenly spread from the first to the last and at the
            same places everywhere; all by default.
    """

    sites: str
    samples: int = 100
    tokens: int | None = None


@dataclass(frozen=True)
class TapPoint:
    """A value to keep: what a node yields or takes first, or what a module does.

    Attributes:
        at: where the node is, or the path of the module.
        rows: of the last axis, if not all of it.
    """

    at: Place | str
    takes: bool = False
    rows: tuple[int, int] | None = None


def selected(text: str, anatomy: Anatomy, root: nn.Module) -> dict[str, TapPoint]:
    """The points of a selector's sites by name, such as `blocks[3].output`.

    Raises:
        VitrewriteError: for a malformed selector, one that matches nothing, or a site that no
            value flows through: VR767.
    """
    clauses = parse_spec(f"train {text}\n").clauses
    if len(clauses) != 1 or clauses[0].sites is None:
        raise ProfileError("VR767", f"'{text.strip()}' is more than a selector")
    sites = Selection(anatomy, root).sites(clauses[0].sites)
    return {f"{site.role}.{name}": point for site in sites for name, point in _points(site).items()}


def _points(site: Site) -> dict[str, TapPoint]:
    if isinstance(site, Block):
        return {"input": TapPoint(site.input), "output": TapPoint(site.output)}
    if isinstance(site, Linear) and not site.pieces and (site.axis == -1 or site.rows is None):
        start = (site.rows[0] - site.offset) if site.rows else 0
        rows = (start, start + site.out_features) if site.rows else None
        return {"input": TapPoint(site.call, True), "output": TapPoint(site.call, rows=rows)}
    if isinstance(site, Mlp) and site.fc1 is not None and site.fc2 is not None:
        return {"input": TapPoint(site.fc1.call, True), "output": TapPoint(site.fc2.call)}
    if isinstance(site, Attention) and site.core.unit:
        return {"input": TapPoint(site.core.unit, True), "output": TapPoint(site.core.unit)}
    if isinstance(site, ChannelLayer) or (isinstance(site, Named) and site.kind == "module"):
        return {"input": TapPoint(site.path, True), "output": TapPoint(site.path)}
    raise ProfileError(
        "VR767",
        f"no one value flows in and out of '{site.role}'",
        notes=["valid: blocks, attentions, MLPs, linear layers, modules by name"],
    )


@dataclass
class ActivationRecorder:
    """Runs a captured tree and keeps values at points.

    Attributes:
        root: a captured tree in eval mode, not realised yet or a copy of it.
        points: what to keep, by name.
        layout: that of the model's stream.
        found: values of the last batch.
    """

    root: nn.Module
    points: Mapping[str, TapPoint]
    layout: str
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values [B, N, C] of a batch by name; equal ones are one tensor.

        Raises:
            ProfileError: VR767 for a point that nothing reaches, or that is no tensor of images.
        """
        self.found, self.copies = {}, {}
        with torch.no_grad():
            self._run(self.root, "", (images,))
        rows: dict[int, torch.Tensor] = {}
        result = {}
        for name, point in self.points.items():
            value = self.found.get(name)
            if value is None or value.dim() < 2 or value.numel() % len(images):
                raise ProfileError("VR767", f"'{name}' is no value with a row for every image")
            if id(value) not in rows:
                rows[id(value)] = self._rows(value, len(images))
            result[name] = rows[id(value)] if point.rows is None else _cut(rows[id(value)], point)
        return result

    def _rows(self, value: torch.Tensor, images: int) -> torch.Tensor:
        if value.dim() == 4 and self.layout == "nchw":
            value = value.movedim(1, -1)
        return value.reshape(images, -1, value.shape[-1])  # windows are put side by side

    def _run(self, module: nn.Module, path: str, args: Sequence[Any]) -> Any:
        if not isinstance(module, Unit) or module.template is None:
            return module(*args)

        def call(node: fx.Node, taken: tuple[Any, ...]) -> Any:
            inner = join(path, str(node.target))
            result = self._run(module.get_submodule(str(node.target)), inner, taken)
            self._keep(inner, result, taken)
            return result

        def note(node: fx.Node, values: dict[fx.Node, Any]) -> None:
            first = [values[n] for n in node.all_input_nodes[:1]]
            self._keep(Place(path, node.name), values[node], first)

        return run_graph(module.template.graph, module, args, call, note)

    def _keep(self, at: Place | str, value: Any, taken: Sequence[Any]) -> None:
        """Keeps what is wanted of a node or module that ran; of several runs the first."""
        for name, point in self.points.items():
            if point.at == at and name not in self.found:
                wanted = next(iter(taken), None) if point.takes else value
                if isinstance(wanted, torch.Tensor):
                    self.found[name] = self._copied(wanted)

    def _copied(self, value: torch.Tensor) -> torch.Tensor:
        """A copy, since operations in place may follow; one for a value that is met again."""
        key = id(value), value._version
        return self.copies.setdefault(key, (value, value.clone()))[1]


def _cut(rows: torch.Tensor, point: TapPoint) -> torch.Tensor:
    assert point.rows is not None
    return rows[..., slice(*point.rows)]


def collect(
    recorder: ActivationRecorder, batches: Iterable[torch.Tensor], wanted: Activations
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Runs batches and keeps activations [samples, tokens, channels] in float32 on the CPU.

    Args:
        recorder: what to run.
        batches: images, `wanted.samples` of them altogether.
        wanted: which activations.

    Returns:
        The tensors by name, and names that stand for the same values by the name of these.

    Raises:
        ProfileError: VR765 without images, VR767 as the recorder, VR768 if it is too much to keep.
    """
    kept: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    done = 0
    for images in batches:
        values = recorder(images)
        if not done:
            same = dict(_repeated(values))
            _check_size([v for n, v in values.items() if n not in same], wanted)
        for name in values.keys() - same.keys():
            value = values[name]
            value = value[:, places(value.shape[1], wanted.tokens)].float().cpu()
            if name not in kept:
                kept[name] = torch.empty(wanted.samples, *value.shape[1:])
            kept[name][done : done + len(value)] = value
        done += len(images)
    if not done:
        raise ProfileError("VR765", "there is no sample to measure with")
    return {name: kept[name] for name in values if name in kept}, same


def places(count: int, wanted: int | None) -> torch.Tensor:
    """Which of so many tokens are kept."""
    if wanted is None or wanted >= count:
        return torch.arange(count)
    return torch.linspace(0, count - 1, wanted).round().long()


def _repeated(values: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """What leaves one block enters the next: such values are kept once."""
    known: dict[int, str] = {}
    for name, value in values.items():
        first = known.setdefault(id(value), name)
        if first != name:
            yield name, first


def _check_size(values: Sequence[torch.Tensor], wanted: Activations) -> None:
    rows = [len(places(v.shape[1], wanted.tokens)) * v.shape[2] for v in values]
    size = 4 * wanted.samples * sum(rows)
    if size > LIMIT:
        raise ProfileError(
            "VR768",
            f"the activations take {size / 2**30:.1f} GiB, and {LIMIT / 2**30:g} can be kept",
            suggestion="keep fewer tokens or images (--tokens, --samples), or fewer sites",
        )
