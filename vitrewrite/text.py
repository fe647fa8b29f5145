"""Words of messages: values in quotes, lists of names, near names."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from .errors import UNPRINTABLE

_T = TypeVar("_T")


def shown(text: object, limit: int = 60) -> str:
    """A value from the user in quotes, on one line and cut if long, to put in a message."""
    plain = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"\s", " ", str(text)))
    return f"'{plain}'" if len(plain) <= limit else f"'{plain[: limit - 3]}...'"


def did_you_mean(name: str, valid: Iterable[str]) -> str | None:
    """A suggestion such as "did you mean 'lora'?", or None if nothing is near.

    Case does not count, but among names that are alike without it, the one that has more of it.
    """
    import difflib  # only a failing run pays for it

    alike: dict[str, list[str]] = {}
    for each in valid:
        alike.setdefault(each.lower(), []).append(each)
    near = difflib.get_close_matches(name.lower(), list(alike), n=1, cutoff=0.55)
    if not near:
        return None
    written = difflib.get_close_matches(name, alike[near[0]], n=1, cutoff=0)
    return f"did you mean '{written[0]}'?"


def listing(valid: Iterable[str], limit: int = 12) -> str:
    """Names joined by commas, cut after `limit` of them."""
    names = list(valid)
    rest = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def a_or_an(noun: str) -> str:
    """The noun with its article."""
    vowel = noun[:1].lower() in set("aeiou") or noun.startswith("mlp")
    return f"{'an' if vowel else 'a'} {noun}"


def first_line(error: BaseException) -> str:
    """What an error of somebody else says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def giga(macs: int) -> str:
    """`17.564 G`."""
    if macs < 10_000_000:
        return f"{macs / 1e6:.3f} M"
    return f"{macs / 1e9:.3f} G"


def megabytes(size: int) -> str:
    """`14.5 MB`: millions of bytes, thousands of millions from one of those on."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def plural(count: int, noun: str) -> str:
    """`1 site`, `24 sites`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns, two spaces apart."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def draws() -> bool:
    """Whether stderr is a terminal that what is drawn again and again may be drawn on.

    A command of a notebook's cell runs in a terminal that shows each drawing below the last.
    """
    return sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ


class EveryMinute:
    """Lines on stderr for who reads a log: one a minute, however many there are to tell."""

    seconds = 60.0
    now = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._last = self.now()

    def tell(self, line: str) -> None:
        """Prints a line if the last one was a minute ago."""
        now = self.now()
        if now - self._last >= self.seconds:
            self._last = now
            print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def minutes(what: str) -> Iterator[None]:
    """Says once a minute on stderr that something goes on, for as long as it does."""
    done = threading.Event()

    def tell() -> None:
        passed = 0
        while not done.wait(EveryMinute.seconds):
            passed += 1
            print(f"{what}: {plural(passed, 'minute')}", file=sys.stderr, flush=True)  # noqa: T201

    told = threading.Thread(target=tell, daemon=True)
    told.start()
    try:
        yield
    finally:
        done.set()
        told.join()


def brief(text: str, most: int = 1_900) -> str:
    """A text as `repr` should have it: the first lines of it, and how many more there are."""
    if len(text) <= most:
        return text
    lines = text.split("\n")
    kept: list[str] = []
    for line in lines:
        if sum(map(len, kept)) + len(kept) + len(line) > most - 30:
            break
        kept.append(line)
    if not kept:
        return f"{text[: most - 30]}..."
    return "\n".join([*kept, f"... ({plural(len(lines) - len(kept), 'more line')})"])


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def few_words(value: Any) -> str:
    """What a field holds, in a few words: numbers and short texts as they are, else what it is."""
    if _is_plain(value):
        return brief(repr(value), 60)
    kind = next(c for c in type(value).__mro__ if c not in (Several, DataList, Report)).__name__
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"<{kind} {list(value.shape)}>"
    if isinstance(value, (tuple, list, set, frozenset)):
        plain = len(value) <= 4 and all(map(_is_plain, value))
        return brief(repr(value), 60) if plain else f"<{kind} of {len(value)}>"
    if isinstance(value, Mapping):
        return f"<{kind} of {len(value)}>"
    if dataclasses.is_dataclass(value) and all(map(_is_plain, vars(value).values())):
        return brief(repr(value), 80)
    named = getattr(value, "role", "")
    return f"<{kind} {named}>" if isinstance(named, str) and named else f"<{kind}>"


class Several(tuple[_T, ...]):
    """A tuple of which a prompt shows the first items, a line each."""

    def __repr__(self) -> str:
        return _listed(tuple.__repr__(self), self)


class DataList(list[Any]):
    """A list of which a prompt shows the first items, a line each."""

    def __repr__(self) -> str:
        return _listed(list.__repr__(self), self)


def _listed(whole: str, items: Sequence[object]) -> str:
    rows = (f"  {each!r}" for each in items)
    return whole if len(whole) < 200 else brief("\n".join([f"{len(items)} items", *rows]))


class Report(dict[str, Any]):
    """Data of a JSON file, which a prompt shows by what each key holds; pickled, it is plain."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({name: _reported(value) for name, value in content.items()})

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        rows = (f"  {name:<{width}}  {few_words(value)}" for name, value in self.items())
        return brief("\n".join([plural(len(self), "key"), *rows]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Of the types that torch loads as data, dict itself cannot be named.
        return OrderedDict, (), None, None, iter([(k, _plain(v)) for k, v in self.items()])


def _reported(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Report(value) if all(isinstance(key, str) for key in value) else value
    if isinstance(value, tuple):
        return Several(map(_reported, value))
    return DataList(map(_reported, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (DataList, Several)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    return value


class Told:
    """A dataclass that a prompt shows in a line or two, whatever its fields hold."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Told.__repr__  # type: ignore[method-assign]  # a dataclass keeps its own

    def __repr__(self) -> str:
        own = [field for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
        told = (f"{each.name}={few_words(getattr(self, each.name))}" for each in own)
        return brief(f"{type(self).__name__}({', '.join(told)})")


class Pictured:
    """What a notebook shows as a picture with its text below.

    `draw` yields SVG, or nothing; whoever knows how sets it, which is none of what is drawn.
    """

    draw: ClassVar[Callable[[Any], str]] = staticmethod(lambda shown: "")

    def _repr_html_(self) -> str:
        picture = re.sub(r"^<\?xml[^>]*\?>\s*", "", Pictured.draw(self))
        drawn = f'<div style="overflow-x: auto">{picture}</div>\n' if picture else ""
        return f"{drawn}<pre>{html.escape(repr(self))}</pre>"
