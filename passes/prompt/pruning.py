"""E2VPT's pruning: score prompts and their segments, mask the least important, start again.

Han et al., ICCV 2023, section 3.3. Importance is the gradient of the loss with respect to a mask's
entry: signed and averaged over batches as in the authors' code, or absolute and averaged over
samples as published. With the signed one "least" means most negative.

Every pair of a token level and a segment level is retrained from a fresh start with its masks
frozen; the most accurate on the validation images wins, and of equal ones that with more masked
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from vitrewrite.authoring import Phase, Procedure, Rewritten, Run

MASKS = ("token_mask", "segment_mask")


def level(size: int, percent: int, kept: int) -> int:
    """How many of `size` are masked at a level, when `kept` have to stay."""
    return min(int(size * percent / 100), size - kept)


def pruned(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask [.., n] of ones with zeros at the `count` lowest scores of each row.

    Ties go to the lower index, so the masks of growing counts are nested.
    """
    order = torch.sort(scores, dim=-1, stable=True).indices[..., :count]
    return torch.ones_like(scores).scatter(-1, order, 0.0)


class Score(Phase):
    """Looks at the gradients of the masks, and trains nothing."""

    name, update = "score", False

    def __init__(self, signed: bool) -> None:
        self.signed = signed
        self.settings = {"epochs": 1} if signed else {"epochs": 1, "batch": 1}

    def after_backward(self, run: Run) -> None:
        """Adds up the gradient of a batch, or of a sample."""
        for name in MASKS:
            gradient = _masks(run.inserted("prompt")).get_parameter(name).grad
            assert gradient is not None
            known = run.memory.get(f"importance.{name}", torch.zeros_like(gradient))
            run.memory[f"importance.{name}"] = known + (gradient if self.signed else gradient.abs())


class Retrain(Phase):
    """A fresh start with some prompts and segments masked for good."""

    def __init__(self, percents: tuple[int, int], last: bool) -> None:
        self.percents, self.last = percents, last
        self.name = f"retrain {percents[0]} % of tokens, {percents[1]} % of segments masked"

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """Freezes the masks."""
        _masks(rewritten.inserted("prompt")).requires_grad_(False)
        return rewritten

    def start(self, run: Run) -> None:
        """New random prompts, the other trained parameters as they were given, and the masks."""
        run.rewind()
        masks = _masks(run.rewritten.inserted("prompt"))
        for name, kept, percent in zip(MASKS, (1, 4), self.percents, strict=True):
            mask, scores = masks.get_parameter(name), run.memory[f"importance.{name}"]
            mask.data.copy_(pruned(scores, level(mask.shape[-1], percent, kept)))

    def finish(self, run: Run) -> None:
        """Keeps the best so far; at the end, that is the result."""
        key = [run.score or 0.0, float(self.percents[0])]
        if key > run.memory.get("best", [-1.0, 0.0]):
            run.memory |= {"best": key, "chosen": list(self.percents)}
            run.keep("best")
        if self.last:
            run.recall("best")


class PruneAndRewind(Procedure):
    """Train, score, then every pair of levels anew."""

    def __init__(self, tokens: Sequence[int], segments: Sequence[int], signed: bool) -> None:
        self.levels = list(product(tokens or (0,), segments or (0,)))
        self.signed = signed

    def phases(self, run: Run) -> list[Phase]:
        """In order."""
        again = [Retrain(pair, pair == self.levels[-1]) for pair in self.levels]
        return [Phase(), Score(self.signed), *again]


def _masks(modules: Sequence[torch.nn.Module]) -> torch.nn.Module:
    return next(m for m in modules if hasattr(m, "token_mask"))
