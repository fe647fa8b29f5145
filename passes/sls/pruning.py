"""The procedure of SLS: clusters of class tokens decide how many blocks stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vitrewrite.authoring import Phase, Procedure, Rewritten, Run, decided, features, silhouette

if TYPE_CHECKING:
    from . import Sls

FINE = {
    "lr": 1e-5, "schedule": "constant", "warmup_epochs": 0.0, "label_smoothing": 0.0,
    "mixup": 0.0, "cutmix": 0.0,
}  # fmt: skip
"""What `FT` changes of a recipe."""


class TrainCutTrain(Procedure):
    """Full depth first; where blocks were chosen before, as in a folder, there is nothing to do."""

    def __init__(self, options: Sls) -> None:
        self.options = options

    def phases(self, run: Run) -> Sequence[Phase]:
        """Training at full depth, and training of what is left."""
        choice = run.original.choice("sls")
        if choice.gone is not None:
            return ()
        count = min(self.options.samples, len(run.data.train))
        if self.options.space == "tsne" and count < self.options.perplexity + 1:
            raise run.refuse(
                f"{count} images are too few for t-SNE with perplexity {self.options.perplexity:g}",
                suggestion=f"give more images, or sls(perplexity={max(1, count // 4)})",
            )
        # A clause that stands in a block that may go is refused now, and not after training.
        decided(run.original, {"sls": replace(choice, gone=choice.among[1:])})
        return Choose(self.options), Again(self.options)


class Choose(Phase):
    """Training by the recipe, then the choice."""

    name = "full depth"

    def __init__(self, options: Sls) -> None:
        self.options = options

    def finish(self, run: Run) -> None:
        """Scores the blocks from the last one on, and remembers which go."""
        choice = run.rewritten.choice("sls")
        found, labels = features(run, choice.among, self.options.samples)
        if not 2 <= len(torch.unique(labels)) < len(labels):
            raise run.refuse(
                f"{len(labels)} images of {len(torch.unique(labels))} classes have no silhouette",
                suggestion="it takes two classes, and two images of one of them",
            )
        if flat := [role for role, f in found.items() if bool((f == f[:1]).all())]:
            raise run.refuse(f"{flat[0]} yields the same class token for all images")
        perplexity = self.options.perplexity if self.options.space == "tsne" else None
        scores: dict[str, float] = {}
        kept = len(choice.among)
        for place, role in reversed([*enumerate(choice.among, 1)]):
            scores[role] = silhouette(found[role], labels, perplexity)
            if not enough([*scores.values()], self.options.theta):
                break
            kept = place
        gone = choice.among[kept:]
        run.memory |= {
            "sls.gone": [*gone],
            "sls.scored": [*scores],
            "sls.scores": [*scores.values()],
        }


def enough(scores: Sequence[float], theta: float) -> bool:
    """Whether the last of some scores, the first of which is the last block's, is good enough."""
    return scores[0] >= 0 and scores[-1] >= theta * scores[0]


class Again(Phase):
    """Training of the model that is cut."""

    name = "pruned"

    def __init__(self, options: Sls) -> None:
        self.options = options
        epochs = {} if options.retrain_epochs is None else {"epochs": options.retrain_epochs}
        self.settings: Mapping[str, object] = {
            **(FINE if options.retrain == "FT" else {}),
            **epochs,
        }

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """The same clauses without the blocks that go."""
        scores = dict(zip(run.memory["sls.scored"], run.memory["sls.scores"], strict=True))
        choice = replace(rewritten.choice("sls"), gone=run.memory["sls.gone"], scores=scores)
        return decided(rewritten, {"sls": choice})

    def start(self, run: Run) -> None:
        """New values, if so wanted; else what full depth was trained to."""
        if self.options.retrain == "TFS":
            run.rewind()
