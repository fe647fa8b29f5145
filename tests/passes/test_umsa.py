"""UMSA: the authors' numbers, every gate rule and form, other sizes, cost, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torch.nn import functional as F
from vitrewrite.passes.umsa.search import GateRule, UnifiedAttention

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.models import spread
from tests.sites.by_hand import emitted

STATES = {"skip": "skip", "conv1x1": "1x1", "conv3x3": "3x3", "msa": "msa"}
BATCH_NORMS = ("weight", "bias", "running_mean", "running_var")
UMSA = "replace blocks[*].attn with umsa({})\n"


@pytest.fixture(scope="module")
def layer() -> goldens.Case:
    return goldens.case("spvit-umsa")


def golden_attention(layer: goldens.Case) -> Attention:
    attention = Attention(48, 4, qkv_bias=True)
    state = goldens.load_file(goldens.FOLDER / layer.about["base_file"])
    attention.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    return attention.eval()


def golden_module(layer: goldens.Case, logits: str | None = None) -> UnifiedAttention:
    module = UnifiedAttention(12, 4, 0.01, (1, 3), grid=(8, 8))
    module.mixture.head_logits.data = layer.tensors["method.head_logits"].clone()
    for kernel, norm in zip(("1x1", "3x3"), module.norms, strict=True):
        for name in BATCH_NORMS:
            getattr(norm, name).data.copy_(layer.tensors[f"method.bn{kernel}.{name}"])
    if logits is not None:
        module.logits.data = layer.tensors[logits].clone()
    return module


def tensors_of(attention: Attention) -> list[torch.Tensor]:
    v, proj = slice(96, 144), attention.proj
    return [attention.qkv.weight[v], attention.qkv.bias[v], proj.weight, proj.bias]


@pytest.mark.parametrize("state", STATES)
def test_the_authors_layer(state: str, layer: goldens.Case) -> None:
    attention, x = golden_attention(layer), layer.tensors["input"]
    module = golden_module(layer, f"gate_logits.{state}").eval()
    layer.close(module(x, attention(x), *tensors_of(attention)), f"output.search.{state}")
    module = golden_module(layer).train()
    uniforms = layer.tensors[f"train.uniforms.{state}"]
    made = module(x, attention(x), *tensors_of(attention), uniforms=uniforms)
    layer.close(made, f"output_train.{state}")
    layer.close(module.norms[0].running_var, f"train.bn1x1.running_var_after.{state}")
    layer.close(module.norms[1].running_mean, f"train.bn3x3.running_mean_after.{state}")
    (made * layer.tensors["probe"]).sum().backward()
    found = {
        "gate_logits": module.logits.grad,
        "head_logits": module.mixture.head_logits.grad,
        "v.weight": attention.qkv.weight.grad[96:],
        "proj.weight": attention.proj.weight.grad,
    }
    for name, gradient in found.items():
        expected = layer.tensors[f"grad.{state}.{name}"]
        assert gradient is not None
        worst = float((gradient - expected).abs().max())
        assert worst <= 1e-5 * float(expected.abs().max()) + 1e-6, name


def test_the_authors_convolutions_and_costs(layer: goldens.Case) -> None:
    attention, module = golden_attention(layer), golden_module(layer, "cost.gate_logits")
    for kernel in (1, 3):
        made = module.mixture(kernel, *tensors_of(attention)[:3])
        for tensor, name in zip(made, ("kernel", "bias", "proj"), strict=True):
            layer.close(tensor, f"expected.conv{kernel}x{kernel}.{name}")
    layer.close(module.priced(), "cost.open_prefix")
    (module.priced() @ torch.tensor([1.0, 10.0, 100.0])).backward()
    layer.close(module.logits.grad, "grad.cost.gate_logits")


def test_rules() -> None:
    gates = torch.tensor([0.0, 1.0, 1.0])
    assert GateRule("prefix")(gates).tolist() == [0, 0, 0]
    assert GateRule("complex")(gates).tolist() == [0, 0, 1]
    gates = torch.tensor([1.0, 1.0, 0.0])
    assert GateRule("prefix")(gates).tolist() == GateRule("complex")(gates).tolist() == [0, 1, 0]
    assert GateRule("prefix").priced(gates).tolist() == [1, 1, 0]
    assert GateRule("complex").priced(gates).tolist() == [0, 1, 0]


class Unified(nn.Module):
    """The layer of the paper around timm's own, position by position."""

    def __init__(
        self,
        attention: nn.Module,
        delta: dict[str, torch.Tensor],
        kernels: Any,
        tau: float,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.attention, self.delta, self.kernels = attention, delta, kernels
        self.tau, self.grid, self.opened = tau, grid, len(kernels)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.opened == len(self.kernels):
            return self.attention(x)
        if self.opened < 0:
            return torch.zeros_like(x)
        return self.convolved(x, self.kernels[self.opened])

    def convolved(self, x: torch.Tensor, k: int) -> torch.Tensor:
        attention: Any = self.attention
        heads, size, count = attention.num_heads, max(self.kernels), self.grid[0] * self.grid[1]
        share = (self.delta["head_logits"] / self.tau).softmax(0)
        v = attention.qkv.weight.chunk(3)[2].chunk(heads)
        bias, out = (
            attention.qkv.bias.chunk(3)[2].chunk(heads),
            attention.proj.weight.chunk(heads, 1),
        )
        patches = x[:, -count:].unflatten(1, self.grid)
        edge = size // 2 - k // 2
        code: Any = 0
        up: Any = 0
        for dy in range(k):
            for dx in range(k):
                s = share[:, edge + dy + size * (edge + dx)]
                mixed = patches @ sum(s[h] * v[h] for h in range(heads)).T
                rolled = F.pad(mixed, (0, 0, k, k, k, k))
                y, z = k + dy - k // 2, k + dx - k // 2
                code = code + rolled[:, y : y + self.grid[0], z : z + self.grid[1]]
                code = code + sum(s[h] * bias[h] for h in range(heads))
                up = up + sum(s[h] * out[h] for h in range(heads))
        norm = {n: self.delta[f"bn{k}x{k}.{n}"] for n in BATCH_NORMS}
        code = (
            F.batch_norm(
                code.movedim(-1, 1),
                norm["running_mean"],
                norm["running_var"],
                norm["weight"],
                norm["bias"],
            )
            .movedim(1, -1)
            .relu()
        )
        made = F.linear(code, up, attention.proj.bias).flatten(1, 2)
        return torch.cat([x[:, :-count], made], 1)


def by_hand(
    rewritten: Any, model: Any, kernels: Any, tau: float, grid: tuple[int, int]
) -> list[Unified]:
    layers = []
    for i, block in enumerate(model.blocks):
        front = f"blocks.{i}.attn.umsa."
        delta = {k.removeprefix(front): v for k, v in rewritten.delta().items() if front in k}
        block.attn = Unified(block.attn, delta, kernels, tau, grid)
        layers.append(block.attn)
    return layers


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "oblong": {"img_size": (16, 24), "init_values": 0.1},
}


@pytest.mark.parametrize("name", sorted(MODELS))
@torch.no_grad()
def test_each_state_by_hand(name: str, tmp_path: Path) -> None:
    model, kernels = vit(**MODELS[name]), (1, 3)
    rewritten = fill(vr.apply(UMSA.format("tau=0.7"), vit(**MODELS[name])))
    size = MODELS[name].get("img_size", (16, 16))
    layers = by_hand(rewritten, model, kernels, 0.7, (size[0] // 4, size[1] // 4))
    images, modules = torch.randn(3, 3, *size), _searched(rewritten)
    for opened in (-1, 0, 1, 2):
        for module, layer in zip(modules, layers, strict=True):
            module.logits.copy_(torch.tensor([1.0] * (opened + 1) + [-1.0] * (2 - opened)))
            layer.opened = opened
        found = rewritten.module.eval()(images), model.eval()(images)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    if name == "plain":
        emitted(rewritten, tmp_path / "out")


def _searched(rewritten: Any) -> list[Any]:
    return [i.module for i in rewritten.result.editor.insertions]


class Convolved(Unified):
    """The same for maps [B, h, w, C]; inside windows for tokens of them."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if self.opened < 0:
            return torch.zeros_like(x)
        shape = x.shape
        self.grid = (x.shape[1], x.shape[2]) if x.dim() == 4 else self.grid
        return self.convolved(x.reshape(len(x), -1, x.shape[-1]), self.kernels[self.opened]).view(
            shape
        )


def swin() -> Any:
    torch.manual_seed(0)
    return spread(
        SwinTransformer(
            img_size=48,
            patch_size=4,
            embed_dim=8,
            depths=(2, 1),
            num_heads=(2, 4),
            window_size=6,
            num_classes=5,
            drop_path_rate=0.1,
        )
    )


@pytest.mark.parametrize("windows", ["whole", "inside"])
@torch.no_grad()
def test_in_windows(windows: str, tmp_path: Path) -> None:
    spec = f"replace every attention with umsa(windows={windows})\n"
    rewritten, plain, images = fill(vr.apply(spec, swin())), swin(), torch.randn(2, 3, 48, 48)
    found = rewritten.module.eval()(images), plain.eval()(images)
    for module in _searched(rewritten):
        module.logits.fill_(1)
    torch.testing.assert_close(rewritten.module(images), found[1], rtol=1e-4, atol=1e-5)
    layers, delta = [], rewritten.delta()
    for s, stage in enumerate(plain.layers):
        for i, block in enumerate(stage.blocks):
            front = f"layers.{s}.blocks.{i}.attn.umsa."
            own = {k.removeprefix(front): v for k, v in delta.items() if front in k}
            layer = Convolved(block.attn, own, (1, 3), 100.0, (6, 6))
            layers.append(layer)
            if windows == "whole":
                block.__dict__["_attn"] = layer
            else:
                block.attn = layer
    for opened in (-1, 0, 1):
        for module, layer in zip(_searched(rewritten), layers, strict=True):
            module.logits.copy_(torch.tensor([1.0] * (opened + 1) + [-1.0] * (2 - opened)))
            layer.opened = opened
        torch.testing.assert_close(rewritten.module(images), plain(images), rtol=1e-4, atol=1e-5)
    vr.verify(rewritten, graphs=False)
    vr.emit(rewritten, tmp_path / "out")


@torch.no_grad()
def test_other_kernels_and_the_other_rule() -> None:
    options = {"img_size": 24}
    rewritten = fill(vr.apply(UMSA.format("kernels=[3, 5], rule=complex, tau=1"), vit(**options)))
    model, images = vit(**options), torch.randn(2, 3, 24, 24)
    layers, modules = by_hand(rewritten, model, (3, 5), 1.0, (6, 6)), _searched(rewritten)
    for opened, logits in ((-1, (-1, -1, -1)), (0, (1, -1, -1)), (1, (-1, 1, -1)), (2, (1, -1, 1))):
        for module, layer in zip(modules, layers, strict=True):
            module.logits.copy_(torch.tensor(logits, dtype=torch.float32))
            layer.opened = opened
        found = rewritten.module.eval()(images), model.eval()(images)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_gates_are_drawn_once_for_all_images() -> None:
    rewritten = vr.apply(UMSA.format("start=0"), vit())
    image = torch.randn(1, 3, 16, 16)
    module = _searched(rewritten)[0]
    seen = []
    module.weighed.register_forward_hook(lambda _m, _x, y: seen.append(y.detach().tolist()))
    torch.manual_seed(0)
    for _ in range(30):
        rewritten.module.train()(image.expand(2, -1, -1, -1))
    assert {tuple(map(round, share)) for share in seen} == {
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)
    }  # fmt: skip
    assert all(int(norm.num_batches_tracked) == 30 for norm in module.norms)


def test_images_of_other_sizes(tmp_path: Path) -> None:
    def model() -> Any:
        return vit(dynamic_img_size=True)

    rewritten = fill(vr.apply(UMSA.format("start=-1, tau=1"), model()))
    with torch.no_grad():
        for module in _searched(rewritten):
            module.logits.copy_(torch.tensor([1.0, 1.0, -1.0]))
        for grid in ((4, 4), (6, 3)):
            plain = model()
            for layer in by_hand(rewritten, plain, (1, 3), 1.0, grid):
                layer.opened = 1
            images = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
            found = rewritten.module.eval()(images), plain.eval()(images)
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    emitted(rewritten, tmp_path / "out")


def test_separate_paths() -> None:
    rewritten = vr.apply(UMSA.format("paths=multi"), vit())
    module, images = _searched(rewritten)[0], torch.randn(2, 3, 16, 16)
    assert sum(p.numel() for n, p in module.named_parameters() if "convs" in n or "ups" in n) == (
        (1 + 9) * 16 * 8 + 2 * 16 * 8
    )
    found = rewritten.module.eval()(images), vit().eval()(images)
    torch.testing.assert_close(*found)


def test_what_a_search_pays_for() -> None:
    plan = vr.plan(UMSA.format(""), "deit_base_patch16_224")
    insertion = plan.result.editor.insertions[0]
    method = plan.result.methods.of(insertion)
    prices = method.prices(insertion.site, insertion.module)
    n, c = 196, 768
    c1, c3 = 2 * c * 64 * n, 10 * c * 64 * n
    cm = 4 * (n + 1) * c * c + 2 * c * (n + 1) ** 2
    assert prices == [c1, c3 - c1, cm - c3]
    assert method.found(insertion.module, [True, False, True]) == {"state": "1x1"}
    assert method.found(insertion.module, [False, True, True]) == {"state": "skip"}
    assert method.found(insertion.module, [True, True, True]) == {"state": "msa"}
    plan = vr.plan(UMSA.format("rule=complex"), "deit_base_patch16_224")
    insertion = plan.result.editor.insertions[0]
    method = plan.result.methods.of(insertion)
    assert method.prices(insertion.site, insertion.module) == [c1, c3, cm]
    assert method.found(insertion.module, [True, False, True]) == {"state": "msa"}
    assert method.found(insertion.module, [False, False, False]) == {"state": "skip"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("kernels=[2]", "VR403 kernels of 2 cannot be at 'blocks.0..attn'"),
        ("kernels=[]", "VR403 no kernels cannot be"),
        ("kernels=[3, 1]", "VR403 kernels of 3, 1 cannot be"),
        ("kernels=[1, 5]", "VR403 a kernel of 5x5 is larger than 4x4 patches"),
        ("tau=0", r"VR203 umsa.tau = 0 is out of range"),
        ("rule=any", "VR209 nothing is named 'any'"),
        ("kernel=[1]", "VR202 umsa has no option 'kernel'"),
    ],
)
def test_bad_options(options: str, told: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=told):
        vr.apply(UMSA.format(options), vit())
