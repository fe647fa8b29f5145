"""A captured model as data and back: the same programs, the same source, the same bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.models import ZOO, spread
from vitrewrite.emission.realise import realise
from vitrewrite.folder.reading import load_folder
from vitrewrite.program import ProgramError, read_program, write_program
from vitrewrite.tracing import trace
from vitrewrite.tracing.numbers import plain
from vitrewrite.tracing.unit import Unit

RATES = {"drop_rate": 0.1, "drop_path_rate": 0.3}
# Small ones of the zoo: every kind of block, tables by program, norms of batches, two inputs sizes.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**RATES, "depth": 2, "embed_dim": 48, "img_size": 32},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 56},
    "swin_tiny_patch4_window7_224": {
        **RATES, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4), "img_size": 56,
    },
    "convnext_tiny": {**RATES, "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "eva02_tiny_patch14_224": {"depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 28},
    "cait_xxs24_224": {"depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 32},
    "mvitv2_tiny": ZOO["mvitv2_tiny"],
    "vit_small_patch16_dinov3": {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 32},
}  # fmt: skip


def programs(root: nn.Module) -> list[Any]:
    """Everything that later stages read of a tree but its tensors."""
    return [
        (
            path, unit.kind, unit.settings, unit.kept,
            unit.template and unit.template.signature(),
            unit.template and [[_meta(n) for n in g.nodes] for g in unit.template.graphs],
        )
        for path, unit in root.named_modules()
        if isinstance(unit, Unit)
    ]  # fmt: skip


def _meta(node: Any) -> tuple[Any, ...]:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        value = (value.shape, value.stride(), value.dtype)
    if isinstance(value, (int, float)):
        value = plain(value)
    keys = ("hint", "argument", "arity", "guard", "early")
    return (node.name, value, *(node.meta.get(key) for key in keys))


def leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def again(root: nn.Module) -> nn.Module:
    """Written and read."""
    written = write_program(root)
    text = json.dumps(written.data, allow_nan=False)
    return read_program(json.loads(text), {**root.state_dict(), **written.tables})


@torch.no_grad()
def same(first: nn.Module, second: nn.Module, *inputs: torch.Tensor) -> None:
    for training in (False, True):
        outputs = []
        for root in (first, second):
            root.train(training)
            torch.manual_seed(0)
            outputs.append([t.clone() for t in leaves(root(*inputs))])
        assert outputs[0]
        assert all(map(torch.equal, *outputs))


def check(model: nn.Module, shape: tuple[int, ...]) -> None:
    root = trace(spread(model).eval(), torch.zeros(1, *shape))
    twin = again(root)
    assert programs(root) == programs(twin)
    assert [n for n, _ in root.named_parameters(remove_duplicate=False)] == [
        n for n, _ in twin.named_parameters(remove_duplicate=False)
    ]
    assert [p.requires_grad for p in root.parameters()] == [
        p.requires_grad for p in twin.parameters()
    ]
    assert root.state_dict().keys() == twin.state_dict().keys()
    same(root, twin, torch.randn(2, *shape))
    assert realise(root).text == realise(twin).text


@pytest.mark.parametrize("name", MODELS)
def test_models_of_timm(name: str) -> None:
    torch.manual_seed(0)
    options = MODELS[name]
    side = options.get("img_size", 64 if name == "convnext_tiny" else 224)
    check(timm.create_model(name, num_classes=5, **options), (3, side, side))


def test_mask2former(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.hf.zoo import ZOO as MEMBERS

    torch.manual_seed(0)
    name = next(n for n in MEMBERS if "mask2former" in n.lower())
    member = MEMBERS[name]
    check(member.build(), (3, *member.sizes[0]))


class Uses(nn.Module):
    """Calls a module that is somebody else's too."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.other(x) + 1
        return y


class Tied(nn.Module):
    """One module under two names, one parameter in two modules, a table, a recurrent layer."""

    table: torch.Tensor
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.c = nn.Linear(4, 4)
        self.c.weight = self.a.weight
        self.parts = nn.ModuleDict({"3x3": nn.Conv1d(4, 4, 3, padding=1), "a-b": nn.GELU()})
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.late = Uses(self.parts["a-b"])
        self.register_buffer("table", torch.arange(4.0) ** 0.5, persistent=False)
        self.register_buffer(
            "mask", torch.full((4,), -float("inf")).masked_fill_(self.table < 9, 0)
        )

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x = self.c(self.b(self.a(x))) + self.table + self.mask
        x = self.parts["a-b"](self.parts["3x3"](x.transpose(1, 2)))
        x = self.late(x)
        y, (h, _) = self.rnn(x.transpose(1, 2))
        return {"y": y[:, ::2], "last": h, "pair": (y.mean(), x.shape[0])}


def test_ties_names_tables_and_recurrent_layers() -> None:
    torch.manual_seed(0)
    root = trace(Tied().eval(), torch.zeros(1, 6, 4))
    twin = again(root)
    assert programs(root) == programs(twin)
    assert twin.get_submodule("a") is twin.get_submodule("b")
    assert twin.get_parameter("c.weight") is twin.get_parameter("a.weight")
    same(root, twin, torch.randn(2, 6, 4))


def test_what_is_code_has_no_program(tmp_path: Path) -> None:
    """Modules that a pass inserted are source; as data there is nothing to say of them."""
    from tests.test_capture import tiny

    rewritten = vr.apply("insert lora(rank=2) at blocks[*].attn.{q, v}\n", tiny())
    with pytest.raises(ProgramError, match="which is code"):
        write_program(trace(rewritten.module, torch.zeros(1, 3, 32, 32)))
    again_ = vr.apply("train head\n", rewritten.module, example=torch.zeros(1, 3, 32, 32))
    vr.emit(again_, tmp_path / "out")
    assert not (tmp_path / "out" / "program.json").exists()
    lock = json.loads((tmp_path / "out" / "lock.json").read_text())
    assert "which is code" in lock["no_program"]
    with pytest.raises(vr.VitrewriteError, match="VR704") as caught:
        load_folder(tmp_path / "out")
    assert "which is code" in caught.value.render()


# -- what a file of somebody else may not say -----------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[Any, dict[str, torch.Tensor]]:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1)).softmax(-1) + torch.relu(x).mean()

    root = trace(Small().eval(), torch.zeros(1, 4))
    return write_program(root).data, dict(root.state_dict())


def node(data: Any, op: str) -> Any:
    nodes = data["templates"][data["modules"][-1]["unit"]]["graph"]
    return next(n for n in nodes if n["op"] == op)


def put(op: str, **what: Any) -> Callable[[Any], Any]:
    return lambda data: node(data, op).update(what)


def deep() -> Any:
    value: Any = 1
    for _ in range(3000):
        value = [value]
    return value


EVIL = 'x"""\nimport os; os.system("true")'
CHANGES: dict[str, Callable[[Any], Any]] = {
    "a function of the system": put("call_function", target="os.system"),
    "a function that reads files": put("call_function", target="torch.load"),
    "a file as a tensor": put("call_function", target="torch.from_file"),
    "a class": put("call_function", target="torch.nn.Linear"),
    "an import": put("call_function", target="builtins.__import__"),
    "evaluation": put("call_function", target="builtins.eval"),
    "a private attribute": put(
        "call_function", target="builtins.getattr", args=[{"node": 0}, "__class__"]
    ),
    "a method as an attribute": put(
        "call_function", target="builtins.getattr", args=[{"node": 0}, "tolist"]
    ),
    "a private method": put("call_method", target="__reduce_ex__"),
    "a method that takes functions": put("call_method", target="apply_"),
    "a method in text": put("call_method", target=f"mean(){EVIL}"),
    "a name in text": put("call_method", name=EVIL),
    "a keyword as a name": put("call_method", name="class"),
    "an argument's name": put("call_method", kwargs={"a=1, b": 2}),
    "a hint in text": put("call_method", meta={"hint": EVIL}),
    "a comment of two lines": put("call_method", meta={"origin": "a\nimport os"}),
    "a text of two lines": put("call_method", args=[{"node": 0}, "a\nb"]),
    "a value from later": put("call_method", args=[{"node": 99}]),
    "a path in text": put("call_module", target="fc(os)"),
    "a path to nothing": put("call_module", target="fd"),
    "an attribute of Python": lambda d: node(d, "call_module").update(
        op="get_attr", target="fc.in_features", args=[]
    ),
    "an odd node": lambda d: node(d, "call_module").update(op="exec"),
    "a template in text": lambda d: d["templates"][0].update(name=EVIL),
    "a class in text": lambda d: d["modules"][-1].update(kind="A(B)"),
    "a setting in text": lambda d: d["modules"][-1].update(settings={"a=print()": 1}),
    "a setting that is text": lambda d: d["modules"][-1].update(settings={"a": "print()"}),
    "a layer of somebody": lambda d: d["modules"][0].update(layer="os.system"),
    "a lazy layer": lambda d: d["modules"][0].update(layer="LazyLinear"),
    "an option that is none": lambda d: d["modules"][0].update(options={"x": 1}),
    "a child of itself": lambda d: d["modules"][0].update(children={"x": 0}),
    "a child that is not there": lambda d: d["modules"][0].update(children={"x": 7}),
    "a name of a child": lambda d: d["modules"][0].update(children={"x()": None}),
    "another shape": lambda d: d["tensors"][0].update(shape=[2, 2]),
    "another dtype": lambda d: d["tensors"][0].update(dtype="float16"),
    "no dtype": lambda d: d["tensors"][0].update(dtype="__class__"),
    "a missing tensor": lambda d: d["tensors"][0].update(name="other"),
    "another format": lambda d: d.update(format="pickle"),
    "no modules": lambda d: d.update(modules=[]),
    "modules that are none": lambda d: d.update(modules=[3]),
    "a list of templates": lambda d: d.update(templates={"a": 1}),
    "a program in text": lambda d: d.update(programs={"a()": []}),
    "a program without output": lambda d: d.update(programs={"a": []}),
    "an odd way to read a head": lambda d: d.update(pre_logits=["exec", "fc"]),
    "a head in text": lambda d: d.update(pre_logits=["input", "fc()"]),
    "a reason of two lines": lambda d: d.update(pre_logits=["", "a\nb"]),
    "no reason": lambda d: d.update(pre_logits=[""]),
    "a deep value": put("call_method", args=[{"node": 0}, deep()]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_data_that_is_more_than_a_program(what: str, small: tuple[Any, Any]) -> None:
    data = json.loads(json.dumps(small[0]))
    read_program(copy.deepcopy(data), small[1])
    CHANGES[what](data)
    with pytest.raises(ProgramError):
        read_program(data, small[1])


@pytest.mark.parametrize("data", [None, 3, [], {}, "x", {"format": "vitrewrite program 1"}])
def test_data_that_is_no_program(data: Any) -> None:
    with pytest.raises(ProgramError):
        read_program(data, {})
