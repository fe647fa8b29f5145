"""Every kind of site: what anatomy finds, what a pass gets, and what the language says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.lowering.models import vit
from vitrewrite import sites
from vitrewrite.anatomy import analyse
from vitrewrite.catalog.signatures import KNOWN
from vitrewrite.checking.passes import tiny
from vitrewrite.checking.subject import PLACES
from vitrewrite.language import parse_spec
from vitrewrite.selection.kinds import (
    KINDS,
    TABLE,
    attributes,
    is_any,
    kind_of,
    overlaps,
    parts,
)
from vitrewrite.selection.select import Selection
from vitrewrite.tracing.unit import Unit

EVERYWHERE = {"linear": 13, "head": 1, "attention": 3, "mlp": 3, "norm": 7, "conv": 1, "branch": 6,
              "block": 3}  # fmt: skip
ELSEWHERE = {"entries", "decoder", "bases"}
"""What budgets buy, models of segmentation have, and specs stitch: in their own tests."""


@pytest.fixture(scope="module")
def root() -> Any:
    return vr.capture(vit())


def select(root: Any, text: str) -> tuple[Any, ...]:
    wanted = parse_spec(f"train {text}\n").clauses[0].sites
    assert wanted is not None
    return Selection(analyse(root), root).sites(wanted)


def test_every_kind_that_a_pass_may_name_is_a_row() -> None:
    assert set(KINDS) == set(KNOWN["attaches"]) == set(EVERYWHERE) | ELSEWHERE


@pytest.mark.parametrize("kind", [k for k in TABLE if k.gets], ids=lambda kind: kind.name)
def test_what_passes_get_is_a_class_of_sites(kind: Any) -> None:
    assert issubclass(getattr(sites, kind.gets), sites.BoundSite)


@pytest.mark.parametrize(("name", "count"), EVERYWHERE.items())
def test_every_row_is_bound(name: str, count: int, root: Any) -> None:
    kind = KINDS[name]
    found = select(root, f"every {name}")
    assert len(found) == count
    for site in found:
        assert is_any(site, (name,))
        assert isinstance(root.get_submodule(kind.unit(site)), Unit)
        assert "dim" in attributes(site)
        assert parts(site)[0] is site
        assert overlaps(site, site)
    first, *others = found
    assert not any(overlaps(first, other) for other in others if name != "linear")
    assert len({kind.identity(site) for site in found}) == count


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_pass_gets_every_site(name: str, root: Any) -> None:
    from vitrewrite.editing.clause import ClauseRef
    from vitrewrite.editing.editor import Editor
    from vitrewrite.editing.stream import Stream
    from vitrewrite.rewrite.carrying import bind_all

    own = vr.capture(vit())
    anatomy = analyse(own)
    context = sites.Context(
        Editor(own), ClauseRef(0, "none", "", None, {}), anatomy, Stream.of(anatomy, own)
    )
    found = select(own, f"every {name}")
    for bound in bind_all(found, context):
        assert isinstance(bound, getattr(sites, KINDS[name].gets))
        assert bound.role
        assert bound.like.dtype == torch.float32
        assert own.get_submodule(bound.path) is not None


SELECTED = [
    ("blocks[*].mlp", ["blocks[0].mlp", "blocks[1].mlp", "blocks[2].mlp"]),
    ("blocks[0].{norm1, norm2}", ["blocks[0].norm1", "blocks[0].norm2"]),
    ("norm", ["norm"]),
    ("every norm in blocks[1]", ["blocks[1].norm1", "blocks[1].norm2"]),
    ("every norm - every norm in blocks", ["norm"]),
    ("every conv in patch_embed", ["patch_embed.proj"]),
    ("patch_embed.proj", ["patch_embed.proj"]),
    ("blocks[0].attn_branch + blocks[0].mlp_branch",
     ["blocks[0].attn_branch", "blocks[0].mlp_branch"]),
    ("every branch in blocks[2]", ["blocks[2].attn_branch", "blocks[2].mlp_branch"]),
    ("every mlp where hidden >= 64 and dim == 16",
     ["blocks[0].mlp", "blocks[1].mlp", "blocks[2].mlp"]),
    ("every head", ["head"]),
    ('module("blocks.0.norm*")', ["blocks.0.norm1", "blocks.0.norm2"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "roles"), SELECTED, ids=[s[0] for s in SELECTED])
def test_selectors(text: str, roles: list[str], root: Any) -> None:
    assert [site.role for site in select(root, text)] == roles


TRAINED = [
    ("head", {"head.weight", "head.bias"}),
    ("norm", {"norm.weight", "norm.bias"}),
    ("blocks[0].norm2", {"blocks.0.norm2.weight", "blocks.0.norm2.bias"}),
    ("patch_embed.proj", {"patch_embed.proj.weight", "patch_embed.proj.bias"}),
    ("blocks[1].mlp.{fc1, fc2}", {f"blocks.1.mlp.{a}.{b}" for a in ("fc1", "fc2")
                                  for b in ("weight", "bias")}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "names"), TRAINED, ids=[t[0] for t in TRAINED])
def test_what_is_trained_is_what_it_was(text: str, names: set[str]) -> None:
    rewritten = vr.apply(f"train {text}\n", vit())
    trained = {n for n, p in rewritten.module.named_parameters() if p.requires_grad}
    assert trained == names


def test_a_head_is_a_linear_layer(root: Any) -> None:
    (head,) = select(root, "head")
    assert kind_of(head) is KINDS["head"]
    (linear,) = select(root, "blocks[0].mlp.fc1")
    assert not overlaps(head, linear)
    assert issubclass(sites.HeadSite, sites.LinearSite)
    assert is_any(head, ("linear",))
    assert not is_any(select(root, "blocks[0].mlp.fc1")[0], ("head",))
    (same,) = (s for s in select(root, "every linear") if s.role == "head")
    assert same == head


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_pass_of_any_kind_has_places_on_the_model_that_it_is_checked_on(kind: str) -> None:
    root = vr.capture(tiny())
    for place in PLACES[kind]:
        found = select(root, place)
        assert all(is_any(site, [kind]) for site in found)
