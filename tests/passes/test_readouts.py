"""What passes that give the head other things to read refuse: each other, and to be rewritten."""

from __future__ import annotations

import functools
from itertools import combinations, permutations
from typing import Any

import pytest

import vitrewrite as vr
from tests.lowering.models import vit

READOUTS = {
    "mlp_head": "replace head with mlp_head()",
    "bi.head": "replace head with bi.head()",
    "setr": "replace head with setr(classes=3)",
    "head2toe": "replace head with head2toe()",
    "vqt": "prepend vqt() to blocks[*]",
    "lst": "insert lst(reduction=4) at blocks[*]",
    "synqt": "insert synqt(hidden=6, narrow=2) at blocks[*]",
    "side_tuning": "insert side_tuning() before head",
}
TOME = "insert merge.tome(r=2) after blocks[*].attn"
LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"


@functools.cache
def base() -> Any:
    """One capture for all, of images that side networks leave something of."""
    return vr.capture(vit(img_size=64, patch_size=16).eval())


@functools.cache
def rewritten(name: str) -> Any:
    """A model that was rewritten before."""
    return vr.apply(f"{READOUTS[name]}\n", base()).module


@pytest.mark.parametrize("names", [*combinations(sorted(READOUTS), 2)], ids=" and ".join)
def test_a_model_has_one(names: tuple[str, str]) -> None:
    with pytest.raises(vr.VitrewriteError, match=f"VR455 {names[0]} and {names[1]} are both a re"):
        vr.plan("\n".join(READOUTS[name] for name in names) + "\n", base())


@pytest.mark.parametrize("clause", [TOME, LORA, READOUTS["lst"], "train blocks[0]"])
@pytest.mark.parametrize("name", ["synqt", "vqt"])
def test_rows_that_an_earlier_rewrite_took_through_blocks(name: str, clause: str) -> None:
    """What a block is cannot be told then; which pass it is, is said."""
    words = f"VR560 .* finds no blocks: .* rows of {name} pass the layers of 'blocks.0'"
    with pytest.raises(vr.VitrewriteError, match=words):
        vr.plan(f"{clause}\n", rewritten(name))


def test_a_head_on_such_a_model() -> None:
    """One that reads blocks is refused likewise; another is not."""
    with pytest.raises(vr.VitrewriteError, match=r"VR410 head2toe at 'head': .* rows of synqt"):
        vr.plan("replace head with head2toe()\n", rewritten("synqt"))
    vr.plan("replace head with bi.head()\n", rewritten("synqt"))


@pytest.mark.parametrize("name", ["lst", "head2toe", "side_tuning"])
def test_what_is_trained_in_vain_on_such_a_model_is_told(name: str) -> None:
    (told,) = vr.plan(f"{LORA}\n", rewritten(name)).warnings
    assert told.startswith("an earlier rewrite: what it reads gets no gradient from it, and 6 tr")


@pytest.mark.parametrize("clause", [TOME, "insert prune.evit(keep=0.6) after blocks[0].attn"])
def test_merged_tokens_in_front_of_averages(clause: str) -> None:
    """What stands for several patches would count as one."""
    for order in permutations([clause, READOUTS["head2toe"]]):
        with pytest.raises(vr.VitrewriteError, match=r"VR410 head2toe .*stand for") as told:
            vr.plan("\n".join(order) + "\n", base())
        assert "merged by: " in told.value.render()
