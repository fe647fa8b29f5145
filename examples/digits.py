"""Adapts a small ViT from the digits 0-4 to the digits 5-9, by every method at its budget.

Pretrains on 0-4, then trains each method on 5-9 from the same weights. Prints a table, and draws
accuracy against trained parameters.

    python examples/digits.py --out build/digits
    python examples/digits.py --only LoRA --only AdaptFormer --seeds 3
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import timm
import torch

import vitrewrite as vr
from vitrewrite.profiling.run import measure
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

QV = "blocks[*].attn.{q, v}"
MLP = "blocks[*].mlp_branch"
SPT = "sensitive(budget=4K, samples=400, scale=20K)"
FULL = 'train module("*")\ntrain cls_token\ntrain pos_embed\n'
CLAUSES = {
    "linear probe": "",
    "MLP-3 head": "replace head with mlp_head(layers=3)\n",
    "partial-1": "train blocks[-1:] + norm\n",
    "BitFit": "train every bias in blocks\ntrain norm\n",
    "LoRA": f"insert lora(rank=8, dropout=0) at {QV}\n",
    "LoRA everywhere": "insert lora(rank=8, dropout=0) at every linear in blocks\n",
    "Bi-LoRA": f"insert bi.lora(rank=16) at {QV}\n",
    "FacT-TT": "insert fact(rank=16, form=tt) at every linear in blocks\n",
    "FacT-TK": "insert fact(rank=16, form=tk) at every linear in blocks\n",
    "IA3": "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2\n",
    "SSF": (
        "insert ssf() at every conv in patch_embed + blocks[*].{norm1, norm2} + norm\n"
        "insert ssf() at every linear in blocks\n"
    ),
    "RepAdapter": (
        "insert repadapter(hidden=8, groups=2) at blocks[*].attn.qkv + blocks[*].mlp.fc1\n"
    ),
    "Adapter P": f"insert adapter(hidden=8) at {MLP}\n",
    "Adapter H": "insert adapter(hidden=8) at every branch\n",
    "AdaptFormer": f"insert adaptformer(hidden=8) at {MLP}\n",
    "Bi-AdaptFormer": f"insert bi.adaptformer(hidden=32) at {MLP}\n",
    "Convpass": "insert convpass(hidden=8) at every branch\n",
    "UniAdapter": f"insert uniadapter(hidden=32) at {MLP}\n",
    "Res-Tuning": "insert res_tuning(hidden=10) at blocks[*].{attn, mlp}\n",
    "Res-Tuning bypass": "insert res_tuning(form=bypass, hidden=10) at blocks[*]\ntrain norm\n",
    "SPT-LoRA": (
        f"insert lora(rank=4, convention=spt, dropout=0, drop_path=0) at {SPT}\n"
        f"insert sparse() at {SPT}\ntrain optional {SPT}\ntrain cls_token\n"
    ),
    "SLS-LoRA": (
        f"insert lora(rank=8, dropout=0) at {QV}\n"
        "drop blocks[*] by sls(samples=400, retrain=CLR, retrain_epochs=10)\n"
    ),
}
METHODS = {name: f"{text}train head\n" for name, text in CLAUSES.items()} | {"full tuning": FULL}

Row = tuple[str, float, float, float]
"""A method, its trained parameters, the mean of its accuracies in percent, their deviation."""


def vit(seed: int) -> torch.nn.Module:
    """A ViT of 4 blocks for 16x16 images in five classes."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=5,
        in_chans=1,
    )


def trained(spec: str, model: torch.nn.Module, data: str, epochs: int, seed: int) -> Rewritten:
    """The model after training, with its accuracy and what was trained."""
    profile = measure(vr.parse(spec), model, data=data) if "sensitive" in spec else None
    rewritten = vr.apply(spec, model, seed=seed, profile=profile)
    settings = Settings(
        epochs=epochs, batch=32, lr=2e-3, warmup_epochs=min(2, epochs // 2), evaluate_every=epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        return tune(rewritten, data, settings, out=Path(folder) / "run")


def main() -> None:
    """Runs the methods and writes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/digits"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--only",
        action="append",
        choices=[*METHODS],
        metavar="METHOD",
        help=f"one or more of {', '.join(METHODS)}",
    )
    options = parser.parse_args()
    names = options.only or [*METHODS]
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    parameters: dict[str, list[int]] = {name: [] for name in names}
    for seed in range(options.seeds):
        pretrained = trained(FULL, vit(seed), "digits:0-4", options.epochs, seed)
        state = pretrained.module.state_dict()
        for name in names:
            model = vit(seed)
            own = {k: v for k, v in state.items() if not k.startswith("head.")}
            model.load_state_dict(own, strict=False)
            result = trained(METHODS[name], model, "digits:5-9", options.epochs, seed)
            accuracies[name].append(100 * result.training["accuracy"])
            parameters[name].append(result.report["params"]["trainable_without_head"])
            print(f"seed {seed}  {name:17} {accuracies[name][-1]:.1f} %", flush=True)
    rows = [
        (name, statistics.mean(parameters[name]), statistics.mean(a), statistics.pstdev(a))
        for name, a in accuracies.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "digits.md").write_text(table(rows))
    (options.out / "digits.svg").write_text(plot(rows))
    print(table(rows))


def table(rows: list[Row]) -> str:
    """The results in Markdown."""
    lines = ["| method | trained parameters, without head | accuracy on 5-9 |", "|---|---|---|"]
    lines += [f"| {n} | {p:,.0f} | {a:.1f} %{f' ± {s:.1f}' if s else ''} |" for n, p, a, s in rows]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row]) -> str:
    """Accuracy against trained parameters, each with its name beside it."""
    low = min(95, min(a - s for _, _, a, s in rows) // 5 * 5)
    most = max(*(p for _, p, _, _ in rows), 1)

    def x(count: float) -> float:
        return 70 + 760 * (count / most) ** 0.35  # so that the small ones stand apart

    def y(accuracy: float) -> float:
        return 540 - 490 * (accuracy - low) / (100 - low)

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 600" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        '<text x="20" y="28" font-size="16" font-weight="bold">From the digits 0-4 to 5-9</text>',
        '<text x="450" y="588" text-anchor="middle" fill="#555">trained parameters, '
        "without the head</text>",
    ]
    for tick in range(int(low), 101, 5):
        out.append(
            f'<line x1="70" x2="830" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
            f'<text x="62" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick} %</text>'
        )
    for tick in (0, 1_000, 3_000, 10_000, 30_000, 100_000, 200_000):
        if tick <= most:
            out.append(
                f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="50" y2="545" stroke="#eee"/>'
                f'<text x="{x(tick):.1f}" y="562" text-anchor="middle" fill="#555">{tick:,}</text>'
            )
    points = [(x(count), y(accuracy)) for _, count, accuracy, _ in rows]
    for (_, _, accuracy, spread), (cx, cy) in zip(rows, points, strict=True):
        top, bottom = y(min(100, accuracy + spread)), y(accuracy - spread)
        out.append(
            f'<line x1="{cx:.1f}" x2="{cx:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" '
            'stroke="#0072b2" stroke-width="2"/>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="#0072b2"/>'
        )
    names = [name for name, *_ in rows]
    for name, (cx, cy), (left, middle) in zip(names, points, labels(names, points), strict=True):
        near = min(max(cx, left), left + width(name))
        if abs(near - cx) + abs(middle - cy) > 22:  # so that it is seen whose name it is
            out.append(
                f'<line x1="{cx:.1f}" y1="{cy:.1f}" x2="{near:.1f}" y2="{middle:.1f}" '
                'stroke="#999" stroke-width="0.7"/>'
            )
        out.append(f'<text class="name" x="{left:.1f}" y="{middle + 4:.1f}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def width(name: str) -> float:
    """What a name takes in the plot at most, in pixels."""
    return 7.4 * len(name)


def labels(names: list[str], points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Left end and middle of every name: as near to its point as nothing else stands."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    found = []
    for name, (px, py) in zip(names, points, strict=True):
        long = width(name)
        sides = (9.0, -9 - long, -long / 2)
        places = [
            (px + side + shift, py + down)
            for down in sorted(range(-160, 161, 4), key=abs)
            for side in sides
            for shift in (0, *((-40, 40) if abs(down) > 12 else ()))
        ]
        places.sort(key=lambda p: _far(p[0], p[1], long, px, py))
        left, middle = next((p for p in places if _free(p[0], p[1], long, taken)), places[0])
        taken.append((left - 2, middle - 7, left + long + 2, middle + 7))
        found.append((left, middle))
    return found


def _far(left: float, middle: float, long: float, px: float, py: float) -> float:
    """How far a name is from its point."""
    return abs(min(max(px, left), left + long) - px) + abs(middle - py)


def _free(left: float, middle: float, long: float, taken: list[tuple[float, ...]]) -> bool:
    """Whether a name is in the picture and on nothing else."""
    if left < 72 or left + long > 936 or not 46 < middle < 530:
        return False
    return not any(
        left < right and x < left + long and middle - 7 < bottom and top < middle + 7
        for x, top, right, bottom in taken
    )


if __name__ == "__main__":
    main()
