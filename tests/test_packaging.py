"""The wheel holds everything that the tree holds, and nothing else."""

from __future__ import annotations

import email.parser
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vitrewrite
from tests.packages import METADATA, PAGES, ROOT, SHIPPED, in_wheel, of_a_wheel

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


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    packed, described = in_wheel(wheel)
    assert packed == of_a_wheel()
    assert packed >= DATA
    assert described == METADATA
    assert not any("test_" in name and not name.endswith(".jinja") for name in packed)
    assert not any(name.startswith(("tests/", "vitrewrite/tests/")) for name in packed)


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
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nlora_qv" in done.stdout


def test_an_sdist_takes_all_that_builds_tests_and_explains() -> None:
    """`make package` builds one, and a wheel out of it; here, only what it is told to take."""
    project = (ROOT / "pyproject.toml").read_text()
    chosen = project.partition("targets.sdist]")[2].partition("]")[0]
    named = set(re.findall(r'"/([\w.]+)"', chosen))
    assert named | {"LICENSE", "README.md", "pyproject.toml"} == {*SHIPPED} | PAGES
    assert all((ROOT / name).exists() for name in {*SHIPPED} | PAGES)


def test_the_oldest_versions_of_the_matrix_are_those_of_the_project() -> None:
    """And its Pythons are those that the classifiers name."""
    project = (ROOT / "pyproject.toml").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pins = dict(re.findall(r"(\w+)==(\d[\d.]*\d)", workflow))
    assert pins.keys() == {"torch", "timm", "transformers"}
    for name, version in pins.items():
        least = set(re.findall(rf'"{name}>=([\d.]+)"', project))
        assert {version.removesuffix(".0"), version} & least, (name, version, least)
        assert len(least) == 1, name
    pythons = re.findall(r'"(3\.\d+)"', workflow.partition("python: [")[2].partition("]")[0])
    assert pythons == re.findall(r"Python :: (3\.\d+)", project)


def test_every_extra_is_in_the_readme() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    table = project.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    extras = re.findall(r"^(\w+) = ", table, re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert len(extras) >= 5
    assert all(f"\n| `{name}` | " in readme for name in extras)


def test_the_public_names_are_these() -> None:
    assert vitrewrite.__all__ == [
        "Pass", "VitrewriteError", "apply", "bank", "capture", "emit", "load", "lower", "parse",
        "plan", "save", "verify",
    ]  # fmt: skip
    assert vitrewrite.__all__ == sorted(vitrewrite.__all__)
