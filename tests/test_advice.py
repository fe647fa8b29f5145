"""A pass at a site that it does not attach to: what the error suggests works, if it suggests any.

What it suggests is tried here again, as a user would: in a spec of its own on the same model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from tests.test_capture import tiny
from vitrewrite import catalog
from vitrewrite.editing.measure import Propagation
from vitrewrite.errors import VitrewriteError
from vitrewrite.language import parse_spec
from vitrewrite.rewrite.advice import copied
from vitrewrite.rewrite.engine import rewrite
from vitrewrite.tracing import trace
from vitrewrite.tracing.unit import on_meta

FORMS = {
    "insert at": "insert {pass_}() at {sites}",
    "insert after": "insert {pass_}() after {sites}",
    "insert before": "insert {pass_}() before {sites}",
    "prepend": "prepend {pass_}() to {sites}",
    "add": "add {pass_}() to {sites}",
    "replace": "replace {sites} with {pass_}()",
    "drop": "drop {sites} by {pass_}()",
}


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=16,
        patch_size=2,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 2),
        window_size=4,
        num_classes=5,
    )


def mask2former() -> nn.Module:
    pytest.importorskip("transformers")
    from tests.hf.zoo import mask2former as build

    return build("resnet", output_auxiliary_logits=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "vit": (
        tiny,
        ["blocks[*]", "blocks[0].attn", "blocks[*].mlp", "blocks[*].attn.q", "norm", "cls_token",
         "patch_embed.proj", "every mlp", "blocks[0] + norm"],
    ),
    "swin": (swin, ["stages[*].blocks[*]", "blocks[1].attn", "blocks[*].mlp", "blocks[0].attn.q"]),
    "mask2former": (
        mask2former,
        ["decoder.layers[*]", "decoder.queries"],
    ),
}  # fmt: skip


@cache
def traced(name: str) -> nn.Module:
    return on_meta(trace(MODELS[name][0]())).eval()


def carry_out(model: str, text: str) -> None:
    root = copied(traced(model))
    with torch.device("meta"):
        done = rewrite(parse_spec(f"{text}\n"), root)
        Propagation(done.root, done.example)


def clause(pass_: str, sites: str) -> str:
    return FORMS[catalog.signature(pass_).verbs[0]].format(pass_=pass_, sites=sites)


def refusal(model: str, text: str) -> VitrewriteError | None:
    try:
        carry_out(model, text)
    except VitrewriteError as error:
        return error
    return None


COSTLY = ("adapter", "dfpq", "lora")  # the passes that are tried on a model of segmentation
CASES = [
    (model, pass_)
    for model in MODELS
    for pass_ in (COSTLY if model == "mask2former" else catalog.passes())
    if catalog.signature(pass_).verbs != ("stitch",)  # it has no sites that could be others
]


@pytest.mark.parametrize(("model", "pass_"), CASES)
def test_what_is_suggested_is_accepted(model: str, pass_: str) -> None:
    for sites in MODELS[model][1]:
        error = refusal(model, clause(pass_, sites))
        if error is None or error.code != "VR406":
            continue
        quoted = re.findall(r"'([^']+)'", error.suggestion or "")
        assert len(quoted) == (error.suggestion is not None)
        for selector in quoted:
            assert refusal(model, clause(pass_, selector)) is None, (sites, selector)
        assert not any("every" in note and "'" in note for note in error.notes)


TOLD: list[tuple[str, str, str, str]] = [
    ("vit", "lora", "blocks[*].attn", "'every linear in blocks[*].attn' selects those in it"),
    ("vit", "lora", "every mlp", "'every linear in (every mlp)' selects those in it"),
    ("vit", "kv_prompt", "blocks[*]", "'every attention in blocks[*]' selects those in it"),
    ("vit", "kv_prompt", "blocks[0].attn.q",
     "'blocks[0].attn' selects the attention that holds it"),
    ("vit", "adapter", "blocks[*].mlp",
     "'blocks[*].mlp_branch' selects the branch that it is in"),
    ("vit", "prompt", "blocks[*].mlp", "'blocks[*]' selects the block that holds it"),
    ("mask2former", "dfpq", "decoder.layers[*]", "'decoder' selects the decoder that holds it"),
    ("mask2former", "dfpq", "head", "'decoder' selects a decoder"),
    ("vit", "lora", "patch_embed.proj", "'blocks[0].attn.qkv' selects a linear"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "pass_", "sites", "told"), TOLD)
def test_the_suggestion(model: str, pass_: str, sites: str, told: str) -> None:
    error = refusal(model, clause(pass_, sites))
    assert error is not None
    assert (error.code, error.suggestion) == ("VR406", told)


WITHOUT: list[tuple[str, str, str, str]] = [
    ("vit", "dfpq", "blocks[0]", "VisionTransformer has no decoder"),
    ("vit", "sparse", "blocks[0]",
     "entries are what sensitive(budget=...) chooses by measurements"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "pass_", "sites", "note"), WITHOUT)
def test_what_has_no_other_place_is_told_why(model: str, pass_: str, sites: str, note: str) -> None:
    error = refusal(model, clause(pass_, sites))
    assert error is not None
    assert (error.suggestion, error.notes) == (None, (note,))


@pytest.mark.parametrize(
    ("model", "sites", "kind"),
    [("vit", "blocks[0].mlp", "an mlp"), ("vit", "norm", "a norm"),
     ("mask2former", "decoder.layers[0]", "a layer of a decoder"),
     ("mask2former", "decoder.queries", "a set of queries")],
)  # fmt: skip
def test_the_kind_of_a_site_in_words(model: str, sites: str, kind: str) -> None:
    error = refusal(model, clause("kv_prompt", sites))
    assert error is not None
    assert error.message == f"kv_prompt attaches to attention, and '{sites}' is {kind}"
