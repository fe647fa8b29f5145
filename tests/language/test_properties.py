"""Properties of random valid specs, and of random invalid ones."""

from __future__ import annotations

import dataclasses
import os
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.catalogue import CATALOG
from tests.fuzz_specs import fuzz
from tests.spec_strategies import conditions, messy, selectors, specs
from vitrewrite.language import format_text, parse_spec
from vitrewrite.language.model import Spec

COMMENT = re.compile(r"#[^\n\"']*$", re.MULTILINE)


def parsed(text: str) -> Spec:
    return parse_spec(text + "\n", catalog=CATALOG)


@given(specs())
def test_random_specs_have_no_errors_and_print_as_themselves(text: str) -> None:
    spec = parsed(text)
    again = parsed(str(spec))
    assert str(again) == str(spec)
    assert again.hash == spec.hash


@given(messy(specs()))
def test_formatting_keeps_meaning_and_comments_and_is_idempotent(text: str) -> None:
    formatted = format_text(text)
    spec, again = parsed(text), parsed(formatted)
    assert dataclasses.replace(again, text=spec.text) == spec
    assert again.hash == spec.hash
    assert format_text(formatted) == formatted
    numbers = re.findall(r"# *note \d+", text)
    assert re.findall(r"# *note \d+", formatted) == numbers
    assert not re.search(r"[ \t]$|\n\n\n|\A\n|\n\n\Z", formatted, re.MULTILINE)


@given(selectors(depth=3))
def test_printed_selectors_select_the_same(text: str) -> None:
    sites = parsed(f"train {text}").clauses[0].sites
    assert parsed(f"train {sites}").clauses[0].sites == sites


@given(conditions(depth=3), st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 9))
def test_printed_conditions_mean_the_same(text: str, a: int, b: int, c: int) -> None:
    attributes = {"dim": a, "in_features": b, "depth": c}
    where = parsed(f"train x where {text}").clauses[0].sites
    again = parsed(f"train {where}").clauses[0].sites
    assert where == again
    assert where.condition.holds(attributes) == again.condition.holds(attributes)  # type: ignore[union-attr]


def test_only_errors_of_vitrewrite_come_out_of_odd_specs() -> None:
    count = int(os.environ.get("VITREWRITE_FUZZ", "300"))
    assert fuzz(count, seed=count) > count // 100
