"""`show embeddings`: what the head of a model reads of some images, in two dimensions.

After figure 3 of Zhang et al., ECCV 2024 (SynQT): t-SNE of scikit-learn from a start by principal
components, or these alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..data import Batch
from ..errors import DataError, MatchError
from ..rewrite.rewritten import Rewritten
from ..text import shown
from .canvas import palette
from .plot import INK, PALE, Axis, Plot, hexadecimal

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 60, 640, 76, 656
_LEGEND = 24  # classes that are named
LEAST = 5
"""Images that a picture needs; t-SNE has at most a third as many neighbours as there are others."""


@dataclass(frozen=True)
class Embeddings:
    """What the head reads.

    Attributes:
        title: of the spec and the model.
        vectors: [images, width], float32.
        labels: [images].
        classes: names by label.
    """

    title: str
    vectors: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, rewritten: Rewritten, batches: Iterable[Batch], classes: Sequence[str]
    ) -> Embeddings:
        """Runs a model in evaluation.

        Raises:
            MatchError: VR572 if no linear layer makes the classes of one vector an image.
            DataError: VR573 for fewer images than a picture needs.
        """
        module, title = rewritten.module.eval(), f"{rewritten.spec.name} on {rewritten.model_name}"
        vectors, labels = [], []
        for batch in batches:
            with torch.no_grad(), _read_by(_heads(rewritten)) as seen:
                made: Any = module(batch.images)
            classes_made = made.shape[-1] if isinstance(made, torch.Tensor) else 0
            read = [x for rows, x in seen if rows == classes_made and x.dim() == 2]
            if len(read) != 1:
                raise _without(title, len(read))
            vectors.append(read[0].float())
            labels.append(batch.labels)
        count = sum(map(len, labels))
        if count < LEAST:
            raise DataError(
                "VR573",
                f"a picture of embeddings needs {LEAST} images, and there are {count}",
                suggestion="give more with --images, or other data",
            )
        found = torch.cat(vectors)
        if not found.isfinite().all():
            raise MatchError("VR572", f"what the head of '{title}' reads is not finite")
        return cls(title, found, torch.cat(labels), tuple(classes))

    @property
    def alike(self) -> float:
        """How many images have a nearest neighbour of their own class, by Euclidean distance."""
        distances = torch.cdist(self.vectors, self.vectors).fill_diagonal_(torch.inf)
        return float((self.labels[distances.argmin(1)] == self.labels).float().mean())

    def components(self) -> tuple[torch.Tensor, tuple[float, float]]:
        """Two principal components [images, 2], and the shares of the variance that they have.

        Of each the entry with the largest size is positive, so that signs are not arbitrary.
        """
        centred = (self.vectors - self.vectors.mean(0)).double()
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        points = u[:, :2] * s[:2]
        points = F.pad(points, (0, 2 - points.shape[1]))
        largest = points.gather(0, points.abs().argmax(0, keepdim=True))
        total = float(s.square().sum()) or 1.0
        shares = [*(s.square() / total).tolist(), 0.0, 0.0]
        return (points * largest.sign()).float(), (shares[0], shares[1])

    def neighbours(self, seed: int, perplexity: float | None) -> tuple[torch.Tensor, float]:
        """t-SNE [images, 2], and its perplexity.

        Args:
            seed: of scikit-learn.
            perplexity: 30 by default, or what few images allow.

        Raises:
            DataError: VR573 for a perplexity that there are too few images for, VR745 without
                scikit-learn.
        """
        count = len(self.vectors)
        most = (count - 1) / 3
        if perplexity is not None and not 1 <= perplexity <= most:
            raise DataError(
                "VR573",
                f"t-SNE of {count} images cannot have a perplexity of {perplexity:g}",
                notes=[f"valid: 1 to {most:.4g}"],
                suggestion="give more images with --images",
            )
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise DataError(
                "VR745", "t-SNE needs scikit-learn", suggestion="pip install 'vitrewrite[tune]'"
            ) from error
        used = min(30.0, most) if perplexity is None else perplexity
        start = "pca" if self.vectors.shape[1] > 1 else "random"
        made = TSNE(2, perplexity=used, init=start, random_state=seed)
        return torch.from_numpy(made.fit_transform(self.vectors.numpy())), used


@dataclass(frozen=True)
class EmbeddingsPicture:
    """Embeddings in two dimensions.

    Attributes:
        points: [images, 2].
        how: how they were found, in words.
        axes: what the two dimensions are; t-SNE's are nothing.
    """

    embeddings: Embeddings
    points: torch.Tensor
    how: str
    axes: tuple[str, str] = ("", "")

    @classmethod
    def by_components(cls, found: Embeddings) -> EmbeddingsPicture:
        """By principal components."""
        points, shares = found.components()
        axes = [f"component {i + 1}: {share:.1%} of the variance" for i, share in enumerate(shares)]
        return cls(found, points, "principal components", (axes[0], axes[1]))

    @classmethod
    def by_neighbours(
        cls, found: Embeddings, seed: int = 0, perplexity: float | None = None
    ) -> EmbeddingsPicture:
        """By t-SNE."""
        points, used = found.neighbours(seed, perplexity)
        return cls(found, points, f"t-SNE, perplexity {used:.3g}, seed {seed}")

    def to_json(self) -> dict[str, Any]:
        """The points with their labels, and what is known of all of them."""
        found = self.embeddings
        return {
            "title": found.title, "how": self.how, "width": found.vectors.shape[1],
            "images": len(found.labels), "nearest_of_own_class": round(found.alike, 6),
            "classes": list(found.classes), "labels": found.labels.tolist(),
            "points": [[round(v, 4) for v in point] for point in self.points.tolist()],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """What is known of all of them, in words."""
        found = self.embeddings
        return [
            f"embeddings  {len(found.labels)} images, {found.vectors.shape[1]} numbers each",
            f"drawn by    {self.how}",
            *(f"            {axis}" for axis in self.axes if axis),
            f"nearest     {found.alike:.2%} have a nearest neighbour of their own class",
        ]

    def picture(self) -> str:
        """An SVG: a dot for each image, with the colour of its class."""
        found = self.embeddings
        plot = Plot(_WIDTH, _BOTTOM + 54)
        plot.text(20, 30, found.title, size=17, bold=True)
        told = f"what the head reads of {len(found.labels)} images: {self.how}"
        plot.text(20, 52, told, ink=PALE)
        scales = self._scales()
        self._frame(plot, scales)
        present = sorted(set(found.labels.tolist()))
        ranks = {label: place for place, label in enumerate(present)}
        colours = [hexadecimal(c) for c in palette(len(present)).tolist()]
        for (x, y), label in zip(self.points.tolist(), found.labels.tolist(), strict=True):
            at = scales[0].at(x), scales[1].at(y)
            plot.dot(*at, colours[ranks[label]], radius=3.2, clear=0.75)
        for place, label in enumerate(present[:_LEGEND]):
            y = _TOP + 10 + 22 * place
            plot.dot(_RIGHT + 28, y, colours[place], radius=5)
            known = label < len(found.classes)
            name = found.classes[label] if known else f"class {label}"
            plot.text(_RIGHT + 40, y + 4, name if len(name) <= 24 else f"{name[:22]}...")
        if len(present) > _LEGEND:
            y = _TOP + 14 + 22 * _LEGEND
            plot.text(_RIGHT + 22, y, f"and {len(present) - _LEGEND} more classes", ink=PALE)
        return plot.svg

    def _scales(self) -> tuple[Axis, Axis]:
        """One scale for both dimensions, so that distances mean the same."""
        low, high = self.points.amin(0), self.points.amax(0)
        half = float((high - low).max()) * 0.53 or 1.0
        x, y = ((low + high) / 2).tolist()
        return Axis(x - half, x + half, _LEFT, _RIGHT), Axis(y - half, y + half, _BOTTOM, _TOP)

    def _frame(self, plot: Plot, scales: tuple[Axis, Axis]) -> None:
        """The axes; those of t-SNE have no numbers, as these mean nothing."""
        if self.axes[0]:
            plot.upright(scales[1], _LEFT, _RIGHT)
            for value, told in scales[0].ticks():
                x = scales[0].at(value)
                plot.line(x, _TOP, x, _BOTTOM)
                plot.text(x, _BOTTOM + 16, told, size=11, ink=PALE, anchor="middle")
            middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
            plot.text(middle[0], _BOTTOM + 38, self.axes[0], anchor="middle")
            plot.text(16, middle[1], self.axes[1], anchor="middle", turned=True)
        for x, to_x, y, to_y in (
            (_LEFT, _RIGHT, _TOP, _TOP), (_LEFT, _RIGHT, _BOTTOM, _BOTTOM),
            (_LEFT, _LEFT, _TOP, _BOTTOM), (_RIGHT, _RIGHT, _TOP, _BOTTOM),
        ):  # fmt: skip
            plot.line(x, y, to_x, to_y, ink=INK)


class _Reading(TorchFunctionMode):
    """Keeps what linear layers of some weights read."""

    def __init__(self, weights: set[int], seen: list[tuple[int, torch.Tensor]]) -> None:
        super().__init__()
        self.weights, self.seen = weights, seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and len(args) > 1 and id(args[1]) in self.weights:
            self.seen.append((len(args[1]), args[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _read_by(weights: set[int]) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """While it lasts, how many rows layers have and what they read; `weights` are identities."""
    seen: list[tuple[int, torch.Tensor]] = []
    with _Reading(weights, seen):
        yield seen


def _heads(rewritten: Rewritten) -> set[int]:
    """The matrices of the classifier: the model's own, or all of what stands in its place."""
    matrices = {n: p for n, p in rewritten.module.named_parameters() if p.dim() == 2}
    own = {site.weight for site in rewritten.result.anatomy.head} & matrices.keys()
    return {id(matrices[n]) for n in own or rewritten.result.head & matrices.keys()}


def _without(title: str, count: int) -> MatchError:
    """VR572."""
    why = "reads no vector" if count < 2 else f"is {count} layers"
    return MatchError(
        "VR572",
        f"the head of {shown(title)} {why}, so there is nothing to draw",
        suggestion="give a classifier with one linear head",
    )
