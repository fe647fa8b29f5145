"""Runs the command in this process, and looks at what it leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrewrite.cli import run

TINY = """
from timm.models.vision_transformer import VisionTransformer


def build(**options):
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**small, "num_classes": 10, **options})
"""
LORA = """# LoRA on a tiny model
model tiny.py:build
param rank: int = 4 in 1..64

insert lora(rank=rank) at blocks[*].attn.{q, v}
train head

require trainable == 1024 excluding head
require identity at init
"""
FILES = {
    *("model.py", "weights.safetensors", "delta.safetensors", "report.json", "lock.json"),
    *("test_model.py", "graph.svg", "plan.md", "program.json", "README.md", "preprocessing.json"),
}
COUNTS = {"params", "macs", "macs_lowered", "flops", "tokens", "clauses", "claims"}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def codes(self) -> list[str]:
        """The codes of the errors on stderr."""
        return re.findall(r"^(?:.*:\d+:\d+: )?(VR\d{3}) ", self.err, re.MULTILINE)

    @property
    def json(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


READERS = {"apply", "bench", "check", "plan", "profile", "show", "sites", "tune", "verify"}


def trusting(*argv: object) -> list[str]:
    """The words of a command, which runs the code that a spec among them names in a file."""
    words = [str(a) for a in argv]
    specs = [Path(word) for word in words if word.endswith(".peft") and "\n" not in word]
    code = any(".py:" in text(spec) for spec in specs if spec.is_file())
    named = code and READERS & set(words[:1]) and "--trust" not in words
    return [*words, "--trust"] if named else words


def text(spec: Path) -> str:
    return spec.read_text(encoding="utf-8", errors="replace")


def invoke(*argv: object, trust: bool = True) -> Result:
    """Runs the command; whatever it is given, it neither raises nor prints a traceback.

    Args:
        argv: its words.
        trust: whether code in files that a spec names may run without being named again.
    """
    out, err = io.StringIO(), io.StringIO()
    words = trusting(*argv) if trust else [str(a) for a in argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words)
    result = Result(status, out.getvalue(), err.getvalue())
    assert "Traceback" not in result.err + result.out
    assert "VR999" not in result.err, result.err
    assert "\x1b" not in result.err + result.out
    return result


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder, hidden files too, with a hash of what is in it."""
    return {
        str(p.relative_to(folder)): hashlib.sha1(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts  # of the model's own file
    }
