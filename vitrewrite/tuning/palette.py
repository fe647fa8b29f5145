"""Which of several stitches a step trains: draws by cost and score.

He et al., "Efficient Stitchable Task Adaptation", CVPR 2024: of the intervals of costs that hold
stitches one is drawn, and in it a stitch by the softmax of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..report.palette import Interval


def shares(scores: Sequence[float], *, temperature: float, normalised: bool) -> torch.Tensor:
    """The probability of each stitch of an interval: the softmax of their scores."""
    values = torch.tensor(scores, dtype=torch.float64)
    if normalised and float(values.max()) > 0:
        values = values / values.max()
    return torch.softmax(values / temperature, 0)


def draw(
    parts: Sequence[Interval],
    scores: Sequence[float],
    generator: torch.Generator,
    *,
    temperature: float,
    normalised: bool,
) -> int:
    """A stitch: an interval that holds some, each as likely, and one of them by its score."""
    held = [part.stitches for part in parts if part.stitches]
    chosen = held[int(torch.randint(len(held), (1,), generator=generator))]
    found = shares([scores[n] for n in chosen], temperature=temperature, normalised=normalised)
    return chosen[int(torch.multinomial(found, 1, generator=generator))]
