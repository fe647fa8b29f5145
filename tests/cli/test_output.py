"""What the command prints, for programs and for people: JSON, annotations, colour, how much."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from vitrewrite.cli import run
from vitrewrite.cli.commands import cli
from vitrewrite.cli.common import busy, progress_bar
from vitrewrite.cli.output import annotation, coloured, signed
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import EveryMinute

from .invoke import LORA, invoke

KEYS = {
    *("code", "text", "file", "line", "column", "end_line", "end_column", "source"),
    *("notes", "help", "measured"),
}


def test_json_of_a_wrong_spec_says_everything_that_the_text_does(here: Path) -> None:
    (here / "bad.peft").write_text("model tiny.py:build\ninsert lroa() at blocks\n")
    for command in ("apply", "plan", "verify", "bench"):
        result = invoke(command, "bad.peft", "--json")
        assert (result.status, result.codes) == (1, ["VR201"])
        (error,) = result.json["errors"]
        assert error.keys() == KEYS
        place = [error[k] for k in ("code", "file", "line", "column", "end_column", "source")]
        assert place == ["VR201", "bad.peft", 2, 8, 12, "insert lroa() at blocks"]
        assert error["text"].startswith("no pass named 'lroa'")
        assert error["help"] == "did you mean 'lora'?"


def test_json_of_a_claim_has_what_was_measured_and_the_plan(here: Path) -> None:
    (here / "bad.peft").write_text(f"{LORA}require params < 1K\nrequire trainable < 2\n")
    result = invoke("plan", "bad.peft", "--json")
    assert (result.status, result.codes) == (1, ["VR501", "VR501"])
    assert result.json["params"]["total"] == result.json["errors"][0]["measured"]
    assert [error["line"] for error in result.json["errors"]] == [10, 11]
    assert not result.json["ok"]
    found = invoke("check", "bad.peft", "--json").json
    assert [error["code"] for error in found["errors"]] == ["VR501", "VR501"]
    assert found["specs"][0]["errors"] == found["errors"]


def test_json_of_a_wrong_command_line() -> None:
    for line in ("aply lora_qv", "apply", "apply lora_qv --nothing", "list mdoels"):
        result = invoke(*line.split(), "--json")
        assert result.status == 2
        (error,) = result.json["errors"]
        assert error["code"] == "VR893"
        assert error["help"].endswith("--help'")
    result = invoke("check", "--json")
    assert (result.status, result.json["errors"][0]["code"]) == (2, "VR902")


def test_json_of_what_stops_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for what, status, code in ((KeyboardInterrupt(), 130, "VR894"), (OSError(), 1, "VR999")):

        def stop(*_: object, what: BaseException = what) -> None:
            raise what

        monkeypatch.setattr("vitrewrite.cli.listing.entries", stop)
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        assert run(["list", "passes", "--json"]) == status
        assert json.loads(out.getvalue())["errors"][0]["code"] == code


def test_annotations(here: Path) -> None:
    (here / "bad.peft").write_text("insert lroa() at blocks\ntrain blocks[\n")
    result = invoke("check", "lora.peft", "bad.peft", "--format", "github")
    assert result.status == 1
    first, second = result.out.splitlines()
    place = "::error file=bad.peft,line=1,endLine=1,col=8,endColumn=12,title=VR201::no pass named"
    assert first.startswith(place)
    assert "%0Ahelp: did you mean 'lora'?" in first
    assert "line=2," in second
    assert invoke("check", "bad.peft", "--format", "github", "-q").out == result.out
    assert invoke("check", "bad.peft", "--format", "json").json["errors"][0]["code"] == "VR201"
    assert invoke("check", "lora.peft", "--format", "github").out == ""


def test_an_annotation_without_a_place(here: Path) -> None:
    error = SpecError("VR101", "100% wrong: a, b\nc", span=Span("<command line>", 1, 1, 1, 2, "x"))
    assert annotation(error, "text") == "::error title=VR101::100%25 wrong: a, b%0Ac"
    shown = annotation(error, "lora.peft", wrong=False)
    assert shown.startswith("::warning file=lora.peft,line=1,title=VR101::")


def test_quiet(here: Path) -> None:
    for command in ("plan", "check"):
        result = invoke(command, "lora.peft", "-q")
        assert (result.status, result.out, result.err) == (0, "", "")
    assert invoke("plan", "lora.peft", "-q", "--json").json["params"]
    assert invoke("-q", "plan", "lora.peft").status == 2  # it belongs to the commands
    result = invoke("plan", "lora.peft", "rank=65", "--quiet")
    assert (result.status, result.out, result.codes) == (1, "", ["VR203"])


def test_verbose(here: Path) -> None:
    result = invoke("plan", "lora.peft", "-v")
    assert result.status == 0
    told = [line.split(":")[0] for line in result.err.splitlines()]
    assert told == ["starting torch", "planning"]
    assert result.out == invoke("plan", "lora.peft").out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for no_colour, shell in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr("sys.stderr", Terminal())
        monkeypatch.setattr("sys.stdout", Terminal())
        assert run(["check", "insert lroa() at blocks"]) == 1
        import sys

        for stream in (sys.stdout, sys.stderr):
            assert ("\x1b[" in stream.getvalue()) == shell  # type: ignore[attr-defined]


def test_what_is_coloured() -> None:
    text = "a.peft:1:8: VR201 no VR202\n    insert lroa\n           ^^^^\n  help: VR203\n"
    red, end = "\x1b[31m\x1b[1m", "\x1b[0m"
    assert coloured(text) == (
        f"a.peft:1:8: {red}VR201{end} no VR202\n    insert lroa\n           {red}^^^^{end}\n"
        f"  \x1b[36mhelp:{end} VR203\n"
    )
    assert signed("  +  5 x\n  - no") == "  \x1b[32m+\x1b[0m  5 x\n  - no"


def test_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(EveryMinute, "now", lambda _: now[0])
    with progress_bar() as told, busy("measuring"):
        for minute in range(4):
            for part in range(6):
                now[0] = 60.0 * minute + 10 * part
                told("blocks", 0.1 * minute)
    assert capsys.readouterr().err == " 10%  blocks\n 20%  blocks\n 30%  blocks\n"
    assert EveryMinute.seconds == 60


def test_help_says_what_may_stand_where() -> None:
    def shown(command: str) -> str:
        return invoke(*command.split(), "--help").out

    for command in ("apply", "plan", "check", "tune", "bench", "verify", "show tokens"):
        assert "an option of a pass: lora.rank=4" in shown(command)
    for command in ("sites", "profile", "list", "lower", "diff"):
        assert "--profile " not in shown(command)
    assert "for the constructor of the model" in shown("sites")
    assert "where it is code of yours" in shown("lower")
    assert "an option of the pass" in shown("check-pass")
    for name, each in cli.commands.items():
        assert each.help, name
