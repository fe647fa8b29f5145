"""SLS: straightforward layer-wise pruning, which drops the last blocks that a task can do without.

What it does
    Trains what the spec put in at full depth; asks of every block how well its class tokens of the
    training images fall into their classes; drops the last blocks down to the first one that does
    not do it well enough; trains what is left again.

Source
    Han and Tang, "Straightforward Layer-wise Pruning for More Efficient Visual Adaptation",
    ECCV 2024; "Pruned RepAdapter" of FPET, CVPR 2025.

Attaches to
    The last blocks of a plain transformer whose head reads its class token. What the other clauses
    put into blocks that go, goes with them.

Parameters
    None.

Forward
    That of the cut model: the blocks that stay, the last norm, the head; in training too. How it
    comes about:
    1. Training as the recipe says.
    2. Features: the class token that leaves each block, in front of the last norm, of `samples`
       training images in eval mode; by t-SNE to two dimensions, each scaled to [0, 1] (space =
       `tsne`), or as they are (`raw`).
    3. S_l, the silhouette coefficient of the features of the l-th block under the true labels.
       From the last block down, as long as S_l >= theta * S_L. Nothing goes if S_L is negative.
    4. The model cut behind the last block that passed, trained again (retrain):
       `FT` from the trained values at a constant rate of 1e-5, without smoothing or mixing;
       `CLR` from them by the recipe; `TFS` by the recipe from new values.

Exactness
    The cut model is the result: there is nothing to lower. Which blocks went is in the lock file.

Example
    insert lora() at blocks[*].attn.{q, v}
    drop blocks[*] by sls(theta=0.3)
    train head
    of 12 blocks of ViT-B/16 leaves 5 to 12, by task: 1.454 GMACs for each that goes.
"""

from dataclasses import dataclass
from typing import ClassVar

from vitrewrite.authoring import BlockSite, Pass, option


@dataclass(frozen=True)
class Sls(Pass):
    """Layer-wise pruning by the clusters of class tokens."""

    verbs: ClassVar[tuple[str, ...]] = ("drop",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Han and Tang, ECCV 2024"
    claims: ClassVar[tuple[str, ...]] = ()

    theta: float = option(
        0.3, above=0, maximum=1, help="share of the last block's score that is enough"
    )
    samples: int = option(1000, minimum=2, help="training images that features are taken of")
    space: str = option("tsne", choices=("tsne", "raw"), help="where the score is taken")
    perplexity: float = option(
        30.0, minimum=1, needs="space == 'tsne'", help="of t-SNE; below the number of images"
    )
    retrain: str = option("FT", choices=("FT", "CLR", "TFS"), help="how the cut model is trained")
    retrain_epochs: int | None = option(None, minimum=1, help="as many as the recipe's by default")

    def rewrite(self, block: BlockSite) -> None:
        """Whether the class tokens of the last blocks can be compared."""
        if block.dim != block.stem_dim or not block.has_patches:
            raise block.unfit("its model is no plain transformer: widths or tokens differ by stage")
        if block.pooled:
            raise block.unfit("the head reads patches, and clusters are those of a class token")
        if not block.reaches_end:
            raise block.unfit(
                "the last blocks go, and the clause does not end with them",
                suggestion="drop blocks[*] by sls(), or blocks[4:]",
            )

    def procedure(self) -> object:
        """Train, choose, cut, train again."""
        from .pruning import TrainCutTrain

        return TrainCutTrain(self)
