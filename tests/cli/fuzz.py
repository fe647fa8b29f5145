"""Fuzzing of the command: whatever the spec and the overrides, it answers with a status.

`VITREWRITE_FUZZ=20000 pytest tests/cli/test_fuzz.py` runs that many command lines in this process,
`VITREWRITE_FUZZ_PROCESSES=200` that many as processes of their own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzz_specs import PIECES, corpus, mutated

from .invoke import LORA

# Statements that a tiny model can carry out, so that a part of the specs gets through to torch.
STATEMENTS = (
    "insert lora(rank=4) at blocks[*].attn.{q, v}",
    "insert lora(rank=rank, convention=spt, dropout=0.2) at every linear in blocks[1:]",
    "insert lora(rank=2, convention=library, alpha=4) at blocks[0].mlp.fc1 + head",
    "insert lora(scale=-1.5) at module('blocks.*.attn.proj')",
    "insert lora() at optional blocks[0:2].attn.qkv where in_features >= 16",
    "insert merge.bdm(keep=4) after blocks[0].attn",
    "train head", "train norm + blocks[-1].norm1", "train cls_token",
    "train every linear in blocks",
    "train blocks[*] - blocks[1]", "freeze patch_embed", "freeze blocks[*].mlp where dim < 99",
    "drop blocks[1]", "require trainable <= 1% of 4M", "require macs within 5% of 0.6M",
    "require trainable <= 2K excluding head", "require tokens at blocks[1] == 17",
    "require identity at init", "require lowers exactly", "require params >= 0",
    "let a = 2 * (3 + 1)", "param wide: bool = true", "include lora_qv", "tune { lr = 1e-3 }",
    "model tiny.py:build(depth=1)", "model tiny.py:build(num_classes=0, class_token=false)",
)  # fmt: skip
KEYS = (
    *("rank", "lora.rank", "lora.scale", "lora.dropout", "model", "model.depth", "depth", "seed"),
    *("num_heads", "img_size", "embed_dim", "num_classes", "weights", "device", "data", "tune.lr"),
    *("patch_size", "mlp_ratio", "class_token", "init_values", "drop_rate", "global_pool", "rnak"),
    *(
        "reg_tokens",
        "qkv_bias",
        "in_chans",
        "model.act_layer",
        "model.norm_layer",
        "a.b.c",
        "",
        "1",
    ),
)
VALUES = (
    *(
        "0",
        "1",
        "2",
        "3",
        "4",
        "7",
        "8",
        "-1",
        "16",
        "33",
        "0.5",
        "1e-3",
        "1K",
        "10%",
        "true",
        "none",
    ),
    *(
        "false",
        "[8, 8]",
        "[]",
        "[1, 2, 3]",
        '"x"',
        "avg",
        "token",
        "map",
        "gelu",
        "",
        " ",
        "=",
        "((",
    ),
    *(
        "tiny.py:build",
        "tiny.py:none",
        "missing.py:f",
        "random",
        "lora.peft",
        "cpu",
        "1e999",
        "{",
        "'",
    ),
    *(
        "tiny.py:build(depth=1)",
        "vit_bsae",
        "hf:x",
        "hf-hub:x/y",
        "/dev/null",
        "\u2713",
        "\ud800",
        "\x00",
    ),
)


@dataclass(frozen=True)
class Case:
    """The text of a spec, and overrides."""

    text: str
    overrides: tuple[str, ...]
    plan: bool  # or only check


def cases(count: int, seed: int) -> Iterator[Case]:
    """Random specs, mostly near to well-formed ones, with random overrides."""
    rng, start = random.Random(seed), corpus()
    for number in range(count):
        text, overrides = _text(number, rng, start), tuple(map(_shallow, _overrides(rng)))
        yield Case(_shallow(text), overrides, rng.random() < 0.5)


def _shallow(text: str) -> str:
    """Not a million blocks: they would be built."""
    return re.sub(r"(depth\s*=\s*)[\w.]{3,}", r"\g<1>3", text)


def _text(number: int, rng: random.Random, start: list[str]) -> str:
    if number % 10 == 0:
        return " ".join(rng.choices(PIECES, k=rng.randint(1, 60)))
    if number % 10 == 1:
        return rng.randbytes(rng.randint(1, 300)).decode("latin-1")
    if number % 10 < 6:
        return mutated(rng.choice(start), rng)
    lines = ["model tiny.py:build", "param rank: int = 3 in 1..64"]
    lines += rng.choices(STATEMENTS, k=rng.randint(1, 3))
    text = rng.choice(("\n".join(lines) + "\n", LORA))
    return mutated(text, rng) if rng.random() < 0.5 else text


def _overrides(rng: random.Random) -> Iterator[str]:
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        text = f"{rng.choice(KEYS)}={rng.choice(VALUES)}"
        yield mutated(text, rng).replace("\n", " ") if rng.random() < 0.2 else text
