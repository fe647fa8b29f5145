"""What needs no model starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitrewrite import language

HEAVY = {"torch", "timm", "transformers", "numpy", "networkx", "jinja2", "rich"}
PROGRAM = """
import json, sys
import vitrewrite
if len(sys.argv) > 1:
    from vitrewrite.__main__ import main
    status = main(sys.argv[1:])
    assert status == 0, status
ours = "vitrewrite.language."
sys.stderr.write(json.dumps(sorted(m for m in sys.modules if "." not in m or m.startswith(ours))))
"""
PARSER = {f"vitrewrite.language.{name}" for name in ("load", "model", "parse", "resolve")} | {
    "lark"
}
LIGHT = [
    "",
    "--help",
    "--version",
    "apply --help",
    "list models",
    "list passes",
    "list specs --json",
    "explain VR203",
    "explain lora",
    "explain insert",
    "explain tune",
    "tune --help",
]
PARSING = [
    "fmt spec.peft",
    "check spec.peft other.peft rank=2",
    "diff spec.peft other.peft",
]


@pytest.mark.parametrize(
    "line", [*LIGHT, *PARSING], ids=lambda line: line.replace(" ", "-") or "import"
)
def test_starts_without_torch(line: str, tmp_path: Path) -> None:
    (tmp_path / "spec.peft").write_text("param rank: int=4\ninsert lora(rank=rank) at blocks\n")
    (tmp_path / "other.peft").write_text("include 'spec.peft'\ntrain head\nrequire macs < 1G\n")
    command = [sys.executable, "-c", PROGRAM, *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The parser is for specs: nothing that reads none waits for it.
    heavy = HEAVY if line in PARSING else HEAVY | PARSER
    assert not heavy & set(json.loads(done.stderr))


def test_a_wrong_command_line_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "wrong.peft").write_text("model vit_base\ninsert lroa() at blocks\n")
    wrong = ("apply wrong.peft", "plan lora_qv rnak=3", "verify nothing", "sites vit_bsae")
    for line in (*wrong, "plan lora_qv model=vit_bsae"):
        command = [sys.executable, "-c", PROGRAM.replace("== 0", "!= 0"), *line.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


def test_what_libraries_hold_is_never_searched_for_garbage() -> None:
    program = """
import gc, sys
frozen = []
freeze = gc.freeze
gc.freeze = lambda: (frozen.append({"torch", "timm"} & sys.modules.keys()), freeze())
from vitrewrite.__main__ import main
for line in ("plan lora_qv model=vit_tiny", "check lora_qv model=vit_tiny"):
    assert main(line.split()) == 0
assert frozen == [{"torch", "timm"}], frozen
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_the_language_is_imported_name_by_name() -> None:
    for name in language._PLACES:
        assert getattr(language, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = language.nothing


def test_the_api_is_imported_when_it_is_used() -> None:
    program = """
import sys
import vitrewrite
assert "torch" not in sys.modules
assert vitrewrite.Pass and vitrewrite.VitrewriteError
assert "torch" not in sys.modules
for name in vitrewrite.__all__:
    assert getattr(vitrewrite, name) is not None
assert "torch" in sys.modules
try:
    vitrewrite.nothing
except AttributeError:
    pass
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)
