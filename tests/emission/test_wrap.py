"""No printed line is longer than 100 characters, and what is broken means what it did."""

from __future__ import annotations

import ast
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention
from torch import nn

import vitrewrite as vr
from vitrewrite.emission.wrap import WIDTH, wrap
from vitrewrite.folder.writing import model_text

EMITTED = Path(__file__).parents[2] / "examples" / "emitted"
WORDS = " ".join(f"word{i}" for i in range(40))
LINES = [
    f'raise ValueError("{WORDS}")',
    f'raise ValueError(f"{{count}} cells on {{height}}x{{width}} pixels: {WORDS}")',
    f'raise ValueError(f"{WORDS} {{self.text(a, b)!r:>{{width}}}} {WORDS}")',
    f'raise ValueError(f"{WORDS} {{{{x}}}} \\n {WORDS}")',
    f"message = '\"a\" {WORDS}'",
    f'return "{WORDS}"',
    f'check(x, "{WORDS}", f"{{y}} {WORDS}", [1, 2])',
    "x = self.first(x, y).second(" + ", ".join(f"{{'a': {i}}}" for i in range(20)) + ")",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("width", [WIDTH, 70])
def test_long_texts_are_broken_at_spaces(line: str, width: int) -> None:
    made = wrap(line, width)
    assert max(map(len, made)) <= width
    inside = [f"def f():\n    {text}" for text in (line, "\n    ".join(made))]
    assert len({ast.dump(ast.parse(text)) for text in inside}) == 1


@given(st.text(alphabet="ab {}\\'n", max_size=150))
def test_a_broken_text_is_the_same(text: str) -> None:
    for literal in (repr(text), repr(f'"{text}')):
        made = "\n".join(wrap(f"f({literal})", 40))
        assert ast.dump(ast.parse(made)) == ast.dump(ast.parse(f"f({literal})"))


@pytest.mark.parametrize("folder", sorted(p.name for p in EMITTED.iterdir()))
def test_no_line_of_the_examples_is_too_long(folder: str) -> None:
    for name in ("model.py", "test_model.py"):
        lines = (EMITTED / folder / name).read_text().splitlines()
        assert [line for line in lines if len(line) > WIDTH] == []


def test_the_example_of_a_segmenter_is_short() -> None:
    """Without docstrings, at most ten arguments each."""
    text = (EMITTED / "faseg-mask2former_r50" / "model.py").read_text()
    tree = ast.parse(text)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    said = [n.body[0] for n in ast.walk(tree) if isinstance(n, kinds) and ast.get_docstring(n)]
    lines = sum((n.end_lineno or 0) - n.lineno + 1 for n in said)
    assert len(text.splitlines()) - lines <= 868
    heads = [n.args for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert max(len(args.args) - 1 for args in heads) <= 9


def test_where_modules_are_is_broken_too() -> None:
    """Attentions deep inside of modules with long names, as backbones in transformers are."""
    outer, inner = "pixel_level_module_of_a_whole", "encoder_of_a_backbone_that_is_shared"
    layers = nn.Sequential(*(Attention(16, num_heads=1 + i) for i in range(2)))
    model = nn.Sequential(OrderedDict({outer: nn.Sequential(OrderedDict({inner: layers}))}))
    text = model_text(vr.apply("# no clauses\n", model, example=torch.zeros(1, 4, 16)))
    assert max(map(len, text.splitlines())) <= WIDTH
    said = next(
        node.body[0].value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    )
    assert " ".join(str(said).split()) == f"Attention of {outer}.{inner}, 1 to 2 heads."
