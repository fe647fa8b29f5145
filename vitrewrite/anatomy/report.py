"""The anatomy as text for `vitrewrite sites`, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from .decoder_report import rows
from .sites import Anatomy, Attention, Block, Linear, Mlp

_WIDTH = 100
_TITLES = ("", "stage", "dim", "module", "attention", "mlp", "norms", "other")


def to_text(anatomy: Anatomy) -> str:
    """A table of at most 100 columns; equal blocks in a row share a line."""
    lines = [f"{anatomy.model}: {_size(anatomy)}", ""]
    lines += [f"{name:<16}{value}" for name, value in _facts(anatomy)]
    if anatomy.blocks:
        lines += ["", *_table(anatomy)]
    lines += [""] * (anatomy.decoder is not None)
    for role, text in rows(anatomy.pixel_decoder, anatomy.decoder):
        first, *more = _wrapped(f"{role:<27}{text}")
        lines += [first, *(f"{'':<27}{line.strip()}" for line in more)]
    if anatomy.notes:
        lines += ["", "notes", *(f"  {line}" for n in anatomy.notes for line in _wrapped(n))]
    return "\n".join(lines) + "\n"


def to_json(anatomy: Anatomy) -> dict[str, Any]:
    """All sites as plain dictionaries and lists; linear sites have their `path` too."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    result: dict[str, Any] = plain(asdict(replace(anatomy, calls={})))
    del result["calls"]  # for verbs, not for readers
    result["sites"] = {role: s.path for role, s in anatomy.roles() if isinstance(s, Linear)}
    return result


def _size(anatomy: Anatomy) -> str:
    stages = len(anatomy.stages)
    in_stages = f" in {stages} stages" if stages > 1 else ""
    return f"{len(anatomy.blocks)} blocks{in_stages}, {len(anatomy.linears)} linear layers"


def _facts(anatomy: Anatomy) -> Iterator[tuple[str, str]]:
    stream = anatomy.stream
    yield "patch embedding", anatomy.patch_embed or "none found"
    grid = (
        "no grid found" if stream.grid is None else f"{stream.grid[0]} x {stream.grid[1]} patches"
    )
    tokens = "no tokens found" if stream.tokens is None else f"{stream.tokens} tokens"
    yield "stream", f"{stream.layout}, {tokens}, {grid}"
    yield "prefix tokens", ", ".join(stream.prefix) or "none"
    yield "final norm", anatomy.norm or "none found"
    if anatomy.pool is not None:
        yield "attention pool", f"{anatomy.pool.core.unit or 'root'}, {_attention(anatomy.pool)}"
    heads = [f"{h.path} {h.in_features} -> {h.out_features}" for h in anatomy.head]
    yield "head", ", ".join(heads) or "none"


def _table(anatomy: Anatomy) -> list[str]:
    rows: list[tuple[str, ...]] = [_TITLES]
    rows += [_row(list(run)) for _, run in groupby(anatomy.blocks, _described)]
    columns = [[row[i] for row in rows] for i in range(len(_TITLES))]
    if len(anatomy.stages) < 2:
        columns[_TITLES.index("stage")] = []
    columns = [c for c in columns if any(c[1:])]
    widths = [max(map(len, column)) for column in columns]
    excess = sum(widths) + 2 * len(widths) - 2 - _WIDTH
    if excess > 0:  # module paths are what grows
        module = next(i for i, column in enumerate(columns) if column[0] == "module")
        widths[module] = max(12, widths[module] - excess)
        columns[module] = [_shortened(cell, widths[module]) for cell in columns[module]]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :].lstrip('.')}"


def _described(block: Block) -> tuple[object, ...]:
    return block.stage, block.dim, *_parts(block)


def _row(run: Sequence[Block]) -> tuple[str, ...]:
    first, last = run[0], run[-1]
    role = first.role if first is last else f"blocks[{first.index}:{last.index + 1}]"
    return role, str(first.stage), str(first.dim), _units(first, last), *_parts(first)


def _units(first: Block, last: Block) -> str:
    """The module of a block, or of the first and the last of a run without what they share."""
    if first.unit is None or last.unit is None:
        return ""
    if first is last:
        return first.unit
    ours, theirs = first.unit.split("."), last.unit.split(".")
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), 0)  # noqa: B905
    return f"{first.unit} .. {'.'.join(theirs[same:])}"


def _parts(block: Block) -> tuple[str, str, str, str]:
    norms = " ".join(n for n, path in (("1", block.norm1), ("2", block.norm2)) if path)
    other = [s for s in block.linears if ".linear[" in s.role]
    attn = "" if block.attn is None else _attention(block.attn)
    mlp = "" if block.mlp is None else _mlp(block.mlp)
    return attn, mlp, norms, f"+{len(other)}" if other else ""


def _attention(attn: Attention) -> str:
    parts = [f"{attn.heads} head{'s' if attn.heads > 1 else ''}"]
    apart = [n for n in "qkv" if getattr(attn, n) is not None]
    if attn.qkv is not None:
        parts.append("qkv" if len(apart) == 3 else "qkv (not apart)")
    elif apart:
        parts.append(" ".join(apart))
    if attn.proj is not None:
        parts.append("proj")
    if attn.windows is not None:
        parts.append(f"{attn.windows[0]}x{attn.windows[1]}")
    if attn.over != "tokens":
        parts.append(f"over {attn.over}")
    if attn.form == "manual":
        parts.append("manual")
    return " ".join(parts)


def _mlp(mlp: Mlp) -> str:
    names = ("fc1", "gate", "act", "fc2")
    return " ".join(n for n in names if getattr(mlp, n) is not None)


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) + 3 > _WIDTH:
            lines.append(line)
            line = f"  {word}"
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
