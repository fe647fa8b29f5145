"""Random valid specs as text, drawn from the grammar over a catalogue.

`specs(catalog)` draws text that parses and checks without errors. `sites` and `kinds` say which
places exist, for tests that go on with a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.catalogue import CATALOG
from vitrewrite.catalog import Catalog
from vitrewrite.catalog.signatures import OptionInfo, PassInfo
from vitrewrite.language.source import text_source
from vitrewrite.language.tokens import statements
from vitrewrite.language.values import show

SITES = ("blocks", "blocks[*].attn", "blocks[*].mlp", "head", "norm", "patch_embed")
KINDS = ("linear", "norm", "attention")
ATTRIBUTES = ("dim", "in_features", "depth")
RATES = ("1e-3", "0.5", "1%", "1 / 3")
METRICS = (
    "params", "params_lowered", "trainable", "macs", "macs_lowered", "flops", "max_error",
)  # fmt: skip

words = st.sampled_from(("alpha", "beta", "gamma", "delta"))
strings = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8).map(show)


@st.composite
def numbers(draw: DrawFn, low: float | None = None, high: float | None = None) -> str:
    """A number in a range, written in one of the ways there are."""
    whole = draw(st.integers(int(low or 0), int(high if high is not None else 10**6)))
    forms = [str(whole)]
    if whole % 1000 == 0 and whole:
        forms.append(f"{whole // 1000}K")
    if whole >= 1000:
        forms.append(f"{whole:_}")
    if low is None and high is None:
        forms += [f"{whole}.5", f"{whole % 100}%", f"{whole % 9}.{whole % 97}M", f"{whole % 9}e-3"]
    return draw(st.sampled_from(forms))


@st.composite
def integers(draw: DrawFn, low: int, high: int, names: Sequence[str] = ()) -> str:
    """An expression that is an int from a range; names must stand for ints from 1 to 8."""
    value = draw(st.integers(low, high))
    part = draw(st.integers(-50, 50))
    forms = [str(value), f"({value})", f"{value - part} + {part}", f"{value * 2} / 2"]
    forms += [f"{value * 3} // 3", f"-(-{value})" if value >= 0 else f"-{-value}"]
    forms += [f"{value} + {name} - {name}" for name in names]
    text = draw(st.sampled_from(forms))
    return text.replace("+ -", "- ").replace("- -", "+ ")


def option_values(info: OptionInfo) -> SearchStrategy[str]:
    """Texts that an option takes."""
    if info.choices:
        one: SearchStrategy[str] = st.sampled_from([show(choice) for choice in info.choices])
    elif info.type == "bool":
        one = st.sampled_from(("true", "false"))
    elif info.type == "str":
        one = strings
    else:
        one = _number_option(info)
    found = st.lists(one, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    found = found if info.many else one
    return st.just("none") | found if info.nullable else found


def _number_option(info: OptionInfo) -> SearchStrategy[str]:
    low = info.minimum if info.minimum is not None else 0
    high = info.maximum if info.maximum is not None else low + 64
    whole = st.integers(-int(-low // 1), int(high)).map(str)
    if info.type == "int" or high - low < 1:
        return whole if int(high) >= low else st.just(show(Fraction(str(low))))
    first, last = Fraction(str(low)), Fraction(str(high))
    part = st.integers(0, 8).map(lambda eighths: first + (last - first) * eighths / 8)
    return whole | part.map(lambda value: f"{value.numerator} / {value.denominator}")


@st.composite
def pass_uses(draw: DrawFn, info: PassInfo) -> str:
    """A use of a pass with some of its options."""
    given = draw(st.sets(st.sampled_from(sorted(info.options)))) if info.options else set()
    chosen = [name for name, each in info.options.items() if each.required or name in given]
    options = [f"{name}={draw(option_values(info.options[name]))}" for name in chosen]
    if len(options) == 0 and draw(st.booleans()):
        return info.name
    comma = "," if len(options) > 0 and draw(st.booleans()) else ""
    shuffled = draw(st.permutations(options))
    return f"{info.name}({', '.join(shuffled)}{comma})"


@st.composite
def indices(draw: DrawFn, names: Sequence[str] = ()) -> str:
    """An index in brackets that selects something in a model of 12 blocks."""
    start, length = draw(st.integers(0, 10)), draw(st.integers(1, 4))
    first = draw(integers(start, start, names))
    items = ["*", first, f"{start}:", f":{start + 1}", f"{start}:{start + length}", "-2:", "-1"]
    items += [f"{start}:{start + length}:2", f"{start}, {start + 1}", f"{start}, {start + 1}:"]
    return f"[{draw(st.sampled_from(items))}]"


@st.composite
def conditions(draw: DrawFn, depth: int = 2) -> str:
    """A condition over attributes."""
    sign = draw(st.sampled_from(("<=", "<", ">=", ">", "==", "!=")))
    test = f"{draw(st.sampled_from(ATTRIBUTES))} {sign} {draw(numbers())}"
    if depth == 0 or draw(st.booleans()):
        return test
    other = draw(conditions(depth=depth - 1))
    forms = (f"not {test}", f"not ({other})", f"({other})", f"{test} and {other}")
    return draw(st.sampled_from((*forms, f"{test} or {other}", f"(({test}) or {other})")))


@st.composite
def selectors(
    draw: DrawFn, names: Sequence[str] = (), sites: Sequence[str] = SITES, depth: int = 2
) -> str:
    """A selector."""
    if depth == 0 or draw(st.booleans()):
        return draw(_primaries(names, sites))
    part = selectors(names=names, sites=sites, depth=depth - 1)
    one, two, three = draw(part), draw(part), draw(part)
    forms = [f"({one}) + ({two})", f"({one}) - ({two})", f"({one}) & ({two})", f"optional ({one})"]
    forms += [f"({one}) where {draw(conditions())}", f"optional ({one}) where {draw(conditions())}"]
    forms += [f"({one}) + ({two}) - ({three})", f"({one}) - ({two}) & ({three}) + ({one})"]
    return draw(st.sampled_from(forms))


@st.composite
def _primaries(draw: DrawFn, names: Sequence[str], sites: Sequence[str]) -> str:
    site = draw(st.sampled_from(sites))
    kind = draw(st.sampled_from(KINDS))
    forms = [site, f"every {kind}", f"every {kind} in {site}", f"every {kind} in ({site})"]
    forms += [f"blocks{draw(indices(names))}.attn.{{q, v}}", f"blocks{draw(indices(names))}.mlp"]
    forms += ['module("blocks.*.attn.qkv")', "sensitive(budget=0.4M, samples=800)", "{head, norm}"]
    return draw(st.sampled_from(forms))


@st.composite
def claims(draw: DrawFn, names: Sequence[str] = ()) -> str:
    """A claim."""
    sign = draw(st.sampled_from(("<=", "<", ">=", ">", "==")))
    compare = draw(st.sampled_from((f"{sign} {draw(numbers())}", "within 1% of 13.4G")))
    metric = draw(st.sampled_from(METRICS))
    site = draw(selectors(names, depth=1))
    forms = [f"{metric} {compare}", f"tokens at ({site}) {compare}", "identity at init"]
    forms += ["lowers exactly", f"trainable {compare} excluding {site}"]
    return draw(st.sampled_from(forms))


@st.composite
def clauses(draw: DrawFn, catalog: Catalog, names: Sequence[str], sites: Sequence[str]) -> str:
    """A clause with a pass of the catalogue, or with none."""
    where = draw(selectors(names, sites))
    infos = [catalog.signature(name) for name in catalog.passes()]
    if not infos or draw(st.integers(0, 3)) == 0:
        return f"{draw(st.sampled_from(('drop', 'train', 'freeze')))} {where}"
    info = draw(st.sampled_from(infos))
    # What stitches is the first clause, beside no model: see `test_parse` and `test_bases`.
    known = [verb for verb in info.verbs if verb != "stitch"]
    form = draw(st.sampled_from(known or ("insert at", "replace", "prepend")))
    use = draw(pass_uses(info))
    return _clause(form, use, where)


def _clause(form: str, use: str, where: str) -> str:
    verb, _, place = form.partition(" ")
    if verb == "replace":
        return f"replace {where} with {use}"
    return f"{verb} {use} {(place or 'at') if verb == 'insert' else 'to'} {where}"


@st.composite
def _only_if(draw: DrawFn, names: Sequence[str]) -> str:
    """Perhaps a condition over ints from 1 to 8."""
    if not names or draw(st.integers(0, 2)):
        return ""
    name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    forms = (f"{name} >= {draw(st.integers(0, 9))}", f"not {name} == {other}", f"{name} < 9")
    one, two = draw(st.sampled_from(forms)), draw(st.sampled_from(forms))
    return draw(st.sampled_from((f" if {one}", f" if {one} or ({two} and {one})")))


@st.composite
def specs(
    draw: DrawFn,
    catalog: Catalog = CATALOG,
    model: str | None = "vit_base_patch16_224",
    sites: Sequence[str] = SITES,
) -> str:
    """The text of a spec without errors."""
    lines = [f"model {model}"] if model else []
    names = draw(st.lists(words, max_size=3, unique=True))
    for name in names:
        value = draw(st.integers(1, 8))
        forms = (f"param {name}: int = {value} in 1..8", f"let {name} = {value}")
        lines.append(draw(st.sampled_from((*forms, f"param {name}: int = {value}"))))
    statements = draw(st.lists(clauses(catalog, names, sites), max_size=5))
    statements += [f"require {claim}" for claim in draw(st.lists(claims(names), max_size=3))]
    lines += [f"{each}{draw(_only_if(names))}" for each in statements]
    if draw(st.booleans()):
        factor = f", lr({draw(selectors(names))}) = 0.1" if catalog is CATALOG else ""
        rate = draw(st.sampled_from(RATES))
        lines.append(f"tune {{ lr = {rate}{factor}, epochs = 3 optimiser = sgd }}")
    return "\n".join(lines) + "\n"


@st.composite
def messy(draw: DrawFn, texts: SearchStrategy[str]) -> str:
    """The same specs with other blanks, line ends and comments between their tokens."""
    text = draw(texts)
    random: Any = draw(st.randoms(use_true_random=False))
    source, number = text_source(text), 0
    parts: list[str] = []
    for statement in statements(source):
        depth, end = 0, statement.lexemes[0].start if statement.lexemes else 0
        for token in statement.lexemes:
            blanks = ["", " ", "  ", "\t"] if token.start == end else [" ", "  ", " \t "]
            if depth:
                number += 1
                blanks += ["\n", f" # note {number}\n", "\n\n", f"\n#note {number}\n  "]
            parts += [random.choice(blanks) if parts else "", token.text]
            depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "sign" else 0
            end = token.end
        number += 1
        parts.append(
            random.choice(["\n", f"  # note {number}\n", "\n\n\n", f"\n#  note {number} \n"])
        )
    return "".join(parts)
