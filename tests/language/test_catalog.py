"""Finding passes and specs, and reading what passes declare."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.catalogue import CATALOG, FIXTURES
from vitrewrite import catalog
from vitrewrite.catalog import Catalog
from vitrewrite.catalog.signatures import PassInfo
from vitrewrite.errors import SpecError

HEAD = "from vitrewrite.authoring import Pass, option\n"


def signature_of(tmp_path: Path, text: str) -> PassInfo:
    (tmp_path / "mine.py").write_text(text)
    return Catalog((tmp_path,), ()).signature("mine")


def test_names() -> None:
    assert CATALOG.passes() == ["lora", "merge.bdm", "stitch.snnet"]
    assert "base" in CATALOG.specs()
    assert CATALOG.spec_path("base") == FIXTURES / "specs" / "base.peft"
    assert CATALOG.spec_path("any/where.peft") == Path("any/where.peft")


def test_signature() -> None:
    info = CATALOG.signature("lora")
    assert (info.class_name, info.verbs) == ("Lora", ("insert at", "insert after"))
    assert (info.attaches, info.source) == (("linear",), "Hu et al.")
    assert info.doc.startswith("A pass of the tests")
    rank, drop, sizes = (info.options[name] for name in ("rank", "drop", "sizes"))
    assert (rank.default, rank.minimum, rank.maximum, rank.help) == (8, 1, 64, "of the product")
    assert (str(drop), drop.default, drop.required) == ("float or none", None, False)
    assert (str(sizes), sizes.default) == ("list of int", (1, 2))
    assert info.options["mode"].choices == ("sum", "gate")
    assert CATALOG.signature("merge.bdm").options["keep"].required


def test_a_signature_is_read_without_running_the_file(tmp_path: Path) -> None:
    text = HEAD + "raise SystemExit\nclass Mine(Pass):\n    n: 'int | None' = option(default=3)\n"
    option = signature_of(tmp_path, text).options["n"]
    assert (option.type, option.nullable, option.default) == ("int", True, 3)


def test_what_a_signature_can_say_agrees_with_the_class() -> None:
    for name in CATALOG.passes():
        info, found = CATALOG.signature(name), CATALOG.load(name)
        assert found.__name__ == info.class_name
        assert found.verbs == info.verbs
        values = {k: v.default for k, v in info.options.items() if not v.required}
        required = {k: 1 for k, v in info.options.items() if v.required}
        made = found(**required)
        assert {key: getattr(made, key) for key in values} == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no public class"),
        ("class Mine:\n    x: int = 3", "no public class"),
        ("class A(Pass): pass\nclass B(Pass): pass", "more than one"),
        ("class A(Pass):\n    x: dict = {}", "type 'dict'"),
        ("class A(Pass):\n    x: int = f()", "must be a literal"),
        ("class A(Pass):\n    x: int = option(low=3)", "no argument 'low'"),
        ("class A(Pass):\n    x: int = option(minimum=y)", "must be a literal"),
        ("class A(Pass):\n    verbs = ['insert']", "tuple of strings"),
        ("class A(Pass", "not Python"),
        ("a\0b", "pass 'mine'"),
    ],
)
def test_malformed_passes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        signature_of(tmp_path, text)
    assert caught.value.code == "VR240"


def test_helpers_are_no_passes(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "__init__.py").write_text("class Group(Pass): pass\n")
    (tmp_path / "group" / "layers.py").write_text("class Layer: pass\n")
    (tmp_path / "_hidden.py").write_text("class Hidden(Pass): pass\n")
    found = Catalog((tmp_path,), ())
    assert found.passes() == ["group"]
    assert found.signature("group").class_name == "Group"


@pytest.mark.parametrize("name", ["../lora", "lora.py", "", ".", "_helper", "a" * 5000, "x\0"])
def test_names_that_are_no_passes(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        CATALOG.signature(name)
    assert caught.value.code == "VR201"


def test_passes_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "other_passes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "theirs.py").write_text(HEAD + "class Theirs(Pass):\n    n: int = 3\n")
    entry = SimpleNamespace(
        name="theirs", module="other_passes.theirs", value="other_passes.theirs"
    )
    gone = SimpleNamespace(name="gone", module="other_passes.gone", value="other_passes.gone")
    monkeypatch.setattr(catalog, "_installed", lambda: (entry, gone))
    monkeypatch.syspath_prepend(tmp_path)
    found = Catalog((FIXTURES / "passes",), (), plugins=True)
    assert "theirs" in found.passes()
    assert found.signature("theirs").options["n"].default == 3
    assert "other_passes.theirs" not in sys.modules
    assert found.load("theirs").__name__ == "Theirs"
    with pytest.raises(SpecError, match="is not there"):
        found.signature("gone")


def test_this_installation() -> None:
    assert catalog.installed().pass_folders
    for name in catalog.passes():
        assert catalog.signature(name).name == name
    assert all(catalog.spec_path(name).is_file() for name in catalog.specs())
