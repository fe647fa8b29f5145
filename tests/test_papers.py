"""The rows of papers: each has one spec, which claims what we count there and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from vitrewrite import catalog
from vitrewrite.checking.papers import FIGURES, PaperRow, is_about, page, rows
from vitrewrite.checking.specs import Checked
from vitrewrite.cli.commands import cli
from vitrewrite.language import parse_spec
from vitrewrite.language.model import Spec

ROWS = {(row.table, row.row): row for row in rows()}
LANDED = sorted(key for key, row in ROWS.items() if not row.missing)


@pytest.fixture(scope="module")
def specs() -> Mapping[str, Spec]:
    return {name: parse_spec(name) for name in catalog.specs()}


@pytest.fixture(scope="module")
def by_row(specs: Mapping[str, Spec]) -> Mapping[tuple[str, str], Spec]:
    return {(row.table, row.name): spec for spec in specs.values() for row in spec.rows}


def test_there_are_as_many_rows_as_arithmetic_can_reach() -> None:
    assert Counter(row.status for row in ROWS.values()) == {
        "reproduces": 202, "per-task": 65, "does-not": 56,
    }  # fmt: skip


def test_a_row_has_one_spec_or_says_what_is_missing(specs: Mapping[str, Spec]) -> None:
    found = Counter((row.table, row.name) for spec in specs.values() for row in spec.rows)
    assert found.keys() <= ROWS.keys()
    assert set(found.values()) == {1}
    assert set(LANDED) == found.keys()
    assert not {row.missing for row in ROWS.values()} & set(catalog.passes())


@pytest.mark.parametrize("key", LANDED, ids=": ".join)
def test_what_we_count_is_claimed(
    key: tuple[str, str], by_row: Mapping[tuple[str, str], Spec]
) -> None:
    row, spec = ROWS[key], by_row[key]
    for figure, value in row.ours.items():
        if figure in row.printed and figure not in row.apart:
            assert row.claim(figure, spec), f"{figure} = {value}"
    if row.status == "reproduces":
        claimed = [f for f in row.agrees if row.claim(f, spec)]
        assert claimed or row.apart
        for figure in claimed:
            assert _prints(row, figure), figure


def _prints(row: PaperRow, figure: str) -> bool:
    """Whether ours is what the paper prints, rounded or cut."""
    step = 10.0 ** -row.digits[figure]
    return -0.501 * step <= row.ours[figure] - row.printed[figure] < 1.001 * step


def test_no_two_specs_of_a_paper_are_one_model_with_one_recipe(specs: Mapping[str, Spec]) -> None:
    bare = {
        name: str(replace(spec, rows=(), requires=())) for name, spec in specs.items() if spec.rows
    }
    of = {name: spec.rows[0].table.rpartition("-")[0] for name, spec in specs.items() if spec.rows}
    same = [(a, b) for a, b in combinations(bare, 2) if of[a] == of[b] and bare[a] == bare[b]]
    assert not same


def test_a_claim_does_not_hold_for_neighbours_that_print_something_else(
    by_row: Mapping[tuple[str, str], Spec],
) -> None:
    for key, spec in by_row.items():
        row = ROWS[key]
        neighbours = [other for other in ROWS.values() if other.table == row.table]
        for figure in row.ours.keys() & FIGURES.keys():
            claim = row.claim(figure, spec)
            if claim is None:
                continue
            unit = FIGURES[figure][1]
            for other in neighbours:
                own, theirs = row.counted(figure), other.counted(figure)
                same = other.printed.get(figure) == row.printed.get(figure)
                if not same and theirs not in (own, None):
                    assert not claim.holds(round((theirs or 0.0) * unit, 9)), (
                        key,
                        other.row,
                        claim,
                    )


def test_claims_are_about_figures_of_their_kind() -> None:
    spec = parse_spec("require macs within 0.1% of 17.582G\nrequire trainable == 294912\n")
    macs, trainable = (require.claim for require in spec.requires)
    assert is_about(macs, "gmacs", 17.582)
    assert not is_about(macs, "gmacs", 17.6111)
    assert not is_about(macs, "params_m", 17582.0)
    assert is_about(trainable, "params_m", 0.2949)
    assert not is_about(trainable, "params_m", 0.296)


def test_the_page_has_every_row(specs: Mapping[str, Spec]) -> None:
    text = page(Checked(name, spec) for name, spec in specs.items())
    assert all(f"{table}: {row}" in text for table, row in ROWS)


@pytest.mark.slow
def test_every_claim_holds_and_the_page_says_so(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(cli, ["check", "--all", "--papers", str(tmp_path / "papers.md")])
    assert result.exit_code == 0, result.output
    committed = Path(__file__).resolve().parents[1] / "docs" / "papers.md"
    assert (tmp_path / "papers.md").read_text() == committed.read_text()
