"""What is kept, what is refused, and who writes: folders and files that are replaced as a whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitrewrite import disk
from vitrewrite.disk import claim, folders, strangers
from vitrewrite.errors import FileError

NAMES = (
    "plain", "a b", "it's", 'quo"te', "new\nline", "back\\slash", "\udcff\udcfe", "ü\u2028x",
    "x" * 255, "-out", "${HOME}", ".hidden",
)  # fmt: skip


def write(target: str | Path, **texts: str) -> None:
    """A folder of ours."""
    with disk.replacing(Path(target)) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text)
        lock = {"made_by": "vitrewrite", "files": dict.fromkeys(texts, "hash")}
        (folder / "lock.json").write_text(json.dumps(lock))


def names(folder: str | Path) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir())


def code(target: str | Path) -> str:
    with pytest.raises(FileError) as caught:
        write(target, b="new")
    assert "\n" not in caught.value.message
    return caught.value.code


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_others_put_into_a_folder_stays(
    exchanges: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "exchanged", lambda *_: False)
    write("out", a="old", c="stale")
    (here / "out" / "notes.txt").write_text("mine")
    (here / "out" / "sub" / "deep" / "empty").mkdir(parents=True)
    (here / "out" / "sub" / "deep" / "data").write_text("mine too")
    (here / "out" / "sub").chmod(0o555)
    (here / "out").chmod(0o750)
    (here / "out" / "link").symlink_to("sub/deep/data")
    (here / "out" / "dangling").symlink_to("nowhere")
    (here / "out" / "__pycache__").mkdir()  # of a model.py that is gone
    os.mkfifo(here / "out" / "pipe")
    same = (here / "out" / "notes.txt").stat().st_ino
    write("out", a="new", b="new")
    assert names("out") == ["a", "b", "dangling", "link", "lock.json", "notes.txt", "pipe", "sub"]
    assert (here / "out" / "notes.txt").stat().st_ino == same  # moved, not copied
    assert (here / "out" / "notes.txt").stat().st_nlink == 1
    assert (here / "out" / "link").read_text() == "mine too"
    assert os.readlink(here / "out" / "dangling") == "nowhere"  # noqa: PTH115
    assert (here / "out" / "sub").stat().st_mode & 0o777 == 0o555
    assert (here / "out").stat().st_mode & 0o777 == 0o750
    assert names(here / "out" / "sub" / "deep") == ["data", "empty"]
    assert (here / "out" / "a").read_text() == "new"
    assert names(here) == ["out"]


def test_what_is_put_there_at_the_last_moment_stays_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("out", a="old")

    def late(old: Path, new: Path) -> None:
        strangers.keep(old, new)
        (old / "late").write_text("just in time")

    monkeypatch.setattr(folders, "keep", late)
    write("out", a="new")
    assert (here / "out" / "late").read_text() == "just in time"
    assert names("out") == ["a", "late", "lock.json"]


def test_what_would_be_overwritten_is_refused(here: Path) -> None:
    write("out", a="old")
    (here / "out" / "b").write_text("mine")
    with pytest.raises(FileError, match=r"VR734 .*out/b' is not ours, and would be overwritten"):
        write("out", a="new", b="new")
    assert [(here / "out" / n).read_text() for n in ("a", "b")] == ["old", "mine"]
    (here / "out" / "b").unlink()
    (here / "out" / "a").unlink()
    (here / "out" / "a").mkdir()  # under the name of one of ours
    with pytest.raises(FileError, match="VR734"):
        write("out", a="new")
    assert names(here) == ["out"]


def test_what_lies_on_another_file_system_is_not_touched(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("out", a="old")
    (here / "out" / "mounted").mkdir()
    lstat = Path.lstat

    def elsewhere(path: Path) -> Any:
        found = lstat(path)
        return (
            os.stat_result((*found[:2], found.st_dev + 1, *found[3:]))
            if (path.name == "mounted")
            else found
        )

    monkeypatch.setattr(Path, "lstat", elsewhere)
    with pytest.raises(FileError, match=r"VR734 cannot keep .*mounted.* another file system"):
        write("out", a="new")
    assert (here / "out" / "a").read_text() == "old"


def test_file_systems_without_links_copy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write("out", a="old")
    (here / "out" / "notes.txt").write_text("mine")
    write("out", a="new")
    assert (here / "out" / "notes.txt").read_text() == "mine"


def test_links_to_folders_and_files_stay_links(here: Path) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    write("link", a="new")
    assert names("real") == ["a", "lock.json"]
    (here / "file").write_text("old")
    (here / "file").chmod(0o640)
    (here / "there").symlink_to("file")
    (here / "dangling").symlink_to("not-yet")
    disk.write_text(Path("there"), "new")
    disk.write_text(Path("dangling"), "new")
    assert (here / "there").is_symlink()
    assert (here / "file").read_text() == (here / "not-yet").read_text() == "new"
    assert (here / "file").stat().st_mode & 0o777 == 0o640
    assert names(here) == ["dangling", "file", "link", "not-yet", "real", "there"]


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names(name: str, here: Path) -> None:
    write(name, a="old")
    write(name, a="new")
    assert (here / name / "a").read_text() == "new"
    with pytest.raises(FileError) as caught:
        disk.write_text(Path(name), "x")
    assert caught.value.render().isprintable()
    disk.write_text(Path(name, name), "text")
    assert names(here) == [name]


@pytest.mark.parametrize("name", ["nul\0", "half \ud800", "x" * 256, "a\0b/c", "loop", "loop/x"])
def test_what_is_no_name(name: str, here: Path) -> None:
    (here / "loop").symlink_to("loop")
    for action in (write, disk.check_target, disk.check_file, lambda t: disk.write_text(t, "")):
        with pytest.raises(FileError, match=r"VR702|VR737") as caught:
            action(Path(name))
        assert all(line.isprintable() for line in caught.value.render().splitlines())
    assert names(here) == ["loop"]


def test_a_file_replaces_files_only(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "folder").mkdir()
    for name in ("pipe", "folder", "missing/file"):
        for action in (disk.check_file, lambda t: disk.write_text(t, "")):
            with pytest.raises(FileError, match="VR702"):
                action(Path(name))
    assert names(here) == ["folder", "pipe"]


# -- permissions ----------------------------------------------------------------------------------


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a user whom permissions bind."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        root = os.getuid() == 0
        if root:
            os.chown(name, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield Path(name)
        finally:
            if root:
                os.setresuid(0, 0, 0)
            for folder, _, _ in os.walk(name):
                Path(folder).chmod(0o700)
            monkeypatch.undo()


def test_folders_and_files_that_are_read_only(private: Path) -> None:
    Path("parent").mkdir()
    write("parent/out", a="old")
    (private / "parent" / "file").write_text("old")
    Path("parent/out").chmod(0o555)
    assert code("parent/out") == "VR702"
    Path("parent/out").chmod(0o755)
    (private / "parent" / "file").chmod(0o444)
    with pytest.raises(FileError, match=r"VR702 .*read-only"):
        disk.write_text(Path("parent/file"), "new")
    (private / "parent" / "file").chmod(0o644)
    Path("parent").chmod(0o555)
    for target in ("parent/out", "parent/new", "parent/new/inner"):
        assert code(target) == "VR702"
        with pytest.raises(FileError, match=r"VR702 .*no permission to write to '.*parent'"):
            disk.check_target(Path(target))
    with pytest.raises(FileError, match="VR702"):
        disk.write_text(Path("parent/file"), "new")
    assert (names("parent"), names("parent/out")) == (["file", "out"], ["a", "lock.json"])


# -- two at once ----------------------------------------------------------------------------------


def test_the_second_waits_and_the_last_one_wins(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 60.0)
    entered, written = threading.Event(), threading.Event()

    def first() -> None:
        with disk.replacing(Path("out")) as folder:
            entered.set()
            (folder / "first").write_text("")
            (folder / "lock.json").write_text('{"made_by": "vitrewrite", "files": ["first"]}')
            written.wait(60)

    def second() -> None:
        write("out", second="")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()  # it waits
    assert not (here / "out").exists()
    written.set()
    for thread in threads:
        thread.join(60)
    assert names("out") == ["lock.json", "second"]
    assert names(here) == ["out"]


def test_who_does_not_wait_longer_is_told(here: Path) -> None:
    write("out", a="old")
    with disk.replacing(Path("out")), pytest.raises(FileError, match=r"VR735 .*'out'"):
        write("out", a="new")
    with disk.replacing_file(Path("file")) as growing:
        growing.write_text("first")
        with pytest.raises(FileError, match=r"VR735 another process is writing 'file'"):
            disk.write_text(Path("file"), "second")
    assert (here / "file").read_text() == "first"
    with disk.claimed(Path("out"), Path("out")):  # as a run of `tune` does
        assert code("out") == "VR735"
    with disk.filling(Path("out")), pytest.raises(FileError, match="VR735"):
        disk.filling(Path("out")).__enter__()
    with pytest.raises(KeyError), disk.replacing(Path("out")):
        raise KeyError
    write("out", a="new")
    assert names(here) == ["file", "out"]


def test_a_child_process_holds_nothing_when_its_parent_is_gone(here: Path) -> None:
    """As the workers that load images, which outlive a killed parent for a while."""
    program = """
import os, signal, sys, time
from pathlib import Path
from vitrewrite import disk
with disk.replacing(Path("out")):
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read() == b"ready\n"
        parent.poll()
        write("out", a="new")
    assert names(here) == ["out"]


# -- file systems without locks -------------------------------------------------------------------


@pytest.fixture
def lockless(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return here


def test_without_locks_a_mark_says_who_writes(lockless: Path) -> None:
    write("out", a="old")
    write("out", a="new")
    assert names(lockless) == ["out"]
    with disk.replacing(Path("out")):
        assert code("out") == "VR735"
    home = lockless / ".out.vitrewrite"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    for mark, gone in (
        (f"{done.pid} {socket.gethostname()}", True),
        (f"{os.getpid()} {socket.gethostname()}", False),
        (f"{done.pid} another-host", False),
        ("", False),
    ):
        home.mkdir(exist_ok=True)
        (home / "writing").write_text(mark)
        (home / "growing").mkdir(exist_ok=True)
        if gone:
            write("out", a="newer")
            assert names(lockless) == ["out"]
        else:
            assert code("out") == "VR735"
            assert names(home) == ["growing", "writing"]


# -- what is not ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_only_looks_like_a_workplace_is_left_alone(kind: str, here: Path) -> None:
    home = here / ".out.vitrewrite"
    (here / "data").mkdir()
    if kind == "file":
        home.write_text("precious")
    elif kind == "folder":
        home.mkdir()
        (home / "growing").mkdir()
        (home / "thesis.tex").write_text("precious")
    else:
        home.symlink_to("data")
    before = names(here)
    assert code("out") == "VR736"
    with pytest.raises(FileError, match="VR736"):
        disk.write_text(Path("out"), "")
    assert names(here) == before


def test_a_lock_file_that_lists_what_it_should_not(here: Path) -> None:
    (here / "precious").write_text("mine")
    for files in (["../precious", "/etc", ".."], {"sub": 1}, 3, [None, [1]], "abc"):
        (here / "out").mkdir(exist_ok=True)
        (here / "out" / "sub").mkdir(exist_ok=True)
        lock = json.dumps({"made_by": "vitrewrite", "files": files})
        (here / "out" / "lock.json").write_text(lock)
        try:
            write("out", a="new")
            (here / "out" / "a").unlink()
        except FileError as error:
            assert error.code == "VR701"  # noqa: PT017 - which of the two depends on the value
        assert (here / "out" / "sub").is_dir()
    assert names(here) == ["out", "precious"]


def test_a_full_disk_leaves_what_was_there(here: Path) -> None:
    write("out", a="old")
    disk.write_text(Path("file"), "old")

    def fill(context: Any) -> None:
        with context as growing:
            (growing / "a" if growing.is_dir() else growing).write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    for context in (disk.replacing(Path("out")), disk.replacing_file(Path("file"))):
        with pytest.raises(FileError, match=r"VR702 .*No space left on device"):
            fill(context)
    assert names(here) == ["file", "out"]
    assert [(here / "out" / "a").read_text(), (here / "file").read_text()] == ["old", "old"]
