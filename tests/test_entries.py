"""Entries: `forward_features` and `forward_head` are parts of the forward, before and after."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import fx, nn

import vitrewrite as vr
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.cutting import halves, mark
from vitrewrite.tracing.nodes import take_entry
from vitrewrite.tracing.tree import leaves

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "drop_path_rate": 0.2, "drop_rate": 0.2}),
    "pooled": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg", "drop_rate": 0.2}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "attention_pool": ("vit_base_patch16_siglip_224", SMALL),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "drop_rate": 0.1}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "lists": ("crossvit_9_240", {"img_size": 48, "img_scale": (1.0, 1.0), "embed_dim": (16, 16),
                                 "depth": ((1, 1, 0),), "num_heads": (2, 2), "mlp_ratio": (2, 2, 1),
                                 "patch_size": (12, 16)}),
}  # fmt: skip
SIZES = {"lists": 48}
LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"
SPECS = (
    LORA,
    "prepend prompt(count=3) to blocks[*]",
    "insert merge.bdm() after blocks[0].attn",
    f"{LORA}\nprepend prompt(count=3, readout=all) to blocks[0]\ntrain head",
)


def made(name: str) -> Any:
    torch.manual_seed(0)
    model, arguments = MODELS[name]
    return timm.create_model(model, num_classes=3, **arguments)


def picture(name: str = "vit", batch: int = 2) -> torch.Tensor:
    size = SIZES.get(name, 32)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def seeded(call: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(0)
    return call(*args)


def same(a: Any, b: Any) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return bool(pairs) and type(a) is type(b) and all(torch.equal(x, y) for x, y in pairs)


def is_composed(module: Any, x: torch.Tensor) -> bool:
    """Whether the forward is one entry after the other, in eval and at equal seed in training."""
    was, found = module.training, True
    for training in (False, True):
        module.train(training)
        whole = seeded(module, x)
        found &= same(seeded(lambda v: module.forward_head(module.forward_features(v)), x), whole)
    module.train(was)
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_entries_are_those_of_the_model(name: str, training: bool) -> None:
    model = made(name)
    captured: Any = vr.capture(model)
    for each in (model, captured):
        each.train(training)
    for batch in (2, 5):
        x = picture(name, batch)
        features = seeded(model.forward_features, x)
        assert same(seeded(captured.forward_features, x), features)
        wanted = seeded(model.forward_head, features)
        assert same(seeded(captured.forward_head, features), wanted)
        before = seeded(lambda m, f: m.forward_head(f, pre_logits=True), model, features)
        assert same(seeded(lambda m, f: m.forward_head(f, True), captured, features), before)
        assert same(seeded(captured, x), seeded(model, x))
    assert list(captured.state_dict()) == list(model.state_dict())


def test_at_another_image_size() -> None:
    model, x = made("convnext").eval(), torch.randn(2, 3, 96, 64)
    captured: Any = vr.capture(model)
    assert torch.equal(captured.forward_features(x), model.forward_features(x))
    assert is_composed(captured, x)


@pytest.mark.parametrize("name", ["vit", "distilled", "lists"])
def test_the_source_has_them_and_is_a_fixed_point(name: str) -> None:
    model = made(name)
    captured: Any = vr.capture(model)
    text = type(captured).printed.text
    assert "        return self.forward_head(self.forward_features(x))" in text
    again: Any = vr.capture(captured)
    assert type(again).printed.text == text
    written = model_text(vr.apply("# no clauses\n", model))
    assert is_composed(emitted_twin(written, model.state_dict()), picture(name))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["vit", "pooled"])
def test_after_a_rewrite_they_are_parts_of_what_was_rewritten(name: str, spec: str) -> None:
    model = made(name)
    rewritten = vr.apply(spec, model)
    module: Any = rewritten.module
    with torch.no_grad():
        for parameter in module.parameters():  # what starts as nothing, too, is to be seen
            parameter += 0.1 * torch.randn(parameter.shape)
    x = picture()
    assert is_composed(module, x)
    assert not torch.equal(module.eval()(x), model.eval()(x))
    twin = emitted_twin(model_text(rewritten), module.state_dict())
    assert is_composed(twin, x)
    wanted = module.eval().forward_features(x)
    assert same(twin.eval().forward_features(x), wanted)  # type: ignore[operator]
    lowered: Any = vr.lower(rewritten).module
    assert is_composed(lowered, x)
    for each in (module, twin, lowered):
        before = each.forward_head(each.eval().forward_features(x), pre_logits=True)
        assert torch.equal(each.head(before), each(x))


def test_a_second_rewrite_on_top_of_the_first() -> None:
    first = vr.apply("prepend prompt(count=3) to blocks[*]", made("pooled"))
    second: Any = vr.apply("insert lora(rank=2) at blocks[*].attn.proj", first.module).module
    x = picture()
    assert is_composed(second, x)
    before: Any = first.module
    assert torch.equal(second.eval().forward_features(x), before.eval().forward_features(x))


@pytest.mark.parametrize("name", ["swin", "distilled"])
def test_linear_layers_of_other_models(name: str) -> None:
    spec = "insert lora(rank=2) at every linear in blocks"
    module: Any = vr.apply(
        spec.replace("blocks", "stages") if name == "swin" else spec, made(name)
    ).module
    assert is_composed(module, picture(name))


def test_pickled_and_from_a_folder(tmp_path: Path) -> None:
    rewritten = vr.apply(LORA, made("vit"))
    x, module = picture(), rewritten.module.eval()
    wanted = module.forward_features(x)  # type: ignore[operator]
    vr.emit(rewritten, tmp_path / "out")
    for other in (pickle.loads(pickle.dumps(module)), load_folder(tmp_path / "out").module):
        assert torch.equal(other.eval().forward_features(x), wanted)
        before = other.forward_head(wanted, pre_logits=True)
        assert torch.equal(before, module.forward_head(wanted, pre_logits=True))
        assert is_composed(other, x)


CLEAN = """
import importlib.util, sys
for name in ("timm", "vitrewrite", "torchvision"):
    sys.modules[name] = None
import torch
spec = importlib.util.spec_from_file_location("model", sys.argv[1] + "/model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.load(sys.argv[1] + "/weights.safetensors")
given = torch.load(sys.argv[1] + "/../given.pt")
assert torch.equal(model.forward_features(given["x"]), given["features"])
assert torch.equal(model.forward_head(given["features"]), given["y"])
assert torch.equal(model.forward_head(given["features"], pre_logits=True), given["before"])
assert torch.equal(model(given["x"]), given["y"])
"""


def test_the_file_alone(tmp_path: Path) -> None:
    model = made("distilled").eval()
    x = picture()
    with torch.no_grad():
        given = {"x": x, "features": model.forward_features(x), "y": model(x)}
        given["before"] = model.forward_head(given["features"], pre_logits=True)
    torch.save(given, tmp_path / "given.pt")
    vr.emit(vr.apply("# no clauses\n", model), tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def names(graph: fx.Graph) -> tuple[list[str], list[str]]:
    found = halves(graph)
    assert found is not None
    first, second = ([n.name for n in half.nodes] for half in found)
    return first, second


def test_what_becomes_of_the_marks_when_nodes_are_replaced() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    body = graph.call_module("body", (x,))
    pooled = graph.call_method("mean", (body, 1))
    graph.output(graph.call_module("end", (pooled,)))
    assert halves(graph) is None
    mark({body: ("", None, 1)}, [pooled], "forward_head")
    with graph.inserting_after(body):
        scaled = graph.call_module("scale", (body,))
    body.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    assert names(graph) == (["x", "body", "scale", "output"], ["scale", "mean", "end", "output"])
    with graph.inserting_after(scaled):
        weighted = graph.call_module("weighted", (scaled,))
    take_entry(weighted, pooled)
    pooled.replace_all_uses_with(weighted)
    graph.erase_node(pooled)
    assert names(graph)[1] == ["scale", "weighted", "end", "output"]
    weighted.meta.clear()  # nothing tells any more where the head began, but where features ended
    assert names(graph)[0] == ["x", "body", "output"]


class Own(nn.Module):
    """A model whose forward may be something else than one entry after the other."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.body, self.end, self.how = nn.Linear(4, 4), nn.Linear(4, 2), how

    def forward_features(self, x: torch.Tensor) -> Any:
        return (self.body(x), x.mean()) if self.how == "more" else self.body(x)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(x)

    def forward(self, x: torch.Tensor) -> Any:
        if self.how == "before":
            return self.forward_head(self.forward_features(2 * x))
        if self.how == "between":
            return self.forward_head(self.forward_features(x).relu())
        if self.how == "behind":
            return self.forward_head(self.forward_features(x)).relu()
        if self.how == "beside":
            features = self.forward_features(x)
            return self.forward_head(features), features
        if self.how == "more":
            return self.forward_head(self.forward_features(x)[0])
        if self.how == "twice":
            return self.forward_head(self.forward_features(x)) + self.forward_head(x)
        return self.forward_head(self.forward_features(x))


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x) + 1


@pytest.mark.parametrize("how", ["before", "between", "behind", "beside", "more", "twice"])
def test_no_entries_where_the_forward_is_something_else(how: str) -> None:
    model, x = Own(how), torch.randn(3, 4)
    captured: Any = vr.capture(model, torch.zeros(2, 4))
    assert same(captured(x), model(x))
    assert not hasattr(captured, "forward_features")
    told = r"has no 'forward_head': its forward is not forward_head\(forward_features\(x\)\)"
    with pytest.raises(AttributeError, match=told):
        captured.forward_head(x)


def test_entries_of_a_model_inside_of_another() -> None:
    model, x = Wrapper(), torch.randn(3, 4)
    captured: Any = vr.capture(model, torch.zeros(2, 4))
    assert torch.equal(captured.backbone.forward_features(x), model.backbone.forward_features(x))
    assert not hasattr(captured, "forward_features")
    assert "forward_features" not in model.backbone.__dict__  # the user's model is as it was


class Otherwise(Own):
    """Its `pre_logits` may be something else than what its last layer reads."""

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if pre_logits and self.how == "fails":
            raise KeyError(self.how)
        if pre_logits and self.how != "made":
            return x if self.how == "read" else 2 * x
        return self.end(x)


@pytest.mark.parametrize("how", ["read", "scaled", "made", "fails"])
def test_what_the_head_does_not_read_is_refused(how: str) -> None:
    model, x = Otherwise(how), torch.randn(3, 4)
    captured: Any = vr.capture(model, torch.zeros(2, 4))
    again: Any = vr.capture(captured)
    assert type(again).printed.text == type(captured).printed.text
    for each in (captured, again):
        assert same(each(x), model(x))
        if how in ("read", "made"):
            wanted = model.forward_head(x, pre_logits=True)
            assert same(each.forward_head(x, pre_logits=True), wanted)
            continue
        with pytest.raises(NotImplementedError, match="with pre_logits is not what its head reads"):
            each.forward_head(x, pre_logits=True)


def test_a_model_without_classes_yields_what_it_always_does() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).eval()
    features = model.forward_features(picture())
    captured: Any = vr.capture(model)
    for pre_logits in (False, True):
        wanted = model.forward_head(features, pre_logits=pre_logits)
        assert same(captured.forward_head(features, pre_logits=pre_logits), wanted)
