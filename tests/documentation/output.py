"""Whether what is printed is what a page shows, up to noise in figures."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")
_NOISE = 1e-6
"""Differences of float32 below this are rounding, of whatever size."""
_SHARE = 0.05
_SMALL = 0.05
"""Of figures below this, which are differences in half precision, the size counts."""


def differences(shown: str, printed: str) -> list[str]:
    """The lines that a page shows and that are not printed, in their order.

    What is printed between them does not matter: a page may leave lines out, and cut one with
    `...`. Spaces are not compared, rules and boxes neither.
    """
    rest = [line for line in map(_plain, printed.splitlines()) if line]
    wrong = []
    for line in filter(None, map(_plain, shown.splitlines())):
        place = next((n for n, other in enumerate(rest) if same(line, other)), None)
        if place is None:
            wrong.append(line)
        else:
            rest = rest[place + 1 :]
    return wrong


def same(shown: str, printed: str) -> bool:
    """Whether two lines are the same but for noise in their figures."""
    shown, cut, _ = shown.partition("...")
    words, others = _NUMBER.sub("#", shown), _NUMBER.sub("#", printed)
    if not (others.startswith(words.rstrip()) if cut else words == others):
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=False)
    return all(_near(a, b) for a, b in pairs)


def _near(shown: str, printed: str) -> bool:
    """Counts are the same; measured figures are near, or both of the size of rounding errors."""
    if shown == printed:
        return True
    if not {".", "e"} & {*shown, *printed}:
        return False
    a, b = (abs(float(text.replace(",", ""))) for text in (shown, printed))
    if 0 < min(a, b) <= max(a, b) < _SMALL and max(a, b) < 2 * min(a, b):
        return True
    return max(a, b) < 10 * _NOISE or abs(a - b) <= _SHARE * max(a, b)


def _plain(line: str) -> str:
    return " ".join(line.split())
