"""Searches the structure of a small ViT on digits, against chance and against pruning heads.

Trains a dense model on 500 images, then asks each way for a cost: it finds a structure, which is
built of the dense weights and trained again. Of five draws the mean is given, and the best.

    python examples/search.py --seeds 3 --out build/search
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import timm
import torch

import vitrewrite as vr
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

UMSA = "replace blocks[*].attn with umsa()\n"
UFFN = "replace blocks[*].mlp with uffn()\n"
HEADS = "replace blocks[*].attn with heads()\n"
WAYS = {
    ("UMSA and UFFN", "gates"): (UMSA + UFFN, 0.6),
    ("UMSA and UFFN", "random"): (UMSA + UFFN, 0.6),
    ("UMSA", "gates"): (UMSA, 0.8),
    ("heads", "gates"): (HEADS, 0.8),
    ("heads", "ranked"): (HEADS, 0.8),
    ("heads", "random"): (HEADS, 0.8),
}
"""What is searched and how: the clauses, and the share of the dense model's MACs."""
DRAWS = 5
DATA = "digits?images=500"

Row = tuple[str, str, float, list[float], list[float]]
"""What, how, the share asked for; shares of MACs and accuracies, run by run."""


def vit(seed: int) -> torch.nn.Module:
    """A ViT of 4 blocks for 16x16 images."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=10,
        in_chans=1,
    )


def trained(spec: str, model: torch.nn.Module, seed: int, **settings: object) -> Rewritten:
    """The model after training, or after a search and training."""
    rewritten = vr.apply(f"{spec}train every parameter\n", model, seed=seed)
    given = Settings(batch=32, lr=1e-3, weight_decay=0.05, evaluate_every=1000)
    with tempfile.TemporaryDirectory() as folder:
        return tune(rewritten, DATA, given.changed(settings), out=Path(folder) / "run")


def dense(seed: int, epochs: int) -> tuple[torch.nn.Module, Rewritten]:
    """A trained model, and what is known of it."""
    model, result = vit(seed), trained("", vit(seed), seed, epochs=epochs, warmup_epochs=2)
    model.load_state_dict(result.module.state_dict())
    return model, result


def main() -> None:
    """Runs all ways for all seeds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/search"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20, help="of the dense model and of a search")
    parser.add_argument("--again", type=int, default=8, help="epochs of what was found")
    parser.add_argument("--only", action="append", help="one or more of UMSA, UFFN, heads, ...")
    options = parser.parse_args()
    whole: Row = ("nothing", "", 1.0, [], [])
    again: Row = ("nothing, trained again", "", 1.0, [], [])
    rows: dict[tuple[str, str], Row] = {
        key: (*key, share, [], [])
        for key, (_, share) in WAYS.items()
        if not options.only or key[0] in options.only
    }
    for seed in range(options.seeds):
        model, result = dense(seed, 2 * options.epochs)
        macs = result.measures.macs
        for row, one in ((whole, result), (again, trained("", model, seed, epochs=options.again))):
            row[3].append(1.0)
            row[4].append(one.training["accuracy"])
        for (what, how), (*_, share, shares, accuracies) in rows.items():
            for draw in range(DRAWS if how == "random" else 1):
                found = trained(
                    WAYS[what, how][0],
                    model,
                    seed,
                    epochs=options.again,
                    macs=round(share * macs),
                    search=how,
                    search_epochs=options.epochs,
                    gate_lr=0.02,
                    search_draw=draw,
                )
                shares.append(found.measures.macs_lowered / macs)
                accuracies.append(found.training["accuracy"])
                sites = found.training["search"]["sites"]
                print(
                    f"seed {seed}  {what:13} {how:8} {shares[-1]:.3f} {accuracies[-1]:.3f}",
                    *sites.values(),
                    flush=True,
                )
    text = table([whole, again, *rows.values()], options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "search.md").write_text(text)
    print(text)


def table(rows: list[Row], seeds: int) -> str:
    """The results in Markdown: means over seeds, of draws also the best of each seed."""
    lines = ["| searched | by | MACs | accuracy | best of the draws |", "|---|---|---|---|---|"]
    for what, how, _, shares, accuracies in rows:
        draws = len(accuracies) // seeds
        by_seed = [accuracies[i * draws : (i + 1) * draws] for i in range(seeds)]
        best = f"{statistics.mean(map(max, by_seed)):.1%}" if how == "random" else ""
        means = [statistics.mean(each) for each in by_seed]
        spread = f" ± {100 * statistics.pstdev(means):.1f}" if seeds > 1 else ""
        lines.append(
            f"| {what} | {how} | {statistics.mean(shares):.1%} | "
            f"{statistics.mean(means):.1%}{spread} | {best} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
