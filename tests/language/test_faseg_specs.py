"""FASeg and its ablations: twelve short specs over one, each the same clauses as written out."""

from __future__ import annotations

import pytest

from vitrewrite.catalog import installed
from vitrewrite.language import parse_spec

DFPQ, HRCA = "add dfpq() to decoder", "add hrca() to decoder"
ALL, RCDA = (
    "add hrca(cells=all) to decoder",
    "replace decoder.layers[3, 7, 11].cross_attn with rcda()",
)
# Clauses, parameters, and multiply-accumulates at 512 x 512.
WRITTEN_OUT = {
    "faseg": ((DFPQ, "add hrca(omega=32) to decoder"), 50564759, "69.337G"),
    "faseg_dense": ((DFPQ, ALL), 50564759, "79.313G"),
    "faseg_dfpq": ((DFPQ,), 44180631, "66.744G"),
    "faseg_dynamic_anchors": (
        ("add dfpq(queries=dynamic_anchor) to decoder", HRCA), 50564759, "68.921G",
    ),
    "faseg_foreground": (
        ("add dfpq(queries=foreground) to decoder", HRCA), 50564759, "69.337G",
    ),
    "faseg_grid_anchors": (
        ("add dfpq(queries=grid_anchor) to decoder", HRCA), 50564759, "68.799G",
    ),
    "faseg_hrca": ((HRCA,), 50356631, "67.662G"),
    "faseg_learned_keys": (("add dfpq(keys=learned) to decoder", HRCA), 56058775, "68.213G"),
    "faseg_learned_queries": (
        ("add dfpq(queries=learned) to decoder", HRCA), 50433175, "68.786G",
    ),
    "faseg_pixels": ((DFPQ, "add hrca(cells=bilinear) to decoder"), 50564759, "69.337G"),
    "faseg_random_cells": ((DFPQ, "add hrca(cells=random) to decoder"), 50564759, "69.337G"),
    "faseg_rcda": ((DFPQ, ALL, RCDA), 50959511, "73.636G"),
    "faseg_sine_keys": (("add dfpq(keys=unchanged) to decoder", HRCA), 50488215, "68.213G"),
}  # fmt: skip


def test_all_of_them_are_here() -> None:
    shipped = {name for name in installed().specs() if name.startswith("faseg")}
    assert shipped == set(WRITTEN_OUT)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_short_spec_is_what_it_was_written_out(name: str) -> None:
    clauses, size, compute = WRITTEN_OUT[name]
    lines = ("model hf:mask2former-r50", *clauses, "train every parameter")
    claims = (f"require params == {size}", f"require macs within 0.1% of {compute}")
    written = parse_spec("\n".join((*lines, *claims)) + "\n")
    spec = parse_spec(name)
    assert spec.hash == written.hash  # of the model and all clauses with all their options
    assert spec.requires == written.requires
    assert not spec.warnings


def test_params_of_the_whole_reach_an_ablation() -> None:
    assert "omega=16" in str(parse_spec("faseg_sine_keys", {"omega": "16"}))
