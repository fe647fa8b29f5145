"""Stitches three small ViTs on digits, and asks whether scores choose the right stitch.

Three models learn the digits 0-4. Then all ways through them are trained at once on 5-9: by SN-Net,
which trains all, and by ESTA, which trains updates and biases, with draws that are uniform or go by
score. Of each interval of costs one stitch is used: the one with the highest score, the one that
does best on half of the images that are measured on, or any. Accuracies are on the other half.

    python examples/stitch.py --seeds 3 --out build/stitch
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

import vitrewrite as vr
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.report.palette import Interval, best
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

WIDTHS = {"small": 32, "middle": 64, "large": 96}
RANKS = {"small": 12, "middle": 6, "large": 4}
BEFORE, AFTER = "digits:0-4", "digits:5-9?val=0.4&images=500"
LORA = "insert lora(rank={rank}, dropout=0) at {base}blocks[*].attn.{{qkv, proj}}\n"
SCORED = {"stitch_sampling": "scored", "stitch_warmup": 0.3, "stitch_start": "score"}
UNIFORM = {"stitch_sampling": "uniform", "stitch_start": "score"}
TAUGHT = {"stitch_teacher": "anchor"}


BASES = ", ".join(f"{name}=vit_tiny_patch16_224" for name in WIDTHS)  # stands for those given
SNNET = f"stitch {BASES} with snnet(ends=inner)\ntrain every base\n"
ESTA = (
    f"stitch {BASES} with snnet(ends=inner, layers=lora, biases=true)\n"
    + "".join(LORA.format(rank=rank, base=f"{name}.") for name, rank in RANKS.items())
    + "insert stitch_bias() at every base.blocks[*].attn.{qkv, proj}\n"
    + "train every base.head\n"
)
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "SN-Net": (SNNET, UNIFORM),
    "ESTA, uniform draws": (ESTA, {**UNIFORM, **TAUGHT}),
    "ESTA": (ESTA, {**SCORED, **TAUGHT}),
    "ESTA of adapted models": (ESTA, {**SCORED, **TAUGHT}),
}
"""How stitches are trained: the clauses, and the settings."""


def vit(name: str, seed: int) -> torch.nn.Module:
    """A ViT of 5 blocks for 16x16 images in five classes."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=WIDTHS[name],
        depth=5,
        num_heads=4,
        num_classes=5,
        in_chans=1,
    )


def trained(made: Rewritten, data: str, epochs: int, **settings: object) -> Rewritten:
    """The same after training."""
    given = Settings(
        epochs=epochs, batch=32, lr=2e-3, warmup_epochs=min(2, epochs // 2), evaluate_every=epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        return tune(made, data, given.changed(settings), out=Path(folder) / "run")


def pretrained(name: str, seed: int, epochs: int) -> torch.nn.Module:
    """A model that knows the digits 0-4, with a new head."""
    result = trained(vr.apply("train every parameter\n", vit(name, seed)), BEFORE, epochs)
    state = result.module.state_dict()
    model = vit(name, seed + 1)
    own = {k: v for k, v in state.items() if not k.startswith("head.")}
    model.load_state_dict(own, strict=False)
    return model


def adapted(name: str, model: torch.nn.Module, seed: int, epochs: int) -> torch.nn.Module:
    """A model that was adapted to 5-9 by itself: the first stage of what ESTA is compared with."""
    spec = f"{LORA.format(rank=RANKS[name], base='')}train head\n"
    result = vr.lower(trained(vr.apply(spec, model, seed=seed), AFTER, epochs))
    copy = vit(name, seed)
    copy.load_state_dict(result.module.state_dict())
    return copy


@dataclass(frozen=True)
class Palette:
    """What stitches do: which images each gets right, [stitches, images], and what was scored."""

    right: torch.Tensor
    macs: Sequence[int]
    found: Mapping[str, Any]

    def rows(self) -> list[tuple[float, ...]]:
        """Of each interval where it ends, how many are in it, and accuracies.

        These are of the stitch by score, by accuracy, of any, of the best and of the largest model;
        at the end stands whether one score is so high that it takes all draws.
        """
        choice, told = self.right[:, ::2].mean(1), self.right[:, 1::2].mean(1)
        largest = max(range(3), key=lambda n: self.macs[n])
        rows = []
        for row in self.found["intervals"]:
            numbers = row["stitches"]
            part = Interval(row["from"], row["to"], tuple(numbers))
            scored = best(part, self.found["scores"], self.found["drawn"])
            chosen = max(numbers, key=lambda n: float(choice[n]))
            values = [float(told[n]) for n in numbers]
            of_score = statistics.mean(values) if scored is None else float(told[scored])
            rows.append((
                row["to"], len(numbers), of_score, float(told[chosen]),
                statistics.mean(values), max(values), float(told[largest]), row["peaked"],
            ))  # fmt: skip
        return rows


def palette(way: str, models: dict[str, torch.nn.Module], seed: int, epochs: int) -> Palette:
    """All stitches, trained one way."""
    spec, settings = WAYS[way]
    made = vr.apply(spec, models, seed=seed, calibration=AFTER)
    result = trained(made, AFTER, epochs, stitch_intervals=4, **settings)
    space = result.measures.stitches
    assert space is not None
    module: Any = result.module.eval()
    images = open_data(AFTER, Preprocessing.of(result.base)).val
    right = []
    with torch.no_grad():
        for stitch in space.stitches:
            hits = [
                module.stitch(x, stitch.number).argmax(1) == labels
                for x, labels in batches(images, 256)
            ]
            right.append(torch.cat(hits).float())
    macs = [stitch.macs for stitch in space.stitches]
    return Palette(torch.stack(right), macs, result.training["stitches"])


def main() -> None:
    """Trains all ways for all seeds and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/stitch"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=16, help="of each stage; the first has half")
    parser.add_argument("--only", action="append", choices=[*WAYS], metavar="WAY")
    options = parser.parse_args()
    found: dict[str, list[list[tuple[float, ...]]]] = {way: [] for way in options.only or WAYS}
    for seed in range(options.seeds):
        models = {name: pretrained(name, seed, (options.epochs + 1) // 2) for name in WIDTHS}
        for way in found:
            own = models
            if way.endswith("adapted models"):
                own = {n: adapted(n, m, seed, options.epochs) for n, m in models.items()}
            rows = palette(way, own, seed, options.epochs).rows()
            found[way].append(rows)
            means = (f"{statistics.mean(row[i] for row in rows):.1%}" for i in range(2, 7))
            print(f"seed {seed}  {way:32}", *means, flush=True)
    text = table(found)
    if "ESTA" in found:
        text += f"\n{by_interval(found['ESTA'])}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stitch.md").write_text(text)
    print(text)


def table(found: Mapping[str, Sequence[Sequence[tuple[float, ...]]]]) -> str:
    """Means over intervals and seeds in Markdown, and where the score chose worse than chance."""
    lines = [
        "| trained by | by score | by accuracy | any | best there is | largest model | "
        "score below the mean | peaked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, seeds in found.items():
        every = [row for rows in seeds for row in rows]
        cells = []
        for i in range(2, 7):
            means = [statistics.mean(row[i] for row in rows) for rows in seeds]
            spread = f" ± {100 * statistics.pstdev(means):.1f}" if len(seeds) > 1 else ""
            cells.append(f"{statistics.mean(means):.1%}{spread}")
        several = [row for row in every if row[1] > 1]
        lost = sum(row[2] < row[4] for row in several)
        cells.append(f"{lost} of {len(several)}")
        cells.append(f"{sum(row[7] for row in several):.0f} of {len(several)}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_interval(seeds: Sequence[Sequence[tuple[float, ...]]]) -> str:
    """The same for each interval of one way."""
    lines = ["| MACs to | stitches | by score | by accuracy | any | best there is |"]
    lines += ["|---|---|---|---|---|---|"]
    for rows in zip(*seeds, strict=True):
        cells = (f"{statistics.mean(row[i] for row in rows):.1%}" for i in range(2, 6))
        lines.append(f"| {rows[0][0] / 1e6:.1f} M | {rows[0][1]:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
