"""The shell is told how a word goes on: commands, options, specs, models, passes, params."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, get_completion_class

from vitrewrite.cli import run
from vitrewrite.cli.commands import cli


def completed(line: str) -> list[str]:
    """How the last word of a line may go on."""
    *before, last = line.split(" ")
    shell = BashComplete(cli, {}, "vitrewrite", "_VITREWRITE_COMPLETE")
    return [each.value for each in shell.get_completions(before, last)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pl", ["plan"]),
        ("show to", ["tokens"]),
        ("apply --no", ["--no-weights"]),
        ("list mod", ["models"]),
        ("apply fpet_lor", ["fpet_lora"]),
        ("diff fpet_lora fpet_lor", ["fpet_lora"]),
        ("explain adaptf", ["adaptformer"]),
        ("explain prep", ["prepend"]),
        ("explain VR20", [f"VR20{n}" for n in range(1, 10)]),
        ("sites vit_base_patch16_clip_quickgelu", ["vit_base_patch16_clip_quickgelu_224"]),
        ("apply lora_qv ra", ["rank="]),
        ("apply lora_qv lora.con", ["lora.convention="]),
        ("apply lora_qv lora.rank_stabilised=", [f"lora.rank_stabilised={v}" for v in
                                                 ("true", "false")]),
        ("apply lora_qv tune.clip_g", []),
        ("apply lora_qv model=dinov2_s", ["model=dinov2_small"]),
        ("apply lora_qv rank=2 device=cu", ["device=cuda"]),
        ("apply lora_qv weights=pre", ["weights=pretrained"]),
        ("plan lora_qv tune.we", ["tune.weight_decay="]),
        ("check lora_qv ra", ["rank="]),
        ("show tokens lora_qv ra", ["rank="]),
        ("sites vit_base num_cl", ["num_classes="]),
        ("check-pass lora conv", ["convention="]),
        ("fmt lora", []),
        ("plan no_such_spec ra", []),
    ],
)  # fmt: skip
def test_words(
    line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [word for word in completed(line) if word in expected or not expected] == expected


def test_bash_takes_an_override_for_three_words() -> None:
    assert completed("apply lora_qv model = dinov2_s") == ["dinov2_small"]
    assert "dinov2_small" in completed("apply lora_qv model =")
    assert completed("apply lora_qv model = vit_base ra") == ["rank="]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.peft").write_text("param mine: str = a in {a, b}\ninclude lora_qv\n")
    (tmp_path / "made" / "out").mkdir(parents=True)
    (tmp_path / "made" / "out" / "lock.json").touch()
    (tmp_path / "made" / "other.peft").touch()
    assert completed("apply min") == ["mine.peft"]
    assert completed("apply ./m") == ["./made/", "./mine.peft"]
    assert completed("verify made/") == ["made/other.peft", "made/out"]
    assert completed("plan mine.peft mi") == ["mine="]
    assert completed("plan mine.peft mine=") == ["mine=a", "mine=b"]
    assert completed("plan mine.peft ra") == ["rank="]


def test_each_shell_has_its_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in ("bash", "zsh", "fish"):
        monkeypatch.setenv("_VITREWRITE_COMPLETE", f"{shell}_source")
        try:
            assert run([]) == 0
        except RuntimeError:  # of a bash that is too old
            continue
        assert f"_VITREWRITE_COMPLETE={shell}_complete" in capsys.readouterr().out
    assert "compopt -o nospace" in get_completion_class("bash").source_template  # type: ignore[union-attr]


LINES = {
    "vitrewrite apply lora_qv model=vit_bas": "plain,model=vit_base",
    "vitrewrite apply lora_qv ran": "plain,rank=",
    "vitrewrite explain adaptf": "plain,adaptformer",
    "vitrewrite pl": "plain,plan",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[-1])
def test_it_answers_without_torch_and_without_the_parser(line: str, tmp_path: Path) -> None:
    program = """
import os, sys
from vitrewrite.__main__ import main
os.environ.update(_VITREWRITE_COMPLETE="bash_complete", COMP_WORDS=sys.argv[1],
                  COMP_CWORD=str(sys.argv[1].count(" ")))
assert main([]) == 0
heavy = {"torch", "timm", "transformers", "numpy", "networkx", "jinja2", "rich", "lark"}
heavy |= {f"vitrewrite.language.{name}" for name in ("load", "model", "overrides", "parse")}
heavy |= {"vitrewrite.disk", "vitrewrite.folder"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert LINES[line] in done.stdout.splitlines()
