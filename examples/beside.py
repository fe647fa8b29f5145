"""Trains beside a frozen ViT, on digits: methods that keep little of the model for backward.

A small ViT learns the digits 0-4. Then methods that read what it computes without gradient learn
5-9 of 300 images from the same weights, beside a linear probe, which reads its last layer alone,
and LoRA, whose gradient runs through the model. What backward needs is counted for one image,
parameters left out.

    python examples/beside.py --seeds 3 --out build/beside
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch

import vitrewrite as vr
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

BEFORE, AFTER = "digits:0-4", "digits:5-9?images=300"
WAYS: Mapping[str, tuple[str, float]] = {
    "linear probe": ("", 1e-2),
    "VQT": ("prepend vqt(count=1) to blocks[*]\n", 1e-2),
    "Head2Toe": ("replace head with head2toe(fraction=0.2)\n", 1e-2),
    "side-tuning": ("insert side_tuning() before head\n", 2e-3),
    "LST": ("insert lst(reduction=4, init=weights) at blocks[*]\n", 2e-3),
    "SynQT": ("insert synqt(count=4, hidden=16, narrow=4) at blocks[*]\n", 1e-2),
    "LoRA": ("insert lora(rank=8, dropout=0) at blocks[*].attn.{q, v}\n", 1e-2),
}
"""The clauses, and a learning rate: the better of two for each, on a seed that is not counted."""


def vit(seed: int) -> torch.nn.Module:
    """A ViT of 4 blocks in five classes; of images of a size that AlexNet leaves something of."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        patch_size=16,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=5,
        in_chans=1,
    )


def trained(made: Rewritten, data: str, epochs: int, lr: float) -> Rewritten:
    """The same after training, with its accuracy."""
    settings = Settings(
        epochs=epochs, batch=32, lr=lr, warmup_epochs=min(2, epochs // 2), evaluate_every=epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        return tune(made, data, settings, out=Path(folder) / "run")


def kept(module: torch.nn.Module) -> int:
    """Bytes that a pass of one image keeps for backward, parameters left out, each once."""
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.randn(1, 1, 64, 64))
    return sum(storage.nbytes() for storage in found.values())


def main() -> None:
    """Trains all ways for all seeds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/beside"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, help="of all methods, in place of their own")
    parser.add_argument("--only", action="append", choices=[*WAYS], metavar="WAY")
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, int, int]]] = {way: [] for way in options.only or WAYS}
    for seed in range(options.first, options.first + options.seeds):
        before = trained(
            vr.apply("train every parameter\n", vit(seed)), BEFORE, options.epochs, 2e-3
        )
        state = {k: v for k, v in before.module.state_dict().items() if not k.startswith("head.")}
        for way, found in rows.items():
            model = vit(seed)
            model.load_state_dict(state, strict=False)
            clauses, lr = WAYS[way]
            made = vr.apply(f"{clauses}train head\n", model, seed=seed)
            memory = kept(made.module.eval())
            result = trained(made, AFTER, options.epochs, options.lr or lr)
            right = 100 * result.training["accuracy"]
            found.append((right, result.measures.params.trainable_without_head, memory))
            print(f"seed {seed}  {way:12} {right:.1f} %", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "beside.md").write_text(table(rows))
    print(table(rows))


def table(rows: Mapping[str, list[tuple[float, int, int]]]) -> str:
    """Means over seeds in Markdown."""
    lines = [
        "| method | trained parameters, without head | kept for backward, an image "
        "| accuracy on 5-9 |", "|---|---|---|---|",
    ]  # fmt: skip
    for way, found in rows.items():
        right, (_, parameters, memory) = [row[0] for row in found], found[-1]
        spread = f" ± {statistics.pstdev(right):.1f}" if len(right) > 1 else ""
        cells = f"{parameters:,} | {memory / 1000:,.0f} kB | {statistics.mean(right):.1f} %{spread}"
        lines.append(f"| {way} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
