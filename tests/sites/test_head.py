"""New heads, each against one of torch on what timm's own module makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.models import spread
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "drop_path_rate": 0.2, "drop_rate": 0.2}),
    "pooled": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "attention pool": ("vit_base_patch16_siglip_224", SMALL),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "drop_rate": 0.1}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}
LAST = {
    "vit": ["norm"], "pooled": ["fc_norm"], "distilled": ["norm"], "swin": ["norm"],
    "attention pool": ["norm", "attn_pool"], "convnext": ["head"],
}  # fmt: skip
"""What only the layer reads, behind the blocks."""

TAPPING = """
from vitrewrite.authoring import HeadSite


class Probe(nn.Module):
    '''y = out([x, means of the taps]) for [B, N, C], or [B, C, H, W] where `axis` is 1.'''

    inserted_by = "tapping"

    def __init__(self, width: int, classes: int, axis: int) -> None:
        super().__init__()
        self.width, self.classes, self.axis = width, classes, axis
        self.out = nn.Linear(width, classes)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.mean(v) for v in values], dim=1))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x
        return x.flatten(2).mean(2) if self.axis == 1 else x.flatten(1, -2).mean(1)


@dataclass(frozen=True)
class Tapping(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)

    pooled: bool = True
    feeds: bool = False

    def rewrite(self, head: HeadSite) -> None:
        ends = head.blocks[0], head.blocks[-1]
        width = sum(b.dim for b in ends) + self.pooled * head.in_features
        axis = 1 if head.context.anatomy.stream.layout == "nchw" else -1
        verb = head.feed if self.feeds else head.replace
        made = head.in_features if self.feeds else 7
        verb(Probe(width, made, axis), *(b.output.value for b in ends), pooled=self.pooled)
"""
FEEDS = "feeds=true, pooled=false"
READ = [
    *(("vit", options) for options in ("", "pooled=false", "feeds=true")), ("distilled", ""),
    ("distilled", FEEDS), ("pooled", FEEDS), ("attention pool", "pooled=false"),
    ("swin", ""), ("swin", "pooled=false"), ("convnext", ""), ("convnext", FEEDS),
]  # fmt: skip


def made(name: str = "vit", **options: Any) -> Any:
    torch.manual_seed(0)
    model, arguments = MODELS[name]
    return spread(timm.create_model(model, **{"num_classes": 3, **arguments, **options}))


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, tapping=TAPPING)


def by_hand(model: Any, delta: dict[str, torch.Tensor], options: str) -> Any:
    """The user's model with hooks at its first and last block, and at its heads."""
    model.load_state_dict({n: v for n, v in delta.items() if "tapping" not in n}, strict=False)
    blocks = (
        list(model.blocks)
        if hasattr(model, "blocks")
        else [
            b
            for s in (model.layers if hasattr(model, "layers") else model.stages)
            for b in s.blocks
        ]
    )
    channels_first = hasattr(model, "stages")
    seen: dict[int, torch.Tensor] = {}
    for i in (0, -1):
        blocks[i].register_forward_hook(lambda _m, _x, y, i=i: seen.__setitem__(i, y))

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2) if channels_first else x.flatten(1, -2).mean(1)

    layers = {
        n: m
        for n, m in model.named_modules()
        if n in ("head", "head_dist", "head.fc") and isinstance(m, nn.Linear)
    }
    for name, layer in layers.items():
        weight, bias = (delta[f"{name}.tapping.out.{n}"] for n in ("weight", "bias"))

        def new(x: torch.Tensor, w: torch.Tensor = weight, b: torch.Tensor = bias) -> torch.Tensor:
            given = [*([] if "pooled=false" in options else [x]), mean(seen[0]), mean(seen[-1])]
            return torch.cat(given, 1) @ w.mT + b

        if "feeds" in options:
            layer.register_forward_pre_hook(lambda _m, args, new=new: (new(args[0]),))
        else:
            layer.register_forward_hook(lambda _m, args, _y, new=new: new(args[0]))
    return model


class Named(nn.Module):
    """A block whose only child has the name that graphs give their results."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.output = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(x) * 1.0


@pytest.mark.usefixtures("passes")
def test_a_child_named_as_results_are() -> None:
    model = made()
    model.blocks = nn.Sequential(*map(Named, model.blocks))
    model.eval()
    rewritten = fill(vr.apply("replace head with tapping()\n", model, example=images(1)))
    x = images(3)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _x, y: seen.append(y.flatten(1, -2).mean(1)))
    with torch.no_grad():
        last = model.forward_head(model.forward_features(x), pre_logits=True)
        given, delta = torch.cat([last, *seen], dim=1), rewritten.delta()
        weight, bias = (delta[f"head.tapping.out.{name}"] for name in ("weight", "bias"))
        found = rewritten.module.eval()(x)
    torch.testing.assert_close(found, given @ weight.mT + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), READ)
@pytest.mark.usefixtures("passes")
def test_what_a_head_reads_and_yields(name: str, options: str) -> None:
    spec = f"replace head with tapping({options})\ntrain head\n"
    model = made(name)
    rewritten = fill(vr.apply(spec, model))
    module: Any = rewritten.module
    delta, before = rewritten.delta(), model.state_dict()
    expected = by_hand(made(name), delta, options)
    twin: Any = emitted_twin(model_text(rewritten), module.state_dict())
    for training in (False, True):
        for batch in (1, 3):
            results = []
            for each in (expected, module, twin):
                each.train(training)
                torch.manual_seed(0)
                results.append(each(images(batch)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(results[2], results[1], rtol=0, atol=0)
            torch.manual_seed(0)
            features = module.forward_features(images(batch))
            assert torch.equal(module.forward_head(features), results[1])
    if options == "pooled=false":
        with pytest.raises(NotImplementedError, match="reads no vector"):
            module.forward_head(features, pre_logits=True)
    elif name in ("vit", "pooled"):
        x = module.eval().forward_head(module.forward_features(images(3)), pre_logits=True)
        old = model.eval().forward_head(model.forward_features(images(3)), pre_logits=True)
        assert x.shape == old.shape
        assert torch.equal(x, old) == ("feeds" not in options)
    feeds = "feeds" in options
    assert module.num_classes == (3 if feeds else 7) == results[0].shape[1]
    assert list(model.state_dict()) == list(before)
    lost = {n for n in before.keys() - module.state_dict().keys() if not n.startswith("head")}
    last = () if "pooled" not in options else tuple(f"{p}." for p in LAST[name])
    assert lost == {n for n in before if n.startswith(last) and not n.startswith("head")}


@pytest.mark.parametrize("name", ["vit", "distilled"])
@pytest.mark.usefixtures("passes")
def test_verified_and_counted(name: str) -> None:
    model = made(name)
    heads = 2 if name == "distilled" else 1
    spec = "replace head with tapping()\ntrain head\nrequire trainable <= 0 excluding head\n"
    rewritten = vr.apply(spec, model)
    assert all(check.holds is not False for check in vr.verify(rewritten, graphs=False))
    new = sum(p.numel() for p in rewritten.delta().values())
    old = sum(p.numel() for n, p in model.named_parameters() if "head" in n)
    params = rewritten.report["params"]
    assert params["trainable"] == new
    assert params["trainable_without_head"] == 0
    assert params["total"] == sum(p.numel() for p in model.parameters()) + new - old
    replacing, training = rewritten.report["clauses"]
    assert (replacing["parameters"], training["parameters"]) == (new - old, new)
    assert len(replacing["sites"]) == heads
    assert any("2 tensors of the base left out: head" in w for w in rewritten.report["warnings"])
    frozen = vr.apply("replace head with tapping()\nfreeze head\n", model)
    assert frozen.report["params"]["trainable"] == 0


@pytest.mark.usefixtures("passes")
def test_gradients_reach_the_head_and_its_taps() -> None:
    rewritten = fill(
        vr.apply(
            "insert lora(rank=2) at blocks[0].mlp.fc2\nreplace head with tapping(pooled=false)\n",
            made(),
        )
    )
    rewritten.module.eval()(images(2)).square().sum().backward()
    grads = {n: p.grad for n, p in rewritten.module.named_parameters() if p.requires_grad}
    assert {n.partition(".")[0] for n in grads} == {"blocks", "head"}
    assert all(g is not None and bool(g.abs().sum() > 0) for g in grads.values())


NEW, FED = "replace head with mlp_head()", "replace head with tapping(feeds=true)"
HEADS = {
    "two new heads": ("replace head with tapping()\n" + NEW, "'head' is replaced by another"),
    "fed and replaced": (f"{FED}\n{NEW}", "'head' is given another input by another clause"),
    "replaced and fed": (f"{NEW}\n{FED}", "'head' is replaced by another clause"),
    "adapted and replaced": (
        f"insert lora(rank=2) at head\n{NEW}",
        "'head' is to be replaced, and another clause adapts it",
    ),
    "replaced and adapted": (
        f"{NEW}\ninsert lora(rank=2) at every linear", "'head' is replaced by another clause",
    ),
    "the same twice": (
        f"{NEW}\nreplace head with mlp_head(layers=4)", "two clauses put mlp_head at 'head'",
    ),
    "what it does not read": (
        "insert ssf() at norm\nreplace head with tapping(pooled=false)",
        "'head' does not read any more what another clause changes",
    ),
    "what is gone": (
        "replace head with tapping(pooled=false)\ntrain norm", "'norm' is taken out by another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.usefixtures("passes")
def test_what_excludes_each_other_is_shown_both(name: str) -> None:
    spec, message = HEADS[name]
    with pytest.raises(vr.VitrewriteError) as got:
        vr.plan(f"{spec}\n", made())
    assert got.value.code == "VR401"
    assert message in got.value.message
    assert all(clause.split("(")[0] in str(got.value) for clause in spec.splitlines())


@pytest.mark.usefixtures("passes")
def test_models_without_a_head() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR406") as got:
        vr.plan("replace head with mlp_head()\n", made(num_classes=0))
    assert "VisionTransformer has no layer that makes classes" in str(got.value)
    assert "num_classes=10" in str(got.value)
    with pytest.raises(vr.VitrewriteError, match="VR406") as got:
        vr.plan("replace blocks[0].mlp.fc1 with mlp_head()\n", made())
    assert "'head' selects a head" in str(got.value)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = made("pooled")

    def forward(self, x: torch.Tensor) -> Any:
        x = self.model.forward_features(x)
        return self.model.head(x.mean(1)) + self.model.head(x[:, 0])


@pytest.mark.usefixtures("passes")
def test_a_layer_that_runs_twice_is_refused() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*runs in more than one place"):
        vr.plan("replace head with mlp_head()\n", Twice().eval(), example=images(1))


WRONG = """
class Wrong(nn.Module):
    inserted_by = "wrong_head"

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


@dataclass(frozen=True)
class WrongHead(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)

    def rewrite(self, head: Any) -> None:
        head.replace(Wrong())
"""


def test_a_module_that_takes_something_else_is_told_to_its_author(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, wrong_head=WRONG)
    with pytest.raises(vr.VitrewriteError, match=r"VR420 pass wrong_head at 'head'"):
        vr.plan("replace head with wrong_head()\n", made())
