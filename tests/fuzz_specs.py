"""Fuzzing of specs: whatever the text, only errors of vitrewrite come out.

`VITREWRITE_FUZZ=20000 pytest tests/language/test_fuzz.py` tries that many texts.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

from tests.catalogue import CATALOG
from vitrewrite.errors import VitrewriteError
from vitrewrite.language import format_text, parse_spec
from vitrewrite.language.tokens import VERBS

HERE = Path(__file__).parent
PIECES = (
    *VERBS,
    *("at", "before", "after", "to", "with", "in", "every", "where", "and", "or", "not"),
    *("optional", "within", "of", "excluding", "lora", "merge.bdm", "(", ")", "[", "]", "{", "}"),
    *(",", ".", "..", ":", "=", "==", "<=", "!=", "+", "-", "*", "/", "//", "&", "\n", "#", '"'),
    *("'", "\\", "8", "1e400", "0.3M", "1%", "0", "-1", "99999999999", "blocks", "[*]", "rank"),
    *("\t", "\r\n", "\x00", "\ufeff", "\u2264", "\ud800", "\u202e", "\U0001f600", "((((", "]]]]"),
)
SEED = """# FPET on LoRA
model vit_base_patch16_224(num_classes=10)
param rank: int = 8 in 1..64
param mode: str = "sum" in {sum, gate}
let half = rank // 2
include base
insert lora(rank=half, scale=1.0, mode=mode) at blocks[*].attn.{q, v}  # here
insert merge.bdm(keep=4) after blocks[6].attn
replace blocks[-2:, 0].mlp with stitch.snnet()
stitch vit_small, hf:vit-base(depth=3) with stitch.snnet
train head + (every linear in blocks where dim >= 384 and not fused) - norm & module("a.*")
freeze optional sensitive(budget=0.4M, samples=800)
require trainable <= 0.31M excluding head
require macs within 1% of 13.4G
require tokens at blocks[7] == 99
require identity at init
tune {
    lr = 1e-3
    schedule = cosine
    lr(blocks[0:6] + head) = 0.1
    teacher = regnety_160.deit(weights=pretrained)
}
"""


def corpus() -> list[str]:
    """Texts to start from: a spec with everything, and all malformed ones."""
    files = sorted((HERE / "errors").glob("*.peft"))
    lines = [line for line in SEED.split("\n") if line[:1].isalpha() and line != "tune {"]
    return [SEED] * 5 + lines * 3 + [file.read_bytes().decode("utf-8", "replace") for file in files]


def mutated(text: str, rng: random.Random) -> str:
    """The text with up to a few random changes."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        text = _change(text, rng)
    return text


def _change(text: str, rng: random.Random) -> str:
    start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
    end = min(end, start + rng.choice((1, 3, 10, 40)))
    kind = rng.randrange(7)
    if kind == 0:
        return text[:start] + text[end:]
    if kind == 1:
        return text[:start] + rng.choice(PIECES) + text[start:]
    if kind == 2:
        return text[:start] + rng.choice(PIECES) + text[end:]
    if kind == 3:
        return text[:start] + text[start:end] * rng.randint(2, 30) + text[end:]
    if kind == 4:
        lines = text.split("\n")
        rng.shuffle(lines)
        return "\n".join(lines)
    if kind == 5:
        return text[:start] + chr(rng.randrange(0x3000)) + text[start:]
    return text[:start] + " ".join(rng.choices(PIECES, k=8)) + text[end:]


def texts(count: int, seed: int) -> Iterator[str]:
    """Random and mutated texts."""
    rng, start = random.Random(seed), corpus()
    for number in range(count):
        if number % 10 == 0:
            yield " ".join(rng.choices(PIECES, k=rng.randint(1, 60)))
        elif number % 10 == 1:
            yield rng.randbytes(rng.randint(1, 300)).decode("latin-1")
        else:
            yield mutated(rng.choice(start), rng)


def check(text: str) -> bool:
    """Parses and formats a text; whether it is a spec without errors.

    What is well-formed must stay what it is when it is formatted and when it is printed.
    """
    try:
        formatted = format_text(text)
    except VitrewriteError as error:
        error.render()
        return False
    assert format_text(formatted) == formatted
    try:
        spec = parse_spec(text + "\n", catalog=CATALOG)
    except VitrewriteError as error:
        error.render()
        return False
    same = dataclasses.replace(parse_spec(formatted + "\n", catalog=CATALOG), text=spec.text)
    assert same == spec
    again = parse_spec(str(spec) + "\n", catalog=CATALOG)
    assert (again.hash, str(again)) == (spec.hash, str(spec))
    return True


def fuzz(count: int, seed: int = 0) -> int:
    """Checks that many texts; how many of them were specs without errors."""
    return sum(check(text) for text in texts(count, seed))
