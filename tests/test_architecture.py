"""What the pages for whoever changes the compiler name is there, and the picture is of today."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rooms
from tests.test_rooms import ROOMS

ROOT = Path(__file__).parents[1]
PAGES = ("docs/architecture.md", "CONTRIBUTING.md")
PAGE = (ROOT / PAGES[0]).read_text(encoding="utf-8")
NOTES = (ROOT / "vitrewrite" / "tracing" / "notes.py").read_text(encoding="utf-8")


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    yield from ([cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:])


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_picture_is_of_the_rooms() -> None:
    assert tuple(room for band in rooms.BANDS for room in band.rooms) == ROOMS
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw()  # python -m tests.rooms


def test_every_room_has_a_line() -> None:
    named = [name for cells in rows("The rooms") for name in quoted(cells[0])]
    assert sorted(named) == sorted(ROOMS)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:vitrewrite|passes|tests|specs|docs|examples)/[a-z_\d./]*)`", text)
    )
    linked = {path for path in re.findall(r"\]\(([\w./-]+)\)", text)}
    assert len(named) > 5
    assert [n for n in sorted(named) if not (ROOT / n).exists()] == []
    assert [n for n in sorted(linked) if not (ROOT / page).parent.joinpath(n).exists()] == []


def files_of(cell: str) -> list[Path]:
    """The files of a cell; a bare name is beside the file that was named before it."""
    found: list[Path] = []
    for name in quoted(cell):
        if name.endswith(".py"):
            found.append(ROOT / name if "/" in name else found[-1].with_name(name))
    return found


def test_what_the_way_of_a_spec_calls_is_there() -> None:
    """Each name is defined in one of the files that stand in its row."""
    missing = []
    for _, cell, _ in rows("The way of a spec"):
        text = "\n".join(path.read_text(encoding="utf-8") for path in files_of(cell))
        names = [n.split(".")[-1] for n in quoted(cell) if not n.endswith(".py")]
        missing += [n for n in names if not re.search(rf"\b(def|class) {n}\b|^{n}\b", text, re.M)]
    assert missing == []


def test_the_words_are_where_the_glossary_has_them() -> None:
    seen = []
    for word, where, said in rows("Glossary"):
        seen.append(word.strip("*"))
        for name, path in re.findall(r"`(\w+)` in `([\w/.]+)`", where + said):
            assert re.search(rf"\b(def|class) {name}\b|^{name}\b", (ROOT / path).read_text(), re.M)
    wanted = [
        "unit",
        "template",
        "frame",
        "witness",
        "place",
        "site",
        "role",
        "point",
        "stream",
        "roll",
        "entry",
    ]
    assert seen[: len(wanted)] == wanted


def test_the_notes_are_written_where_the_page_says() -> None:
    """All notes have a row, and a room that states one is in it."""
    table = {
        quoted(name)[0]: (quoted(put), quoted(read))
        for name, _, put, read in rows("What a node knows")
    }
    assert list(table) == re.findall(r"^([A-Z_]+): Note\[", NOTES, re.M)
    puts: dict[str, set[str]] = {name: set() for name in table}
    gets: dict[str, set[str]] = {name: set() for name in table}
    for path in sorted((ROOT / "vitrewrite").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "notes import" not in text or path.name == "notes.py":
            continue
        room = path.relative_to(ROOT / "vitrewrite").parts[0]
        for name in re.findall(r"\b([A-Z][A-Z_]+)(?:\.(?:put|keep)\(|: )", text):
            puts.get(name, set()).add(room)
        for name in re.findall(r"\b([A-Z][A-Z_]+)(?:\.(?:of|get|on|drop)\(|[,)])", text):
            gets.get(name, set()).add(room)
    assert {name: set(put) for name, (put, _) in table.items()} == puts
    assert {n: set(read) - gets[n] for n, (_, read) in table.items() if set(read) - gets[n]} == {}
