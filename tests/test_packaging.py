"""The wheel holds everything that the tree holds, and nothing else."""

from __future__ import annotations

import email.parser
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vitrewrite

ROOT = Path(__file__).parent.parent
DATA = {
    "vitrewrite/language/grammar.lark",
    "vitrewrite/language/mistakes.txt",
    "vitrewrite/catalog/explanations.md",
    "vitrewrite/emission/templates/model.py.jinja",
    "vitrewrite/emission/templates/test_model.py.jinja",
    "vitrewrite/emission/templates/graph.svg.jinja",
    "vitrewrite/py.typed",
    "vitrewrite/specs/lora_qv.peft",
    "vitrewrite/passes/__init__.py",
    "vitrewrite/passes/lora.py",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree; building it leaves nothing in the tree."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (path,) = folder.glob("*.whl")
    return path


def tree() -> set[str]:
    """The files that belong into a wheel, by their names there."""
    found = set()
    for top, inside in (("vitrewrite", ""), ("passes", "vitrewrite/"), ("specs", "vitrewrite/")):
        for path in (ROOT / top).rglob("*"):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-4:])
            if path.is_file() and not hidden and path.suffix != ".pyc":
                found.add(inside + path.relative_to(ROOT).as_posix())
    return found


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == tree()
    assert packed >= DATA
    assert {name.rsplit("/", 1)[-1] for name in names - packed} == {
        "METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt",
    }  # fmt: skip
    assert not any("test_" in name and not name.endswith(".jinja") for name in packed)


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
        metadata = email.parser.Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("vitrewrite", vitrewrite.__version__)
    needed = {r.split(";")[0].rstrip() for r in metadata.get_all("Requires-Dist", [])}
    assert {name.split(">")[0] for name in needed} >= {"torch", "timm", "click", "safetensors"}
    assert "vitrewrite = vitrewrite.__main__:main" in scripts


def test_the_wheel_works_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import vitrewrite
assert vitrewrite.__file__.startswith(sys.argv[1]), vitrewrite.__file__
assert len(vitrewrite.__path__) == 1, vitrewrite.__path__
from vitrewrite import catalog
assert all(str(catalog.spec_path(s)).startswith(sys.argv[1]) for s in catalog.specs())
assert all(str(catalog.signature(p).path).startswith(sys.argv[1]) for p in catalog.passes())
from vitrewrite.language import parse_spec
for name in catalog.specs():
    parse_spec(name)
from vitrewrite.__main__ import main
sys.exit(main(["list", "passes"]) + main(["list", "specs"]) + main(["explain", "VR203"]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nlora_qv" in done.stdout


def test_the_public_names_are_these() -> None:
    assert vitrewrite.__all__ == [
        "Pass", "VitrewriteError", "apply", "bank", "capture", "emit", "load", "lower", "parse",
        "plan", "save", "verify",
    ]  # fmt: skip
    assert vitrewrite.__all__ == sorted(vitrewrite.__all__)
