"""Every two methods that their cards let be together are one model, whatever clause comes first.

A pair is carried out on one captured model in both orders. What both orders compute is the same at
equal tensors; each of them is written, trained and lowered as a method alone is.
"""

from __future__ import annotations

import functools
import re
from itertools import combinations, permutations
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.lowering.models import fill, profile, vit
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten

SSF = (
    "every conv in patch_embed + blocks[*].{norm1, norm2} + norm"
    " + blocks[*].attn.{qkv, proj} + blocks[*].mlp.{fc1, fc2}"
)
METHODS = {
    "lora": "insert lora(rank=2) at blocks[*].attn.{q, v}",
    "lora everywhere": "insert lora(rank=3) at every linear in blocks",
    "adapter": "insert adapter(hidden=2) at blocks[*].mlp_branch",
    "adapters": "insert adapter(hidden=3) at every branch",
    "adapter at fc2": "insert adapter(hidden=2) at blocks[*].mlp.fc2",
    "adaptformer": "insert adaptformer(hidden=3) at blocks[*].mlp_branch",
    "ssf": f"insert ssf() at {SSF}",
    "fact tt": "insert fact(rank=3) at every linear in blocks",
    "fact tk": "insert fact(rank=2, form=tk) at every linear in blocks",
    "repadapter": "insert repadapter(hidden=4) at blocks[*].attn.qkv + blocks[*].mlp.fc1",
    "convpass": "insert convpass(hidden=2) at every branch",
    "bi.lora": "insert bi.lora(rank=2) at blocks[*].attn.{q, v}",
    "bi.adaptformer": "insert bi.adaptformer(hidden=3) at blocks[*].mlp_branch",
    "res_tuning": "insert res_tuning(hidden=3) at blocks[*].{attn, mlp}",
    "bypass": "insert res_tuning(form=bypass, hidden=3) at blocks[*]",
    "uniadapter": "insert uniadapter(hidden=3) at blocks[*].mlp_branch",
    "ia3": "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2",
    "uffn": "replace blocks[*].mlp with uffn()",
    "heads": "replace blocks[*].attn with heads()",
    "sparse": "insert sparse() at sensitive(budget=5K, scale=9K)",
    "bitfit": "train every bias",
    "partial": "train blocks[-1]",
    "mlp_head": "replace head with mlp_head()",
    "sls": "drop blocks[*] by sls()",
    "prompt": "prepend prompt(count=3) to blocks[*]",
    "kv_prompt": "prepend kv_prompt(n=2) to blocks[*].attn",
    "vqt": "prepend vqt(count=2, dropout=0) to blocks[*]",
    "head2toe": "replace head with head2toe()",
    "lst": "insert lst(reduction=4) at blocks[*]",
    "synqt": "insert synqt(hidden=6, narrow=2) at blocks[*]",
    "bdm": "insert merge.bdm() after blocks[1].attn",
    "tome": "insert merge.tome(r=2) after blocks[*].attn",
    "evit": "insert prune.evit(keep=0.6) after blocks[0].attn",
    "dispatch": "insert dispatch(hidden=16) at blocks[*].mlp_branch",
    "dispatch of branches": "insert dispatch(hidden=16) at every branch",
    "dispatch of blocks": "insert dispatch(hidden=16) at blocks[*]",
    "dynamicvit": "insert prune.dynamicvit(keep=0.6) before blocks[1]",
    "dtps": "insert squeeze.tps(keep=0.6) before blocks[1]",
    "pool": "insert merge.pool(prop_attn=true) after blocks[1].attn",
    "unmerge": "insert merge.tome(r=2, prop_attn=true) after blocks[2].attn\n"
    "insert unmerge() after blocks[2]",
    "ltmp": "insert prune.ltmp(merge=0.5) after blocks[0].attn",
    "umsa": "replace blocks[*].attn with umsa()",
}
"""Each at its own places in a tiny ViT, so that most of them meet."""

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ROUNDING = 2e-5  # of float32, over the largest logit


@functools.cache
def base() -> Any:
    """One capture for all."""
    return vr.capture(vit().eval())


@functools.cache
def measured() -> Any:
    return profile()


def text(names: tuple[str, ...]) -> str:
    """The clauses of a pair in an order; the head is trained with them."""
    head = () if "mlp_head" in names else ("train head",)
    return "\n".join([*(METHODS[name] for name in names), *head]) + "\n"


def applied(clauses: str) -> Rewritten:
    rewritten = fill(vr.apply(clauses, base(), profile=measured()))
    for name, tensor in rewritten.delta().items():
        if name.endswith(("running_var", ".umsa.gate_logits")):
            tensor.abs_()
    return rewritten


@torch.no_grad()
def run(module: Any) -> torch.Tensor:
    made: torch.Tensor = module.eval()(X)
    return made


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def emitted(rewritten: Rewritten) -> torch.Tensor:
    """What the text as it is written computes, with the same state."""
    return run(emitted_twin(model_text(rewritten), rewritten.module.state_dict()))


def without_gradient(rewritten: Rewritten) -> set[str]:
    """The trained tensors that the loss of two images does not move, and the others that have some.

    With dropout as it is in evaluation. Gates of the last block, behind which the class token alone
    is read, move by their rate.
    """
    module = rewritten.module.eval()
    (module(X) * torch.linspace(-1, 2, 10).view(2, 5)).sum().backward()
    named = dict(module.named_parameters())
    found = {n: p.grad for n, p in named.items() if p.grad is not None}
    moved = {n for n, g in found.items() if bool(g.any()) or ".dispatch." in n[-18:]}
    module.zero_grad()
    trained = {n for n, p in named.items() if p.requires_grad}
    # Which training alone moves, and branches that are closed.
    alone = ".predictor.", ".gates.", ".umsa."
    return {n for n in moved ^ trained if not any(part in n for part in alone)}


def check(clauses: str) -> tuple[torch.Tensor, Rewritten]:
    """What it computes, which is what is written, trained and lowered too."""
    rewritten = applied(clauses)
    made = run(rewritten.module)
    assert torch.equal(emitted(rewritten), made)
    # See there.
    hidden = ".gates.", ".umsa."
    found = {n for n in rewritten.result.unreached if not any(part in n for part in hidden)}
    assert without_gradient(rewritten) == found
    lowered = vr.lower(rewritten)
    assert apart(made, run(lowered.module)) < ROUNDING
    assert torch.equal(emitted(lowered), run(lowered.module))
    return made, rewritten


def stated(rewritten: Rewritten) -> bool:
    """Whether `plan` tells of places where clauses meet, and that the spec's order holds there."""
    orders = rewritten.result.orders
    return bool(orders) and not any(order.reason for order in orders)


def check_pair(names: tuple[str, str], check: Any = check) -> None:
    """Both orders, which are one model unless `plan` says that each is as the spec has it."""
    (first, one), (second, other) = (check(text(order)) for order in permutations(names))
    if apart(first, second) >= ROUNDING:
        assert stated(one)
        assert stated(other)


def check_refused(names: tuple[str, str]) -> None:
    """Each order is refused, and says why."""
    for order in permutations(names):
        with pytest.raises(vr.VitrewriteError) as caught:
            applied(text(order))
        told = f"{caught.value.code} {caught.value.message}"
        known = {**REFUSED, **BESIDE}
        assert re.match(known.get(names, "VR401 two clauses put "), told), told


REFUSED = {
    # convpass.md 9: a conflict with what breaks the grid of patches in front of it.
    ("convpass", "bdm"): r"VR410 convpass at 'blocks\[1\].mlp_branch': no full grid of patches",
    ("convpass", "tome"): r"VR410 convpass at 'blocks\[0\].mlp_branch': no full grid of patches",
    # res-tuning.md 9: the bypass needs as many tokens behind each block.
    ("bypass", "bdm"): r"VR410 res_tuning at 'blocks\[1\]': the tokens change in number",
    ("bypass", "tome"): r"VR410 res_tuning at 'blocks\[0\]': the tokens change in number",
    ("convpass", "unmerge"): r"VR410 convpass at 'blocks\[2\].mlp_branch': no full grid of patches",
    ("bdm", "pool"): r"VR410 merge.\w+.*: (no full grid of|the tokens are regrouped there already)",
    # pool_merge.md 9: the grid must be complete, as for FPET.
    ("bypass", "pool"): r"VR410 res_tuning at 'blocks\[1\]': the tokens change in number",
    (
        "tome",
        "pool",
    ): "VR410 merge.pool .*no full grid of patches|VR417 merge.tome changes the grid",
    # uniadapter.md 9: the point of AdaptFormer, not both.
    ("adaptformer", "uniadapter"): r"VR401 \w+ and \w+ exclude each other, and both are at",
    ("bi.adaptformer", "uniadapter"): r"VR401 [\w.]+ and [\w.]+ exclude each other, and both are",
    # dyt.md 9: its adapter takes the place of AdaptFormer.
    **{
        (other, name): r"VR401 [\w.]+ and [\w.]+ exclude each other, and both are at"
        for other in ("adaptformer", "bi.adaptformer", "uniadapter")
        for name in ("dispatch", "dispatch of branches")
    },
    ("dispatch", "dispatch of blocks"): r"VR402 '[\w.\[\]]+' has dispatch already",
    ("dispatch of branches", "dispatch of blocks"): r"VR402 '[\w.\[\]]+' has dispatch already",
    # dyt.md 4: a block's gate takes its output apart from its input, token by token.
    **{
        (other, "dispatch of blocks"): r"VR410 dispatch at .*: the tokens change in number|"
        r"VR410 merge.\w+.* changes the tokens, and"
        for other in ("bdm", "tome")
    },
    # fpet.md 9: not with ToMe, which leaves no grid.
    ("bdm", "tome"): "VR410 merge.bdm .*no full grid of patches|VR417 merge.tome changes the grid",
    # evit.md 4: fewer tokens, and no grid any more; one change of tokens at a place.
    ("convpass", "evit"): r"VR410 convpass at 'blocks\[0\].mlp_branch': no full grid of patches",
    ("bypass", "evit"): r"VR410 res_tuning at 'blocks\[0\]': the tokens change in number",
    ("bdm", "evit"): "VR410 merge.bdm .*no full grid of patches|VR417 prune.evit changes the grid",
    ("tome", "evit"): "VR410 .*the tokens are regrouped there already",
    # dynamicvit.md and tps.md 9: no grid behind it, one pruner, merges need care.
    ("convpass", "dynamicvit"): r"VR410 convpass at 'blocks\[1\].attn_branch': no full grid",
    ("convpass", "dtps"): r"VR410 convpass at 'blocks\[1\].attn_branch': no full grid",
    ("bypass", "dynamicvit"): r"VR410 res_tuning at 'blocks\[0\]': the tokens change in number",
    ("bypass", "dtps"): r"VR410 res_tuning at 'blocks\[0\]': the tokens change in number",
    ("bdm", "dynamicvit"): "VR410 merge.bdm .*no full grid of patches|VR417 prune.dynamicvit",
    ("bdm", "dtps"): "VR410 merge.bdm .*no full grid of patches|VR417 squeeze.tps",
    ("tome", "dynamicvit"): "VR410 prune.dynamicvit .*training masks some of them",
    ("tome", "dtps"): "VR410 squeeze.tps .*training masks some of them",
    ("evit", "dynamicvit"): "VR455 .* are both a pruner",
    ("evit", "dtps"): "VR455 .* are both a pruner",
    ("dynamicvit", "dtps"): "VR455 .* are both a pruner",
    # ltmp.md 9: not with FPET or ToMe in a block; no grid behind it, one pruner.
    ("convpass", "ltmp"): r"VR410 convpass at 'blocks\[0\].mlp_branch': no full grid of patches",
    ("bypass", "ltmp"): r"VR410 res_tuning at 'blocks\[0\]': the tokens change in number",
    ("bdm", "ltmp"): "VR410 merge.bdm .*no full grid of patches|VR417 prune.ltmp changes the grid",
    ("tome", "ltmp"): "VR410 .*the tokens are regrouped there already",
    ("evit", "ltmp"): "VR455 .* are both a pruner",
    ("dynamicvit", "ltmp"): "VR455 .* are both a pruner",
    ("dtps", "ltmp"): "VR455 .* are both a pruner",
    # pool_merge.md 9: the grid is gone behind a pruner.
    **{
        pair: "VR410 merge.pool .*no full grid of patches|VR417 [a-z.]+ changes the grid"
        for pair in (("evit", "pool"), ("dynamicvit", "pool"), ("dtps", "pool"), ("pool", "ltmp"))
    },
    ("dynamicvit", "unmerge"): "VR410 prune.dynamicvit .*training masks some of them",
    ("dtps", "unmerge"): "VR410 squeeze.tps .*training masks some of them",
    # dyt.md 4, as for merges.
    **{
        pair: r"VR410 dispatch at .*: the tokens change in number"
        r"|VR410 [\w.]+ at .* changes the tokens, and"
        for pair in (
            ("evit", "dispatch of blocks"),
            ("dispatch of blocks", "dynamicvit"),
            ("dispatch of blocks", "dtps"),
            ("dispatch of blocks", "pool"),
            ("dispatch of blocks", "ltmp"),
        )
    },
    # vqt.md 2: its queries are no tokens, so that nothing that tells tokens by place takes them.
    **{
        pair: "VR410 vqt at .*: (its rows cannot pass the block|another clause makes its weights)"
        for pair in (
            ("convpass", "vqt"),
            ("vqt", "dispatch"),
            ("vqt", "dispatch of branches"),
            ("vqt", "dispatch of blocks"),
            ("vqt", "dynamicvit"),
            ("vqt", "dtps"),
            ("vqt", "ltmp"),
        )
    },
    # spvit.md 9: no change of the tokens before a convolution, which needs their grid; in an
    # attention that may become one no rows but those of the patches.
    **{
        pair: r"VR410 umsa at 'blocks.\d..attn_branch': no full grid of patches is left there"
        for pair in (
            *((name, "umsa") for name in ("bdm", "tome", "evit", "dynamicvit", "dtps")),
            ("ltmp", "umsa"),
        )
    },
    ("pool", "umsa"): "VR403 a kernel of 3x3 is larger than 4x2 patches",
    ("prompt", "umsa"): r"VR410 umsa at .*: 3 tokens joined the prefix, which only attention sees",
    ("vqt", "umsa"): "VR410 vqt at .*: its rows cannot pass the block",
    ("dispatch of branches", "umsa"): "VR410 umsa at .*: tokens skip it",
    ("dispatch of blocks", "umsa"): "VR410 umsa at .*: tokens skip it",
}
"""By pair a part of the refusal that the card of one of the two names."""

READOUTS = ("mlp_head", "vqt", "head2toe", "lst", "synqt")
BESIDE = {
    **{pair: "VR455 .* are both a readout" for pair in combinations(READOUTS, 2)},
    # head2toe.md 9, lst.md 9 and synqt.md 9: nothing in front of it is trained. With the first two
    # tokens stay what they are; queries ask those that are left.
    **{
        pair: r"VR520 \w+ reads the model without|"
        r"VR410 (head2toe|lst|repadapter|synqt) at |VR401|VR411"
        for pair in combinations(METHODS, 2)
        if {*pair} & {"head2toe", "lst", "synqt"} and not {*pair} <= {*READOUTS, "sls"}
        if {*pair} != {"lst", "unmerge"}
        if "synqt" not in pair or not {*pair} & {"tome", "evit", "pool"}
    },
}
"""Of methods beside a frozen model, likewise."""

TWICE = frozenset({
    ("lora", "lora everywhere"), ("adapter", "adapters"), ("fact tt", "fact tk"),
    ("dispatch", "dispatch of branches"),
    ("tome", "unmerge"),
})  # fmt: skip
"""One method twice at some of the places: two clauses of one pass want places of their own."""

ORDERED = frozenset({("bypass", "dispatch of blocks")})
"""One order alone: the bypass takes the place of what leaves a block, which the other lacks."""

COMPOSED = [p for p in combinations(METHODS, 2) if p not in {*REFUSED, *BESIDE, *TWICE, *ORDERED}]

SAMPLE = (
    ("lora everywhere", "fact tt"), ("lora", "bypass"), ("adapter", "ssf"),
    ("adapters", "convpass"), ("adapter at fc2", "res_tuning"), ("adaptformer", "convpass"),
    ("ssf", "repadapter"), ("ssf", "ia3"), ("fact tk", "repadapter"), ("repadapter", "convpass"),
    ("bi.lora", "sparse"), ("bi.adaptformer", "prompt"), ("uniadapter", "bdm"),
    ("ia3", "kv_prompt"), ("sparse", "bitfit"), ("partial", "tome"), ("lora", "mlp_head"),
    ("sls", "prompt"), ("lora everywhere", "dispatch"), ("tome", "dispatch of branches"),
    ("prompt", "dispatch of blocks"),
    ("prompt", "vqt"), ("prompt", "evit"), ("lora", "dynamicvit"), ("kv_prompt", "dtps"),
    ("bdm", "unmerge"), ("lst", "unmerge"), ("synqt", "tome"),
    ("lora", "ltmp"), ("heads", "uffn"), ("lora everywhere", "heads"),
    ("kv_prompt", "heads"), ("tome", "heads"), ("lora everywhere", "uffn"), ("ia3", "uffn"),
)  # fmt: skip
"""What every change is tried with; `make zoo` takes all."""


@pytest.mark.parametrize("names", SAMPLE, ids=" and ".join)
def test_some_pairs(names: tuple[str, str]) -> None:
    check_pair(names)


@pytest.mark.parametrize("names", [*REFUSED, *sorted(TWICE)], ids=" and ".join)
def test_refused_pairs(names: tuple[str, str]) -> None:
    check_refused(names)


@pytest.mark.slow
@pytest.mark.parametrize("names", BESIDE, ids=" and ".join)
def test_pairs_beside_what_is_frozen(names: tuple[str, str]) -> None:
    check_refused(names)


def verified(clauses: str) -> tuple[torch.Tensor, Rewritten]:
    """`check`, and all that is true of every rewritten model, claims of its passes included."""
    made, rewritten = check(clauses)
    vr.verify(rewritten, graphs=False)
    return made, rewritten


@pytest.mark.slow
@pytest.mark.parametrize("names", COMPOSED, ids=" and ".join)
def test_every_pair(names: tuple[str, str]) -> None:
    check_pair(names, verified)


@pytest.mark.parametrize(
    "clauses",
    [
        "insert lora(rank=2) at blocks[*].attn.q\ninsert lora(rank=4) at blocks[*].mlp.fc1\n",
        "insert adapter(hidden=2) at blocks[*].mlp_branch\n"
        "insert adapter(hidden=3) at blocks[*].attn_branch + blocks[0].mlp.fc2\n",
        "insert fact(rank=2) at blocks[*].attn.{q, v}\n"
        "insert fact(rank=2, form=tk) at blocks[*].mlp.fc1\n",
        "insert ssf() at blocks[*].norm1\ninsert ssf(std=0) at blocks[*].attn.{q, v}\n",
        "insert res_tuning(hidden=2) at blocks[*].mlp\n"
        "insert res_tuning(hidden=3, weight=gate) at blocks[*]\n",
        "insert convpass(hidden=2) at blocks[*].attn_branch\n"
        "insert convpass(hidden=3, scale=0.1) at blocks[*].mlp_branch\n",
    ],
)
def test_one_method_twice_with_other_options(clauses: str) -> None:
    first, second = clauses.splitlines(keepends=True)
    (one, rewritten), (other, turned) = check(first + second), check(second + first)
    # Factors that all matrices of a clause share are told apart by number, which turns with it.
    assert apart(one, other) < ROUNDING or rewritten.delta().keys() != turned.delta().keys()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("lora", "partial"), "blocks.2.attn.qkv.weight"),
        (("fact tt", "partial"), "blocks.2.attn.qkv.weight, blocks.2.attn.proj.weight, "),
        (("ssf", "bitfit"), "blocks.0.attn.qkv.bias, blocks.0.attn.proj.bias, "),
        (("ia3", "bitfit"), ""),
        (("lora", "bitfit"), ""),
    ],
)
def test_what_is_redundant_is_told(names: tuple[str, str], told: str) -> None:
    """Cards of partial tuning and SSF, section 9: updates of what is trained itself."""
    for order in permutations(names):
        warnings = vr.plan(text(order), base()).warnings
        found = [w for w in warnings if "redundant where the spec trains" in w]
        assert [METHODS[names[0]] in w and told in w for w in found] == [True] * bool(told), found
