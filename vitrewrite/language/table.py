"""The LALR table of the grammar: made by Lark, stored as text, used without Lark.

Importing Lark and building the table take longer than `vitrewrite check` may, so `table.json`
holds what Lark makes of `grammar.lark`. It is used while it fits the grammar; otherwise the table
is built anew. After a change of the grammar call `write_table(build_table())`.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

_GRAMMAR = Path(__file__).with_name("grammar.lark")
_STORED = Path(__file__).with_name("table.json")
_STARTS = ("statement", "sum", "model_ref")


class Rule(NamedTuple):
    """A rule of the grammar, as the parser reduces it.

    Attributes:
        origin: what it makes.
        call: the method of `Build` to call; "" for a repetition: its children join their parent's.
        size: how many symbols it takes.
        children: which of them are children: a position, -1 for an absent optional one (None), or
            a position plus `JOINED` for a repetition.
        single: whether one child alone stands for itself.
    """

    origin: str
    call: str
    size: int
    children: list[int]
    single: bool


JOINED = 1000


class Table(NamedTuple):
    """What the parser runs on.

    Attributes:
        grammar: a checksum of the grammar.
        words: the terminals of words and signs that the grammar quotes.
        starts: per start rule the first state, and the one that ends it.
        rules: see `Rule`.
        actions: per state, by symbol: the next state, or `-1 - n` to reduce rule n.
    """

    grammar: int
    words: dict[str, str]
    starts: dict[str, list[int]]
    rules: list[Rule]
    actions: list[dict[str, int]]


def load_table() -> Table:
    """The stored table if it fits the grammar, else a new one."""
    checksum = zlib.crc32(_GRAMMAR.read_bytes())
    try:
        stored = json.loads(_STORED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return build_table()
    if stored["grammar"] != checksum:
        return build_table()
    stored["rules"] = [Rule(*rule) for rule in stored["rules"]]
    return Table(**stored)


def build_table() -> Table:
    """The table that Lark makes of the grammar."""
    from lark import Lark
    from lark.lexer import Lexer

    class _NoLexer(Lexer):
        def __init__(self, _: Any) -> None:
            pass

        def lex(self, *_: Any) -> Any:
            raise NotImplementedError

    text = _GRAMMAR.read_text(encoding="utf-8")
    lark = Lark(text, parser="lalr", lexer=_NoLexer, start=list(_STARTS))
    made: Any = lark.parser.parser
    found = made._parse_table
    rules = {rule: number for number, rule in enumerate(lark.rules)}
    states = _numbered(found)
    actions = [_actions(found.states[state], states, rules) for state in states]
    starts = {
        name: [states[found.start_states[name]], states[found.end_states[name]]] for name in _STARTS
    }
    words = {terminal.pattern.value: terminal.name for terminal in lark.terminals}
    checksum = zlib.crc32(_GRAMMAR.read_bytes())
    return Table(checksum, words, starts, [_rule(rule) for rule in rules], actions)


def _numbered(found: Any) -> dict[Any, int]:
    """The states in the order in which they are met, because Lark's own order is random."""
    states = {found.start_states[name]: number for number, name in enumerate(_STARTS)}
    waiting = list(states)
    for state in waiting:
        for _, (action, target) in sorted(found.states[state].items()):
            if str(action) == "Shift" and target not in states:
                states[target] = len(states)
                waiting.append(target)
    return states


def _actions(
    found: dict[str, tuple[Any, Any]], states: dict[Any, int], rules: dict[Any, int]
) -> dict[str, int]:
    return {
        symbol: states[target] if str(action) == "Shift" else -1 - rules[target]
        for symbol, (action, target) in sorted(found.items())
    }


def _rule(rule: Any) -> Rule:
    """The rule with Lark's shaping of trees: quoted words go, absent optional parts are None."""
    options, origin = rule.options, str(rule.origin.name)
    gaps = [0] * (len(rule.expansion) + 1)
    if options.empty_indices:
        bits = "".join(str(int(absent)) for absent in options.empty_indices)
        gaps = [len(ones) for ones in bits.split("0")]
    children = [-1] * gaps[0]
    for position, symbol in enumerate(rule.expansion):
        if not symbol.is_term and symbol.name.startswith("_"):
            children.append(position + JOINED)
        elif not symbol.is_term or options.keep_all_tokens or not symbol.filter_out:
            children.append(position)
        children += [-1] * gaps[position + 1]
    call = "" if origin.startswith("_") else str(rule.alias or origin)
    single = bool(options.expand1 and not rule.alias)
    return Rule(origin, call, len(rule.expansion), children, single)


def write_table(table: Table) -> None:
    """Stores a table, a line for each rule and state so that changes can be read."""
    parts = []
    for name, value in table._asdict().items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(item) for item in value)
            parts.append(f'"{name}": [\n{lines}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    _STORED.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
