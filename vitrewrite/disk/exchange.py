"""Two folders change places at once, where the system can."""

from __future__ import annotations

import os
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2), Linux 3.15


def exchanged(first: Path, second: Path) -> bool:
    """Whether the two have changed places; nothing has changed if not.

    Other systems, old C libraries and some file systems cannot.
    """
    try:
        import ctypes

        rename = ctypes.CDLL(None).renameat2
    except (ImportError, OSError, AttributeError, TypeError):
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return bool(rename(_HERE, names[0], _HERE, names[1], ctypes.c_uint(_EXCHANGE)) == 0)
