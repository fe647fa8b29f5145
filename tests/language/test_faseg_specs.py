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
WRITTEN_OUT = {
    "faseg": ((DFPQ, "add hrca(omega=32) to decoder"), "5% of 52M"),
    "faseg_dense": ((DFPQ, ALL), "0.1% of 50.57M"),
    "faseg_dfpq": ((DFPQ,), "0.1% of 44.18M"),
    "faseg_dynamic_anchors": (
        ("add dfpq(queries=dynamic_anchor) to decoder", HRCA),
        "0.1% of 50.57M",
    ),
    "faseg_foreground": (("add dfpq(queries=foreground) to decoder", HRCA), "0.1% of 50.57M"),
    "faseg_grid_anchors": (("add dfpq(queries=grid_anchor) to decoder", HRCA), "0.1% of 50.57M"),
    "faseg_hrca": ((HRCA,), "0.1% of 50.36M"),
    "faseg_learned_keys": (("add dfpq(keys=learned) to decoder", HRCA), "0.1% of 56.06M"),
    "faseg_learned_queries": (("add dfpq(queries=learned) to decoder", HRCA), "0.1% of 50.43M"),
    "faseg_pixels": ((DFPQ, "add hrca(cells=bilinear) to decoder"), "0.1% of 50.57M"),
    "faseg_random_cells": ((DFPQ, "add hrca(cells=random) to decoder"), "0.1% of 50.57M"),
    "faseg_rcda": ((DFPQ, ALL, RCDA), "0.1% of 50.96M"),
    "faseg_sine_keys": (("add dfpq(keys=unchanged) to decoder", HRCA), "0.1% of 50.49M"),
}


def test_all_of_them_are_here() -> None:
    shipped = {name for name in installed().specs() if name.startswith("faseg")}
    assert shipped == set(WRITTEN_OUT)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_short_spec_is_what_it_was_written_out(name: str) -> None:
    clauses, claim = WRITTEN_OUT[name]
    lines = ("model hf:mask2former-r50", *clauses, "train every parameter")
    written = parse_spec("\n".join((*lines, f"require params within {claim}")) + "\n")
    spec = parse_spec(name)
    assert spec.hash == written.hash  # of the model and all clauses with all their options
    assert spec.requires == written.requires
    assert not spec.warnings


def test_params_of_the_whole_reach_an_ablation() -> None:
    assert "omega=16" in str(parse_spec("faseg_sine_keys", {"omega": "16"}))
