"""Writes a place again and again, killed one step later each time; run by `test_killed`.

A step is whatever Python reports to an audit hook: a file that is opened, made, linked, renamed or
removed. Arguments: how folders change places (`exchange`, `renames`) and what is written (`folder`,
`new`, `file`, `run`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from vitrewrite import disk
from vitrewrite.disk import folders

KINDS = ("os.", "open", "shutil.", "fcntl.", "ctypes.")
way, what = sys.argv[1:]
steps_left = 0
if way == "renames":
    folders.exchanged = lambda *_: False  # type: ignore[assignment, attr-defined]
else:
    for name in ("first", "second"):
        Path(name).mkdir()
    if not folders.exchanged(Path("first"), Path("second")):  # type: ignore[attr-defined]
        way = "renames"  # this system cannot
    for name in ("first", "second"):
        Path(name).rmdir()


def die(event: str, _: object) -> None:
    global steps_left
    if steps_left and event.startswith(KINDS):
        if way == "exchange" and what == "folder" and not Path("out").is_dir():
            sys.stderr.write(f"no folder before {event}\n")
            os._exit(3)
        steps_left -= 1
        if not steps_left:
            os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path, version: str) -> None:
    (folder / "model.py").write_text(version)
    (folder / version).write_text(version)
    lock = {"made_by": "vitrewrite", "files": sorted(p.name for p in folder.iterdir())}
    (folder / "lock.json").write_text(json.dumps(lock))


def write(version: str) -> None:
    if what == "file":
        with disk.replacing_file(Path("out")) as growing:
            growing.write_text(version)
    elif what == "run":
        Path("out").mkdir(exist_ok=True)
        with disk.filling(Path("out")) as growing:
            fill(growing, version)
    else:
        with disk.replacing(Path("out")) as growing:
            fill(growing, version)


def theirs() -> None:
    """What a user puts into the folder."""
    Path("out/sub/empty").mkdir(parents=True)
    Path("out/sub/data").write_text("precious")
    Path("out/notes.txt").write_text("mine")
    Path("out/.hidden").symlink_to("nowhere")


def kept() -> bool:
    found = Path("out/sub/data").read_text(), Path("out/notes.txt").read_text()
    inside = sorted(p.name for p in Path("out/sub").iterdir())
    return (*found, inside, os.readlink("out/.hidden")) == (  # noqa: PTH115
        "precious", "mine", ["data", "empty"], "nowhere",
    )  # fmt: skip


def ours() -> list[str]:
    """Which versions are there: one, whole."""
    if what == "file":
        return [Path("out").read_text()]
    names = {p.name for p in Path("out").iterdir()} - {"sub", "notes.txt", ".hidden"}
    version = Path("out/model.py").read_text()
    if what == "run" and "lock.json" not in names:
        return []  # not finished, and it says so
    assert {"lock.json", "model.py", version} <= names, names
    return sorted(n for n in names if n.startswith("v"))


def in_child(action: Callable[[], None], steps: int) -> int:
    global steps_left
    process = os.fork()
    if process == 0:
        steps_left = steps
        action()
        os._exit(0)
    return os.waitpid(process, 0)[1]


sys.addaudithook(die)
if what != "new":
    write("v0")
if what == "folder":
    theirs()
version = 0
for step in range(1, 1000):
    old, new = f"v{version}", f"v{version + 1}"
    status = in_child(lambda: write(new), step)  # noqa: B023 - it runs here
    assert status in (0, signal.SIGKILL), status
    there = Path("out").exists() or (way == "exchange" and what == "folder")
    if there and what in ("folder", "file"):
        assert ours() in ([old], [new]), (step, ours())
    if what == "folder" and there:
        assert kept(), step
    if what == "new" and there:
        assert ours() == [new]
    version += 2
    write(f"v{version}")
    assert f"v{version}" in ours()
    assert what == "run" or ours() == [f"v{version}"], ours()
    assert os.listdir() == ["out"], (step, os.listdir())  # noqa: PTH208
    assert what == "file" or not list(Path("out").glob("*.vitrewrite"))
    assert what != "folder" or kept()
    if what == "new":
        for path in Path("out").iterdir():
            path.unlink()
        Path("out").rmdir()
    if status == 0:
        break
sys.stdout.write(str(step))
