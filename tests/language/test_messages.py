"""The table of mistakes and the explanations fit what they are about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.catalogue import CATALOG
from vitrewrite.catalog.explain import explain_code, explanations
from vitrewrite.errors import UsageError, VitrewriteError
from vitrewrite.language import parse_spec
from vitrewrite.language.mistakes import mistakes

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = [(m.code, m.message, example) for m in mistakes() for example in m.examples]


@pytest.mark.parametrize(("code", "message", "example"), EXAMPLES)
def test_each_example_of_a_mistake_gets_its_message(code: str, message: str, example: str) -> None:
    with pytest.raises(VitrewriteError) as caught:
        parse_spec(example + "\n", catalog=CATALOG)
    found = getattr(caught.value, "errors", [caught.value])[0]
    pattern = re.escape(message).replace(re.escape("{token}"), ".*")
    assert found.code == code
    assert re.fullmatch(pattern, found.message)


def codes_in_source(*names: str) -> set[str]:
    files = [file for name in names for file in (ROOT / name).rglob("*.py")]
    files += (ROOT / "vitrewrite").rglob("mistakes.txt")
    return {code for file in files for code in re.findall(r"\bVR\d{3}\b", _code_part(file))}


def _code_part(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        return "\n".join(re.findall(r"^VR\d{3}", text, re.MULTILINE))
    return "\n".join(re.findall(r'"VR\d{3}"', text))


def test_every_code_is_explained_and_every_explanation_is_of_a_code() -> None:
    assert set(explanations()) == codes_in_source("vitrewrite", "passes")
    assert all(each.text and each.title for each in explanations().values())


def test_codes_of_the_language_have_golden_files() -> None:
    golden = {path.stem for path in (ROOT / "tests" / "errors").glob("*.txt")}
    assert codes_in_source("vitrewrite/language") <= golden


def test_explanation_by_code() -> None:
    assert explain_code("vr201").title == "unknown pass"
    assert str(explain_code("VR203")).startswith("VR203: value out of range\n\n")
    with pytest.raises(UsageError, match="VR000"):
        explain_code("VR000")
