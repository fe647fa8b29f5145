"""No text of a user becomes code: it is in the printed file as a literal, a comment, or not."""

from __future__ import annotations

import ast
import functools
import html
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import fx, nn

import vitrewrite as vr
from vitrewrite.emission.file import model_file, render
from vitrewrite.emission.literals import comment, constant, docstring, one_line, xml
from vitrewrite.emission.names import identifier, is_name
from vitrewrite.emission.source import print_classes
from vitrewrite.tracing.about import About, write
from vitrewrite.tracing.template import Template
from vitrewrite.tracing.unit import Unit

from .emitted import loaded

EXAMPLES = settings().max_examples
MANY = settings(max_examples=20 * EXAMPLES)
ODD = [
    '"""', "'''", '"', "'", "\\", "\n", "\r", "\x0c", "\x0b", "\x00", "\x1b", "\x85", "\u2028",
    "\u202e", "\u2066", "\ufeff", "#", "{", "}", "(", ")", "-->", "]]>", "&", "<", "\\N{DIGIT ONE}",
    "import os", "class", "None", "__x", "0", ";", ":", ".", " ", "\t", "\ufb01", "\u00e9", "`" * 4,
    "coding: utf-7", "open('x')", "%s", "self", "torch",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from([*ODD, "\ud800"]) | st.text(max_size=3), max_size=6).map("".join)
# What a child can be called at all: `setattr` and `add_module` take anything.
NAMES = st.lists(st.sampled_from(ODD) | st.text(max_size=3), min_size=1, max_size=4).map(
    lambda parts: "".join(parts).replace(".", "-").encode("utf-8", "ignore").decode() or "x"
)
ATTACK = 'a"""; open("\\57tmp\\57x","w"); """b'


@MANY
@given(TEXTS)
@example(ATTACK)
@example('"')
@example('\\"')
@example("\\")
def test_literals_have_the_value_of_the_text(text: str) -> None:
    assert ast.literal_eval(docstring(text)) == text
    assert ast.literal_eval(constant(text)) == text
    assert ast.literal_eval(constant({text: (text, [text])})) == {text: (text, [text])}
    assert "\n" not in constant(text)
    docstring(text).encode()
    assert ast.dump(ast.parse("\n".join(["x", *comment(text), "y"]))) == ast.dump(ast.parse("x\ny"))
    ElementTree.fromstring(f"<a>{html.escape(xml(text))}</a>")
    name = identifier(text, "other")
    assert is_name(name)
    assert name == text or not is_name(text)


def tree(names: list[str], origin: str) -> nn.Module:
    """A module whose class, child, parameter and buffer have names, with a comment at a call."""
    kind, child, parameter, buffer = names
    graph = fx.Graph()
    x = graph.placeholder("x")
    scaled = graph.call_function(torch.mul, (x, graph.get_attr(parameter)))
    moved = graph.call_function(torch.add, (scaled, graph.get_attr(buffer)))
    called = graph.call_module(child, (moved,))
    called.meta["origin"] = origin
    graph.output(called)
    root = Unit(Template(kind, graph), kind, {kind: 2})
    root._modules[child] = nn.Linear(2, 2)
    root._parameters[parameter] = nn.Parameter(torch.zeros(2))
    root._buffers[buffer] = torch.zeros(2)
    write(root, About(example=()))
    return root


def shape(node: ast.AST) -> Any:
    """A syntax tree without what names and strings are; the ways to reach a part are one."""
    if isinstance(node, ast.Constant):
        return "constant"
    if isinstance(node, (ast.Attribute, ast.Subscript)) or _is_getattr(node):
        return "part"
    if isinstance(node, (ast.Assign, ast.Expr)) and _adds(node) is not None:
        return "add", shape(_adds(node))  # type: ignore[arg-type]
    return type(node).__name__, *(shape(child) for child in ast.iter_child_nodes(node))


def _is_getattr(node: ast.AST) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return called and node.func.id == "getattr"  # type: ignore[attr-defined]


def _adds(node: ast.Assign | ast.Expr) -> ast.AST | None:
    """What a statement makes a part of `self`."""
    if isinstance(node, ast.Assign):
        return node.value if shape(node.targets[0]) == "part" else None
    call = node.value
    if isinstance(call, ast.Call) and ast.unparse(call.func).startswith(("self.add_", "self.reg")):
        return call.args[1]
    return None


def printed(names: list[str], origin: str, title: str, story: str) -> str:
    root = tree(names, origin)
    return model_file(root, print_classes(root)[0], title, story, (story,))


PLAIN = ["Kind", "child", "parameter", "buffer"]


@functools.cache
def plain_shape() -> Any:
    return shape(ast.parse(printed(PLAIN, "comment", "title", "story")))


@settings(max_examples=5 * EXAMPLES)
@given(st.lists(NAMES, min_size=4, max_size=4, unique=True), TEXTS, TEXTS, TEXTS)
@example([ATTACK, "\nimport os\n", "\r", "\x0c"], "x\nopen('y')", ATTACK, '"""\\')
@example(["torch", "nn", "self", "forward"], "", "", "")
def test_the_printed_program_does_not_depend_on_texts(
    names: list[str], origin: str, title: str, story: str
) -> None:
    text = printed(names, origin, title, story)
    text.encode()
    found = ast.parse(text)
    assert shape(found) == plain_shape()
    assert ast.get_docstring(found, clean=False) == f"{one_line(title)}\n\n{story}\n"
    space: dict[str, Any] = {}
    exec(text, space)
    _, child, parameter, buffer = names
    assert list(space["build"]().state_dict()) == [
        parameter, buffer, f"{child}.weight", f"{child}.bias",
    ]  # fmt: skip


def test_names_of_files_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = '# """ \\\ninsert lora(rank=2) at blocks[0].attn.q # ``` """ \\n \' --\n'
    model = VisionTransformer(16, 8, embed_dim=16, depth=1, num_heads=2, num_classes=2)
    rewritten = vr.apply(text, model)
    for number, name in enumerate([ATTACK, "\r\x0c\u2028\u202e\\", "&<!-- -- -->\udcff", "`" * 5]):
        rewritten.result.spec = rewritten.spec.renamed(name)
        folder = vr.emit(rewritten, f"out{number}")
        assert ast.get_docstring(ast.parse((folder / "model.py").read_text("utf-8")))
        ElementTree.fromstring((folder / "graph.svg").read_text("utf-8"))
        assert json.loads((folder / "lock.json").read_text("utf-8"))["spec_name"] == name
        lines = (folder / "plan.md").read_text("utf-8").splitlines()
        fence = lines[4]
        assert set(fence) == {"`"}
        assert lines[5:].count(fence) == 1
        loaded(folder)
        compile((folder / "test_model.py").read_bytes(), "test_model.py", "exec")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out0", "out1", "out2", "out3"]


def test_xml_and_templates() -> None:
    assert xml("a\x00b\ud800c\x85") == "a\\x00b\\ud800c\\x85"
    drawn = render(
        "graph.svg.jinja",
        columns=[],
        legend=[("#000000", "</text>--><&\x00")],
        head=None,
        tall=0,
        layers=[],
        layers_tall=0,
        title="\x1b<",
    )
    assert ElementTree.fromstring(drawn) is not None
