"""Adapts a small ViT from the digits 0-4 to the digits 5-9, in five ways at stated budgets.

Pretrains on 0-4, then compares linear probing, BitFit, LoRA, SPT-LoRA and full tuning on 5-9, each
from the same weights, over several seeds. Prints a table, and draws accuracy against trained
parameters.

    python examples/digits.py --out build/digits
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import timm
import torch

import vitrewrite as vr
from vitrewrite.profiling.run import measure
from vitrewrite.tuning import Settings, tune

SPT = "sensitive(budget=4K, samples=400, scale=20K)"
METHODS = {
    "linear probe": "train head\n",
    "BitFit": "train every bias in blocks\ntrain norm\ntrain head\n",
    "LoRA": "insert lora(rank=8, dropout=0) at blocks[*].attn.{q, v}\ntrain head\n",
    "SPT-LoRA": (
        f"insert lora(rank=4, convention=spt, dropout=0, drop_path=0) at {SPT}\n"
        f"insert sparse() at {SPT}\ntrain optional {SPT}\ntrain cls_token\ntrain head\n"
    ),
    "full tuning": 'train module("*")\ntrain cls_token\ntrain pos_embed\n',
}


def vit(seed: int) -> torch.nn.Module:
    """A ViT of 4 blocks for 16x16 images in five classes."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=4,
        num_classes=5, in_chans=1,
    )  # fmt: skip


def trained(spec: str, model: torch.nn.Module, data: str, epochs: int, seed: int):
    """The model after training, with its accuracy and what was trained."""
    profile = measure(vr.parse(spec), model, data=data) if "sensitive" in spec else None
    rewritten = vr.apply(spec, model, seed=seed, profile=profile)
    settings = Settings(epochs=epochs, batch=32, lr=2e-3, warmup_epochs=2, evaluate_every=epochs)
    with tempfile.TemporaryDirectory() as folder:
        return tune(rewritten, data, settings, out=Path(folder) / "run")


def main() -> None:
    """Runs all methods and writes the table and the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/digits"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {name: [] for name in METHODS}
    parameters: dict[str, list[int]] = {name: [] for name in METHODS}
    for seed in range(options.seeds):
        pretrained = trained(METHODS["full tuning"], vit(seed), "digits:0-4", options.epochs, seed)
        state = pretrained.module.state_dict()
        for name, spec in METHODS.items():
            model = vit(seed)
            own = {k: v for k, v in state.items() if not k.startswith("head.")}
            model.load_state_dict(own, strict=False)
            result = trained(spec, model, "digits:5-9", options.epochs, seed)
            accuracies[name].append(100 * result.training["accuracy"])
            parameters[name].append(result.report["params"]["trainable_without_head"])
            print(f"seed {seed}  {name:13} {accuracies[name][-1]:.1f} %", flush=True)
    rows = [
        (
            name,
            statistics.mean(parameters[name]),
            statistics.mean(values),
            statistics.pstdev(values),
        )
        for name, values in accuracies.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "digits.md").write_text(table(rows))
    (options.out / "digits.svg").write_text(plot(rows))
    print(table(rows))


def table(rows: list[tuple[str, float, float, float]]) -> str:
    """The results in Markdown."""
    lines = ["| method | trained parameters, without head | accuracy on 5-9 |", "|---|---|---|"]
    lines += [f"| {n} | {p:,.0f} | {a:.1f} % ± {s:.1f} |" for n, p, a, s in rows]
    return "\n".join(lines) + "\n"


def plot(rows: list[tuple[str, float, float, float]]) -> str:
    """Accuracy against trained parameters, on a scale of thousands."""
    low = min(a - s for _, _, a, s in rows) // 5 * 5
    most = max(p for _, p, _, _ in rows)

    def x(count: float) -> float:
        return 70 + 430 * (count / most) ** 0.35  # so that the small ones stand apart

    def y(accuracy: float) -> float:
        return 300 - 250 * (accuracy - low) / (100 - low)

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 350" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        '<text x="20" y="26" font-size="16" font-weight="bold">From the digits 0-4 to 5-9</text>',
        '<text x="305" y="330" text-anchor="middle" fill="#555">trained parameters, '
        "without the head</text>",
    ]
    for tick in range(int(low), 101, 5):
        out.append(
            f'<line x1="70" x2="560" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
            f'<text x="62" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick} %</text>'
        )
    for name, count, accuracy, spread in rows:
        top, bottom = y(min(100, accuracy + spread)), y(accuracy - spread)
        crowded = any(
            0 < x(other) - x(count) < 90 and abs(y(value) - y(accuracy)) < 16
            for _, other, value, _ in rows
        )
        side = 'text-anchor="end"' if crowded else ""
        out.append(
            f'<line x1="{x(count):.1f}" x2="{x(count):.1f}" y1="{top:.1f}" y2="{bottom:.1f}" '
            'stroke="#0072b2" stroke-width="2"/>'
            f'<circle cx="{x(count):.1f}" cy="{y(accuracy):.1f}" r="5" fill="#0072b2"/>'
            f'<text x="{x(count) + (-9 if crowded else 9):.1f}" y="{y(accuracy) + 4:.1f}" {side}>'
            f"{name}: {count:,.0f}</text>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
