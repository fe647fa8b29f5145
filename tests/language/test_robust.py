"""Bad input: each gets one clear error after little work, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.catalogue import CATALOG
from vitrewrite.errors import VitrewriteError
from vitrewrite.language import format_text, parse_spec

N, LONG_N = 10_000, 1500


CALLS = 5_000_000  # of functions; twice what any of these texts takes, a square would be 100 times


@contextmanager
def little_work() -> Iterator[None]:
    calls, before = 0, sys.getprofile()

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert calls < CALLS


def error(source: str | Path) -> VitrewriteError:
    with pytest.raises(VitrewriteError) as caught, little_work():
        parse_spec(source, catalog=CATALOG)
    assert len(caught.value.render()) < 40_000
    return caught.value


HUGE = [
    ("train " + "(" * N + "a" + ")" * N, "VR110"),
    ("let x = " + "[" * N, "VR110"),
    ("train " + "(" * N, "VR110"),
    ("train a" + " + a - a" * (N // 4), "VR110"),
    ("let x = 9" + "9" * N, "VR107"),
    ("let x = " + "1.5 * " * N + "1", "VR107"),
    ("let x = 1e999999999999999999", "VR107"),
    ("train blocks[0:99999999999999999999]", "VR214"),
    ("x" * N * 90, "VR111"),
    ("x\n" * N, "VR111"),
    ('train "' + "a" * N, "VR105"),
    ("train a where " + "x and " * N, "VR116"),
    ("insert " + "a." * N + "a at x", "VR201"),
    ("train " + "\u2029" * N, "VR104"),
    ("train \ud800", "VR104"),
    ("y\n" * 1_000_000, "VR102"),
]


@pytest.mark.parametrize("number", range(len(HUGE)))  # the texts would be the names of the tests
def test_huge_and_odd_texts(number: int) -> None:
    text, code = HUGE[number]
    found = error(text + "\n")
    assert getattr(found, "errors", [found])[0].code == code


LONG = [
    "train a" + " + a" * LONG_N,
    "train a" + " & a" * LONG_N,
    "train a where " + "not " * LONG_N + "x",
    "train a where x" + " and x" * LONG_N,
    "train a" + ".a" * LONG_N,
    "let x = " + "-" * LONG_N + "1",
    "let x = 0" + " + 1" * LONG_N,
    "model vit(x = [" + "1, " * LONG_N + "])",
    "# " + "x" * LONG_N,
    "\n" * LONG_N,
]


@pytest.mark.parametrize("number", range(len(LONG)))
def test_long_but_valid_texts(number: int) -> None:
    text = LONG[number] + "\n"
    assert format_text(format_text(text)) == format_text(text)
    assert parse_spec(str(parse_spec(text, catalog=CATALOG)), catalog=CATALOG).hash


def test_garbage_file(tmp_path: Path) -> None:
    path = tmp_path / "garbage.peft"
    path.write_bytes(os.urandom(10_000_000))
    assert error(path).code == "VR102"
    path.write_bytes(os.urandom(100_000))
    assert error(path).code == "VR103"
    path.write_bytes(b"\x00" * 100_000)
    assert error(path).code == "VR104"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert error(tmp_path).code == "VR101"
    assert error(tmp_path / ("x" * 5000 + ".peft")).code == "VR101"
    assert error(Path("a\0b.peft")).code == "VR101"
    assert error("x" * 5000).code == "VR226"
    loop = tmp_path / "loop.peft"
    loop.symlink_to(loop)
    assert error(loop).code == "VR101"
    fifo = tmp_path / "fifo.peft"
    os.mkfifo(fifo)
    assert error(fifo).code == "VR101"


def test_includes_of_what_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "loop.peft").symlink_to(tmp_path / "loop.peft")
    (tmp_path / "folder.peft").mkdir()
    for target in ("loop.peft", "folder.peft", "x" * 5000 + ".peft", "/dev/zero", "../x"):
        path = tmp_path / "spec.peft"
        path.write_text(f'include "{target}"\n')
        assert error(path).code == "VR220"


def test_an_error_that_a_second_include_repeats_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "loop.peft").write_text('include "loop.peft"\n')
    path = tmp_path / "spec.peft"
    path.write_text('include "loop.peft"\ninclude "loop.peft"\n')
    assert error(path).code == "VR221"


def test_checking_does_without_torch() -> None:
    program = """
import sys
from vitrewrite.language import parse_spec
from vitrewrite.catalog import Catalog
from pathlib import Path
root = Path("tests/fixtures")
spec = parse_spec("base", catalog=Catalog((root / "passes",), (root / "specs",)))
heavy = {"torch", "timm", "networkx", "jinja2", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
