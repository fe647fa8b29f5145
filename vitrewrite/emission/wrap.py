"""Breaks long lines inside their outermost brackets."""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 100
_OPEN, _CLOSE = "([{", ")]}"


def wrap(line: str, width: int) -> list[str]:
    """The line as it is, or broken after an opening bracket with its contents indented."""
    if len(line) <= width:
        return [line]
    split = _bracket(line)
    if split is None:
        return [line]
    start, stop = split
    head, inner, tail = line[: start + 1], line[start + 1 : stop], line[stop:]
    if len(inner) + 4 <= width and len(tail) <= width:
        return [head, f"    {inner}", tail]
    items = _items(inner)
    if len(items) == 1:
        return [head, *(f"    {part}" for part in wrap(inner, width - 4)), tail]
    lines = [head]
    for item in items:
        parts = wrap(f"{item},", width - 4)
        lines += [f"    {part}" for part in parts]
    return [*lines, tail]


def _bracket(line: str) -> tuple[int, int] | None:
    """The longest pair of brackets that no other pair encloses."""
    pairs, stack = [], []
    for i, char in _unquoted(line):
        if char in _OPEN:
            stack.append(i)
        elif char in _CLOSE:
            start = stack.pop()
            if not stack:
                pairs.append((start, i))
    return max(pairs, key=lambda p: p[1] - p[0], default=None)


def _items(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    cuts, depth = [-1], 0
    for i, char in _unquoted(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if char == "," and depth == 0:
            cuts.append(i)
    parts = [text[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [part for part in parts if part]


def _unquoted(text: str) -> Iterator[tuple[int, str]]:
    """Characters outside string literals."""
    quote = ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[i - 1] != "\\" else quote
        elif char in "\"'":
            quote = char
        else:
            yield i, char
