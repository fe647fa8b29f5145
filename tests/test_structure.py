"""What the tree must look like: sizes, imports, headings of passes, shipped specs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vitrewrite import catalog
from vitrewrite.language import format_text, parse_spec
from vitrewrite.language.tokens import VERBS

ROOT = Path(__file__).parent.parent
FILE_LIMIT, FUNCTION_LIMIT = 400, 60
# What parts of the package import where it is installed.
OPTIONAL = {
    "vitrewrite/models/": {"transformers"},
    "vitrewrite/tuning/": {"accelerate", "sklearn"},
    "vitrewrite/data/": {"datasets", "sklearn", "PIL", "numpy"},
    "vitrewrite/tasks/": {"torchmetrics", "transformers"},
    "vitrewrite/report/": {"PIL", "sklearn"},
    "vitrewrite/cli/showing.py": {"sklearn", "PIL"},
    "vitrewrite/folder/predicting.py": {"PIL"},
    "vitrewrite/interchange/exported.py": {"onnxruntime", "onnxscript"},
    "vitrewrite/interchange/translations.py": {"onnxscript"},
}
HEADINGS = (
    "What it does", "Source", "Attaches to", "Parameters", "Forward", "Exactness", "Example",
)  # fmt: skip


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# One test for all files: two thousand of them take longer to report than to run.
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


KINDS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef),
    *(ast.Attribute, ast.Name, ast.Constant),
)


@cache
def nodes(path: Path) -> list[ast.AST]:
    """What the tree of a file has in it, of the kinds that are looked at."""
    return [node for node in ast.walk(ast.parse(text(path))) if isinstance(node, KINDS)]


def test_files_are_short() -> None:
    lengths = {name(p): len(text(p).splitlines()) for p in sources("vitrewrite", "passes", "tests")}
    assert {path: length for path, length in lengths.items() if length > FILE_LIMIT} == {}


def test_functions_are_short() -> None:
    found = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in sources("vitrewrite", "passes")
        for node in nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LIMIT
    ]
    assert found == []


# A signature as torch has it: one argument a line is longer than a function may be.
AS_IN_TORCH = {("vitrewrite/tracing/decompose.py", "multi_head_attention")}


def untabled(path: Path) -> Iterator[int]:
    """The lines that keep ruff from formatting what is no table of several lines."""
    source = text(path)
    if SKIP not in source:
        return
    statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt)]
    for number in (i for i, line in enumerate(source.splitlines(), 1) if line.endswith(SKIP)):
        around = [n for n in statements if first_line(n) <= number <= (n.end_lineno or 0)]
        if not around:  # in a string
            continue
        inner = max(around, key=lambda n: (n.lineno, -(n.end_lineno or 0)))
        if (name(path), getattr(inner, "name", "")) not in AS_IN_TORCH and not is_table(inner):
            yield number


SKIP = "# fmt: " + "skip"


def first_line(statement: ast.stmt) -> int:
    """That of its decorators, if it has some."""
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])


def is_table(statement: ast.stmt) -> bool:
    """Whether it has a list, tuple, set or dict of several entries over several lines."""
    parts = [n for n in ast.iter_child_nodes(statement) if not isinstance(n, ast.stmt)]
    for part in (node for each in parts for node in ast.walk(each)):
        if isinstance(part, (ast.Dict, ast.List, ast.Tuple, ast.Set)):
            count = len(part.keys if isinstance(part, ast.Dict) else part.elts)
            if count > 1 and (part.end_lineno or 0) > part.lineno:
                return True
    return False


def test_only_tables_keep_their_own_format() -> None:
    found = [
        f"{name(path)}:{number}"
        for path in sources("vitrewrite", "passes", "tests", "examples")
        for number in untabled(path)
    ]
    assert found == []


CLOCKS = re.compile(
    r"\b(perf_counter|process_time|thread_time|timeit|ru_[us]time|time\.time|time\.monotonic|"
    r"os\.times|clock_gettime)\b"
)


def clocks(path: Path) -> Iterator[int]:
    """The lines of a file that read a clock."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            found = node.module in ("time", "timeit")
        elif isinstance(node, (ast.Attribute, ast.Name)):
            owner = getattr(node, "value", None)
            names = [getattr(each, "attr", getattr(each, "id", "")) for each in (owner, node)]
            found = bool(CLOCKS.search(".".join(filter(None, names))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # programs
            found = path.name != "test_structure.py" and bool(CLOCKS.search(node.value))
        else:
            continue
        if found:
            yield node.lineno


def test_no_test_reads_a_clock() -> None:
    """What has to be fast is stated as what is done: calls, imports, bytes. `bench` has times."""
    tests = [p for p in sources("tests") if "mutants" not in p.parts]
    assert [f"{name(path)}:{line}" for path in tests for line in clocks(path)] == []


# -- imports --------------------------------------------------------------------------------------


def imported(path: Path, package: str) -> Iterator[str]:
    """Full names of the modules that a file imports; `package` is what `.` means in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path, top: str) -> str:
    return ".".join([top, *path.relative_to(ROOT).parent.parts[1:]])


def test_the_core_imports_no_method() -> None:
    found = [
        f"{name(path)} {module}"
        for path in sources("vitrewrite")
        for module in imported(path, package_of(path, "vitrewrite"))
        if re.match(r"(vitrewrite\.)?(passes|tests)(\.|$)", module)
    ]
    assert found == []


@pytest.mark.parametrize("path", sources("passes"), ids=name)
def test_a_pass_imports_the_core_and_its_own_folder(path: Path) -> None:
    package = package_of(path, "vitrewrite.passes")
    methods = {f"vitrewrite.passes.{each}" for each in catalog.passes()}
    allowed = {"torch", "vitrewrite", *sys.stdlib_module_names}
    for module in imported(path, package):
        assert module.split(".")[0] in allowed, module
        if module.startswith("vitrewrite.passes"):
            assert module == package or module.startswith(f"{package}."), module
            assert module not in methods - {package}, module


def test_only_the_declared_dependencies_are_imported() -> None:
    declared = re.search(r"^dependencies = \[(.*?)^\]", _pyproject(), re.MULTILINE | re.DOTALL)
    assert declared
    names = {re.split(r"[>\[=]", each)[0] for each in re.findall(r'"(.*?)"', declared[1])}
    names |= {"huggingface_hub", "torchvision"}  # timm's own dependencies
    for path in sources("vitrewrite"):
        for module in imported(path, package_of(path, "vitrewrite")):
            top = module.split(".")[0]
            optional = any(
                name(path).startswith(p) and top in found for p, found in OPTIONAL.items()
            )
            assert top in names | {"vitrewrite"} | sys.stdlib_module_names or optional, path


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# -- passes and specs -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", catalog.passes())
def test_the_docstring_of_a_pass_has_the_fixed_headings(method: str) -> None:
    text = ast.get_docstring(ast.parse(catalog.signature(method).path.read_text()))
    assert text
    first, *lines = text.splitlines()
    assert re.fullmatch(r"[^:]+: .+\.", first)
    found = [line for line in lines if line and not line.startswith(" ")]
    assert found == list(HEADINGS)
    for heading in HEADINGS:
        assert re.search(rf"^{heading}\n    \S", text, re.MULTILINE), heading
    example = text.partition("\nExample\n")[2]
    clauses = [line.strip() for line in example.splitlines() if line.split()[:1]]
    clauses = [line for line in clauses if line.split()[0] in VERBS]
    assert clauses, "the example has no clause"
    for clause in clauses:
        parse_spec(clause + "\n")


@pytest.mark.parametrize("method", catalog.passes())
def test_a_pass_declares_what_it_is(method: str) -> None:
    tree = ast.parse(catalog.signature(method).path.read_text())
    (declared,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Pass" for b in node.bases)
    )
    given = {ast.unparse(n.target) for n in declared.body if isinstance(n, ast.AnnAssign)}
    assert given >= {"verbs", "attaches", "source", "claims"}
    for option in catalog.signature(method).options.values():
        assert option.help, option.name
    assert {*catalog.load(method).excludes} <= {*catalog.passes()}


@pytest.mark.parametrize("spec", catalog.specs())
def test_shipped_specs_are_formatted_and_right(spec: str) -> None:
    text = catalog.spec_path(spec).read_text(encoding="utf-8")
    assert format_text(text) == text
    parsed = parse_spec(spec)
    assert not parsed.warnings
    assert text.startswith("# ")
    if spec.startswith("papers/recipes/"):
        assert parsed.tune.settings, "a recipe says how to train"
        return
    assert parsed.model is not None or parsed.bases
    assert parsed.requires or parsed.rows, "a shipped spec carries claims, or stands for rows"


# -- the change log -------------------------------------------------------------------------------


def test_no_line_of_the_change_log_stands_twice() -> None:
    """As after a merge of two orders: then take that of main, and add your lines again."""
    unreleased = text(ROOT / "CHANGELOG.md").partition("\n## ")[2].partition("\n## ")[0]
    starts = [line for line in unreleased.splitlines() if line.startswith(("- ", "### "))]
    assert [line for line in starts if starts.count(line) > 1] == []
    parts = [line for line in starts if line.startswith("### ")]
    assert parts == ["### Added", "### Changed", "### Fixed"]
