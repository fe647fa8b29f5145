"""The text of a spec: reading it safely, and naming places in it."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from vitrewrite.errors import UNPRINTABLE, Span, SpecError
from vitrewrite.text import shown

TEXT = "<text>"  # the file of a spec that is none
SIZE_LIMIT = 1_000_000  # bytes; the longest spec of the papers is a hundred times shorter


class SpecSource:
    """A text with a name, which turns offsets into spans."""

    def __init__(
        self, file: str, text: str, path: Path | None = None, folder: Path = Path()
    ) -> None:
        self.file = file
        self.folder = folder if path is None else path.parent  # what files in it are relative to
        self.path = path  # None for a text that came from no file
        self.text = _normal(text)
        self._lines = self.text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def span(self, start: int, end: int) -> Span:
        """The place from offset `start` to offset `end` (exclusive)."""
        line = bisect_right(self._starts, start, hi=len(self._lines)) - 1
        last = bisect_right(self._starts, end, hi=len(self._lines)) - 1
        column, stop = start - self._starts[line], end - self._starts[last]
        return Span(self.file, line + 1, column + 1, last + 1, stop + 1, self._lines[line])

    def refuse_odd_characters(self) -> None:
        """Raises VR104 at the first character that no text file should hold."""
        if found := UNPRINTABLE.search(self.text):
            message = f"character U+{ord(found[0]):04X} is not allowed in a spec"
            note = "a spec is plain text; outside comments and strings it is ASCII"
            raise SpecError("VR104", message, span=self.span(*found.span()), notes=[note])


def _normal(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_source(path: Path, name: str | None = None) -> SpecSource:
    """Reads a spec file, never more than `SIZE_LIMIT` bytes of it.

    Raises:
        SpecError: VR101 if it cannot be read, VR102 if it is too large, VR103 if it is not UTF-8.
    """
    file = name or str(path)
    try:
        data = _read_bytes(path, file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"cannot read {shown(file)}: {str(reason or error).lower()}"
        raise SpecError("VR101", message) from None
    return SpecSource(file, _decode(data, file), path)


def _read_bytes(path: Path, file: str) -> bytes:
    if path.exists() and not path.is_file():
        # A device or a pipe could block for ever or never end.
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise SpecError("VR101", f"cannot read {shown(file)}: it is {kind}")
    with path.open("rb") as stream:
        data = stream.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise _too_large(file)
    return data


def _too_large(file: str) -> SpecError:
    suggestion = "a spec is a short text; is this the right file?"
    return SpecError("VR102", f"{shown(file)} is larger than 1 MB", suggestion=suggestion)


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"{shown(file)} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}"
        span = Span(file, line, column, line, column + 1)
        suggestion = "save it as UTF-8, if it is a spec at all"
        raise SpecError("VR103", message, span=span, suggestion=suggestion) from None


def text_source(text: str, file: str = TEXT, folder: Path = Path()) -> SpecSource:
    """A source from a text in memory, under the same limits as a file.

    Args:
        text: of a spec.
        file: what to call it.
        folder: what files that it names are relative to.

    Raises:
        SpecError: VR102 if it is too large.
    """
    if len(text) > SIZE_LIMIT:
        raise _too_large(file)
    return SpecSource(file, text, folder=folder)
