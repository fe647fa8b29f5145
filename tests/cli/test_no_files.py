"""What is no regular file is refused at once, in place of waiting for it or reading for ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .invoke import invoke


@pytest.fixture
def pipe(here: Path) -> Path:
    """A folder with a pipe into which nobody writes."""
    if sys.platform == "win32":
        pytest.skip("there are no pipes with names")
    os.mkfifo(here / "pipe")
    return here


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ("apply lora.peft weights=pipe --out out", "VR711"),
        ("apply lora.peft weights=/dev/zero --out out", "VR711"),
        ("apply lora.peft weights=. --out out", "VR711"),
        ("apply lora.peft --profile pipe --out out", "VR763"),
        ("tune lora.peft data=pipe --out out", "VR740"),
        ("profile lora.peft data=/dev/zero --out out", "VR740"),
        ("plan lora.peft model=pipe.py:build", "VR310"),
        ("verify pipe", "VR226"),
        ("lower pipe --out out", "VR703"),
        ("fmt pipe", "VR101"),
    ],
)
def test_pipes_devices_and_folders(argv: str, code: str, pipe: Path) -> None:
    found = invoke(*argv.split())
    assert (found.status, found.codes) == (1, [code])
    assert not (pipe / "out").exists()


@pytest.mark.parametrize("key", ["embed_dim", "depth", "num_classes"])
def test_sizes_that_would_take_for_ever(key: str, here: Path) -> None:
    found = invoke("plan", "lora.peft", f"{key}=5000000")
    assert (found.status, found.codes) == (1, ["VR316"])
