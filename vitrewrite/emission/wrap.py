"""Breaks long lines inside their outermost brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator

WIDTH = 100
_OPEN, _CLOSE = "([{", ")]}"


def wrap(line: str, width: int) -> list[str]:
    """The line as it is, or broken after an opening bracket with its contents indented."""
    if len(line) <= width:
        return [line]
    pairs = _brackets(line)
    if not pairs:
        return _text(line, width)
    if (sum_ := _sum(line)) and all(_is_subscript(line, start) for start, _ in pairs):
        head, terms = sum_
        return [f"{head}(", *(f"    {term}" for term in terms), ")"]
    for start, stop in _last_first(line, pairs, width):
        head, tail = line[: start + 1], line[stop:]
        if max(len(head), len(tail)) <= width:
            return [head, *_inside(line[start + 1 : stop], width - 4), tail]
    first, loop, rest = _at_loop(line)
    if loop:
        return [*wrap(first, width), *wrap(loop + rest, width)]
    start, stop = pairs[0]
    return [line[: start + 1], *_inside(line[start + 1 : stop], width - 4), line[stop:]]


def _text(line: str, width: int) -> list[str]:
    """A line that is or sets a string literal, broken behind spaces of the text."""
    found = _LITERAL.fullmatch(line)
    if found is None:
        return [line]
    head, prefix, quote, body, end = found.groups()
    width -= 4 if head else 0
    room = width - len(prefix) - 2 - len(end)
    pieces = [""]
    for word in _words(body, formatted="f" in prefix):
        if pieces[-1] and len(pieces[-1]) + len(word) > room:
            pieces.append("")
        pieces[-1] += word
    kinds = [prefix if re.search("[{}\\\\]", piece) else "" for piece in pieces]
    lines = [f"{kind}{quote}{piece}{quote}" for kind, piece in zip(kinds, pieces, strict=True)]
    lines[-1] += end
    return [f"{head}(", *(f"    {each}" for each in lines), ")"] if head else lines


_LITERAL = re.compile(r'(return |[\w.]+ = |)([rf]{0,2})(["\'])((?:(?!\3)[^\\]|\\.)*)\3(,?)')


def _words(text: str, *, formatted: bool) -> Iterator[str]:
    """The words of a text, each with the space behind it; what is in braces is one."""
    start, depth = 0, 0
    for i, char in enumerate(text):
        depth += (char == "{") - (char == "}") if formatted else 0
        if char == " " and depth == 0:
            yield text[start : i + 1]
            start = i + 1
    yield text[start:]


def _is_subscript(line: str, start: int) -> bool:
    return line[start] == "[" and re.search(r"[\w)\]]$", line[:start]) is not None


def _sum(line: str) -> tuple[str, list[str]] | None:
    """`x = ` and the terms of a sum behind it."""
    name, assigned, _ = line.partition(" = ")
    head = f"{name} = " if assigned and name.isidentifier() else ""
    head = "return " if line.startswith("return ") else head
    terms = _at_operators(line[len(head) :]) if head else []
    return (head, terms) if len(terms) > 1 else None


def _inside(inner: str, width: int) -> list[str]:
    if len(inner) <= width:
        return [f"    {inner}"]
    items = _items(inner)
    if len(items) == 1 and len(parts := _at_loops(inner)) > 1:
        return [f"    {line}" for part in parts for line in wrap(part, width)]
    if len(items) == 1:
        parts = wrap(inner, width)
        parts = parts if max(map(len, parts)) <= width else _at_operators(inner)
        return [f"    {part}" for part in parts]
    return [f"    {part}" for item in items for part in wrap(f"{item},", width)]


def _at_operators(text: str) -> list[str]:
    """The terms of a sum or a comparison, each line but the first with its operator in front."""
    cuts, depth = [0], 0
    for i, char in _unquoted(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth == 0 and text.startswith((" + ", " - ", " == ", " != ", " < ", " > "), i):
            cuts.append(i + 1)
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _at_loop(line: str) -> tuple[str, str, str]:
    """The parts of a generator expression: what is made, and the loop that makes it."""
    depth = 0
    for i, char in _unquoted(line):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth == 0 and line.startswith(" for ", i):
            return line[:i], "for ", line[i + 5 :]
    return line, "", ""


def _at_loops(text: str) -> list[str]:
    """What is made, and each of the loops that make it."""
    first, loop, rest = _at_loop(text)
    if not loop:
        return [text]
    following = _at_loops(rest)
    return [first, loop + following[0], *following[1:]]


def _brackets(line: str) -> list[tuple[int, int]]:
    """Pairs of brackets that no other pair encloses, the longest first."""
    pairs, stack = [], []
    for i, char in _unquoted(line):
        if char in _OPEN:
            stack.append(i)
        elif char in _CLOSE:
            start = stack.pop()
            if not stack:
                pairs.append((start, i))
    return sorted(pairs, key=lambda p: p[0] - p[1])


def _last_first(line: str, pairs: list[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """The pairs, first the last one where the line ends with a call of what stands before it."""
    start, stop = max(pairs)
    ends = line[stop + 1 :] in ("", ",", ":") and line[start] == "(" and stop > start + 1
    called = ends and re.search(r"\.\w+$", line[:start]) is not None and start < width
    return [(start, stop), *pairs] if called else pairs


def _items(text: str) -> list[str]:
    """The parts between commas that no bracket encloses; a generator expression is one."""
    if _at_loop(text)[1]:
        return [text]
    cuts, depth = [-1], 0
    for i, char in _unquoted(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if char == "," and depth == 0:
            cuts.append(i)
    parts = [text[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [part for part in parts if part]


def _unquoted(text: str) -> Iterator[tuple[int, str]]:
    """Characters outside string literals."""
    quote, escaped = "", False
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        else:
            yield i, char
