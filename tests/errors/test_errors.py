"""One malformed spec per code, with its exact rendering as a golden file.

To make a new one, write `VR2xx.peft` (a first line `# overrides: key=value ...` is applied), run
`VITREWRITE_GOLDEN=1 pytest tests/errors`, and read the difference before committing it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.catalogue import CATALOG, FIXTURES
from vitrewrite.catalog import Catalog
from vitrewrite.errors import VitrewriteError
from vitrewrite.language import parse_override, parse_overrides, parse_spec

HERE = Path(__file__).parent
SPECS = sorted(path.name for path in HERE.glob("*.peft"))


def rendering(action: Callable[[], object]) -> str:
    with pytest.raises(VitrewriteError) as caught:
        action()
    return caught.value.render() + "\n"


def compare(name: str, found: str) -> None:
    golden = HERE / f"{name}.txt"
    if os.environ.get("VITREWRITE_GOLDEN"):
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SPECS)
def test_rendering_of_malformed_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    first = Path(name).read_bytes().splitlines()[0].decode()
    given = first.removeprefix("# overrides: ") if first.startswith("# overrides: ") else ""
    overrides = parse_overrides(given.split())
    found = rendering(lambda: parse_spec(name, overrides, catalog=CATALOG))
    assert re.search(rf"\b{Path(name).stem} ", found)
    compare(Path(name).stem, found)


def missing_file() -> object:
    return parse_spec("missing.peft", catalog=CATALOG)


def large_file() -> object:
    Path("large.peft").write_bytes(b"x" * 10_000_000)
    return parse_spec("large.peft", catalog=CATALOG)


def missing_spec() -> object:
    return parse_spec("bsae", catalog=CATALOG)


def odd_override() -> object:
    return parse_override("--rank 4")


def repeated_override() -> object:
    return parse_overrides(["rank=4", "rank=5"])


def unused_param() -> object:
    raise parse_spec("param rank: int = 8\ntrain head", catalog=CATALOG).warnings[0]


def malformed_pass() -> object:
    Path("odd.py").write_text("class Odd(Pass):\n    rank: int = default_rank()\n")
    return Catalog((Path(),), ()).signature("odd")


def failing_pass() -> object:
    text = "from vitrewrite.authoring import Pass\nclass Odd(Pass): pass\nraise OSError('no')\n"
    Path("failing.py").write_text(text)
    return Catalog((Path(),), ()).load("failing")


def clash() -> object:
    return Catalog((FIXTURES / "passes",), (), plugins=True).passes()


OTHERS: Mapping[str, Callable[[], object]] = {
    "VR101": missing_file,
    "VR102": large_file,
    "VR219": odd_override,
    "VR219b": repeated_override,
    "VR226": missing_spec,
    "VR228": unused_param,
    "VR240": malformed_pass,
    "VR241": clash,
    "VR242": failing_pass,
}


@pytest.mark.parametrize("name", OTHERS)
def test_rendering_of_other_errors(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = type("Entry", (), {"name": "lora", "module": "other.lora", "value": "other.lora"})
    monkeypatch.setattr("vitrewrite.catalog._installed", lambda: (entry,))
    monkeypatch.chdir(tmp_path)
    found = rendering(OTHERS[name])
    assert f"{name[:5]} " in found
    compare(name, found)
