"""UMSA once it is decided: states from the start, and what a search lowers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from vitrewrite.passes.umsa.hard import HeadConvolution

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import equal, fill, state, vit
from tests.models import DEAR, tiny_vit
from tests.passes.test_umsa import BATCH_NORMS, STATES, golden_attention, swin, tensors_of
from tests.sites.by_hand import emitted
from vitrewrite.folder.reading import unlowered_folder

ALL = 'state=["skip", "1x1", "3x3", "msa"]'
UMSA = "replace every attention with umsa({})\n"


def plain(**options: Any) -> Any:
    return vit(depth=4, **options)


def searched(model: Any, options: str = "") -> Any:
    """A search that ended with the first attentions skipped, then 1x1, 3x3 and attention."""
    rewritten = fill(vr.apply(UMSA.format(options), model))
    for number, insertion in enumerate(rewritten.result.editor.insertions):
        count = len(insertion.module.logits)
        opened = [1.0 if i < number else -1.0 for i in range(count)]
        insertion.module.logits.data = torch.tensor(opened)
    return rewritten


@pytest.fixture(scope="module")
def layer() -> goldens.Case:
    return goldens.case("spvit-umsa")


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_authors_hardened_layer(kernel: int, layer: goldens.Case) -> None:
    attention, x = golden_attention(layer), layer.tensors["input"]
    module = HeadConvolution(12, 4, 0.01, kernel, 3, grid=(8, 8)).eval()
    module.mixture.head_logits.data = layer.tensors["method.head_logits"].clone()
    for name in BATCH_NORMS:
        value = layer.tensors[f"method.bn{kernel}x{kernel}.{name}"]
        getattr(module.norm, name).data.copy_(value)
    made = module(x, *tensors_of(attention))
    layer.close(made, f"output.hardened.conv{kernel}x{kernel}")


def golden_model(case: goldens.Case) -> Any:
    model = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=4, num_classes=10
    )
    base = goldens.load_file(goldens.FOLDER / case.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in base.items()})
    return model.eval()


BOTH = "replace blocks[*].attn with umsa({})\nreplace blocks[*].mlp with uffn({})\n"


def with_golden(rewritten: Any, case: goldens.Case) -> Any:
    names = {".attn.": ".attn.umsa.", ".mlp.": ".mlp.uffn."}
    values = {k.removeprefix("method."): v for k, v in case.tensors.items() if "method." in k}
    for old, new in names.items():
        values = {k.replace(old, new): v for k, v in values.items()}
    for name, tensor in rewritten.delta().items():
        if name in values:
            tensor.copy_(values[name].view_as(tensor).to(tensor.dtype))
    return rewritten


def test_the_authors_network() -> None:
    case = goldens.case("spvit-model")
    rewritten = with_golden(vr.apply(BOTH.format("", ""), golden_model(case)), case)
    image = case.tensors["input"]
    case.close(rewritten.module.eval()(image), "output")
    lowered = vr.lower(rewritten)
    case.close(lowered.module.eval()(image), "output_hardened")
    kept = [
        (rewritten.delta()[f"blocks.{i}.mlp.uffn.gate_logits"] > 0).nonzero().flatten().tolist()
        for i in range(4)
    ]
    states = ", ".join(f'"{STATES[s]}"' for s in case.about["states"])
    spec = BOTH.format(f"state=[{states}]", f"keep={kept}")
    hard = with_golden(vr.apply(spec, golden_model(case)), case)
    case.close(hard.module.eval()(image), "output_hardened")
    assert torch.equal(vr.lower(hard).module.eval()(image), lowered.module(image))


def test_the_authors_costs() -> None:
    case = goldens.case("spvit-model")
    rewritten = with_golden(vr.apply(BOTH.format("", ""), golden_model(case)), case)
    costs, own = torch.zeros(()), rewritten.result.editor.insertions
    own = [insertion for insertion in own if insertion.pass_name == "umsa"]
    for insertion in own:
        method = rewritten.result.methods.of(insertion)
        prices = method.prices(insertion.site, insertion.module, patches_only=True)
        costs = costs + insertion.module.priced() @ torch.tensor(prices)
    assert float(costs.detach()) == float(case.tensors["cost.attention_macs"])
    settings, total = case.about["hyperparameters"], float(case.tensors["cost.total_macs"])
    off = settings["target_gmacs"] - (total - costs.detach() + costs) / 1e9
    (settings["cost_weight"] * off**2).backward()
    for i, insertion in enumerate(own):
        expected = case.tensors[f"grad.cost.blocks.{i}.attn.gate_logits"]
        found = insertion.module.logits.grad
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.parametrize("options", ["", "paths=multi", "kernels=[1, 3], rule=complex"])
@pytest.mark.parametrize("make", [plain, swin], ids=["plain", "windows"])
@torch.no_grad()
def test_search_is_hardened_is_lowered(make: Any, options: str, tmp_path: Path) -> None:
    rewritten, images = searched(make(), options), torch.randn(3, 3, *make().patch_embed.img_size)
    found = rewritten.module.eval()(images)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module.eval()(images), found, rtol=1e-4, atol=1e-5)
    count = len(rewritten.result.editor.insertions)
    states = ", ".join(f'"{s}"' for s in ("skip", "1x1", "3x3", "msa")[:count])
    hard = vr.apply(UMSA.format(", ".join(filter(None, (options, f"state=[{states}]")))), make())
    delta = rewritten.delta()
    for name, tensor in hard.delta().items():
        if "umsa" in name:
            tensor.copy_(delta[name])
    torch.testing.assert_close(hard.module.eval()(images), found, rtol=1e-4, atol=1e-5)
    again = vr.lower(hard)
    torch.testing.assert_close(again.module.eval()(images), found, rtol=1e-4, atol=1e-5)
    if make is plain:
        assert again.module.state_dict().keys() == lowered.module.state_dict().keys()
    vr.verify(hard, graphs=False)


@pytest.mark.parametrize("make", [plain, swin], ids=["plain", "windows"])
def test_what_is_closed_is_gone(make: Any, tmp_path: Path) -> None:
    hard = vr.apply(
        UMSA.format(
            'state=["1x1", "skip", "msa", "msa"]'
            if make is plain
            else 'state=["1x1", "skip", "msa"]'
        ),
        make(),
    )
    path, other = (
        ("blocks.0", "blocks.1") if make is plain else ("layers.0.blocks.0", "layers.0.blocks.1")
    )
    shapes = {k: tuple(v.shape) for k, v in hard.module.state_dict().items()}
    width = 16 if make is plain else 8
    assert shapes[f"{path}.attn.qkv.weight"] == (width, width)
    assert shapes[f"{path}.attn.qkv.bias"] == (width,)
    left = {k.removeprefix(f"{path}.attn.") for k in shapes if k.startswith(f"{path}.attn.")}
    assert {k for k in left if "umsa" not in k} == {
        "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"
    }  # fmt: skip
    assert not any(k.startswith((f"{other}.attn.", f"{other}.norm1.")) for k in shapes)
    base = make().state_dict()[f"{path}.attn.qkv.weight"]
    assert torch.equal(hard.module.state_dict()[f"{path}.attn.qkv.weight"], base[2 * width :])
    named = dict(hard.module.named_parameters())
    assert named[f"{path}.attn.qkv.weight"].requires_grad
    vr.emit(hard, tmp_path / "out")
    source = (tmp_path / "out" / "model.py").read_text()
    assert f"nn.Linear({width}, {width})" in source.replace("dim", str(width)) or "qkv" in source
    lowered = vr.lower(hard)
    vr.emit(lowered, tmp_path / "low")
    source = (tmp_path / "low" / "model.py").read_text()
    assert "class ConvBottleneck" in source
    assert "HeadMixture" not in source
    assert "StructureGates" not in source
    keys = lowered.report["keys"]
    assert f"{path}.attn.qkv.weight" in keys


def test_the_way_back(tmp_path: Path) -> None:
    rewritten = searched(plain())
    lowered = vr.lower(rewritten)
    keys = lowered.report["keys"]
    assert keys["blocks.0.norm1.weight"]["to"] is None
    assert keys["blocks.0.attn.qkv.weight"]["to"] is None
    assert keys["blocks.1.attn.qkv.weight"]["to"] == [
        f"blocks.1.attn.umsa.layers.{i}.{n}" for i in (0, 2) for n in ("bias", "weight")
    ]
    assert not any(k.startswith("blocks.3.attn.qkv") for k in keys)
    emitted(lowered, tmp_path / "low")
    assert equal(state(unlowered_folder(tmp_path / "low")), state(rewritten))


@torch.no_grad()
def test_compatibility_with_the_authors() -> None:
    """A hardened skip adds the norm, and convolutions see the map, not a window."""
    model, images = plain(), torch.randn(2, 3, 16, 16)
    hard = vr.apply("replace blocks[1].attn with umsa(state=skip, skip=identity)\n", model)
    model.blocks[1].attn = torch.nn.Identity()
    model.blocks[1].attn.forward = lambda x, **_: x
    torch.testing.assert_close(hard.module.eval()(images), model.eval()(images))
    assert not any("blocks.1.attn" in k for k in hard.module.state_dict())
    rewritten = searched(plain(), "skip=identity")
    low = vr.lower(rewritten)
    vr.verify(rewritten, graphs=False)
    assert "blocks.0.norm1.weight" in low.module.state_dict()
    images = torch.randn(2, 3, 48, 48)
    inside, whole = searched(swin(), "windows=inside"), searched(swin())
    for name, tensor in inside.delta().items():
        tensor.copy_(whole.delta()[name])
    found, other = (vr.lower(r).module.eval()(images) for r in (inside, whole))
    torch.testing.assert_close(found, other)
    vr.verify(inside, graphs=False)


def test_images_of_other_sizes(tmp_path: Path) -> None:
    rewritten = searched(plain(dynamic_img_size=True))
    lowered = vr.lower(rewritten)
    for size in ((16, 16), (24, 12)):
        images = torch.randn(2, 3, *size)
        found = rewritten.module.eval()(images), lowered.module.eval()(images)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    emitted(lowered, tmp_path / "low")
    hard = vr.apply(UMSA.format(ALL), plain(dynamic_img_size=True))
    vr.lower(hard).module.eval()(torch.randn(1, 3, 20, 32))


@torch.no_grad()
def test_a_second_rewrite(tmp_path: Path) -> None:
    hard = vr.apply(UMSA.format(ALL), plain())
    lora = "insert lora(rank=2) at blocks[3].attn.{q, v} + blocks[*].mlp.fc1\n"
    again = fill(vr.apply(lora, vr.lower(hard).module))
    images = torch.randn(2, 3, 16, 16)
    found = again.module.eval()(images), vr.lower(again).module.eval()(images)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    vr.verify(again, graphs=False)
    with pytest.raises(vr.VitrewriteError, match="VR301"):
        vr.apply("insert lora(rank=2) at blocks[1].attn.q\n", vr.lower(hard).module)


def test_exported() -> None:
    for make, size in ((plain, 16), (swin, 48)):
        lowered = vr.lower(searched(make())).module.eval()
        images = torch.randn(2, 3, size, size)
        exported = torch.export.export(lowered, (images,)).module()
        torch.testing.assert_close(exported(images), lowered(images))


def lowered_parameters(spec: str, model: str) -> tuple[int, int, int]:
    measures = vr.plan(spec, model).measures
    low = sum(p.numel() for p in measures.editor_lowered.root.parameters())
    return measures.params.total, low, measures.run_lowered.costs.macs


def test_parameters_and_macs() -> None:
    """Of DeiT-B: an attention is 2.362 M, a convolution of 3x3 0.492 M, one of 1x1 0.099 M."""
    model = "deit_base_patch16_224"
    dense, _, macs = lowered_parameters(UMSA.format("state=msa"), model)
    expected = {"1x1": (0.099, 0.01927), "3x3": (0.492, 0.09634)}
    for each, (millions, gmacs) in expected.items():
        _, low, less = lowered_parameters(
            f'replace blocks[0].attn with umsa(state="{each}")\n', model
        )
        assert (2_362_368 - (dense - low)) / 1e6 == pytest.approx(millions, abs=5e-4)
        assert (macs - less) / 1e9 == pytest.approx(0.52440 - gmacs, abs=1e-4)
    widths = [1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190]
    states = ", ".join(f'"{s}"' for s in ["1x1"] * 3 + ["3x3"] * 2 + ["msa"] * 7)
    spec = BOTH.format(f"state=[{states}]", f"keep={widths}")
    total, low, macs = lowered_parameters(spec, model)
    assert (total / 1e6, low / 1e6) == pytest.approx((46.208, 41.583), abs=5e-4)
    assert macs / 1e9 == pytest.approx(8.409, abs=5e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ('state="5x5"', "VR403 '5x5' is none of its states"),
        ("state=conv", "VR209 nothing is named 'conv'"),
        ('state=["1x1", "msa"]', "VR4"),
    ],
)
def test_bad_states(options: str, told: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=told):
        vr.apply(UMSA.format(options), plain())


@pytest.mark.parametrize(
    "other",
    [
        "insert lora(rank=2) at blocks[1].attn.q",
        "prepend kv_prompt(n=2) to blocks[1].attn",
        "insert merge.tome(r=2) after blocks[0].attn",
    ],
)
def test_what_cannot_be_at_a_convolution(other: str) -> None:
    mine = 'replace blocks[1].attn with umsa(state="3x3")'
    for spec in (f"{mine}\n{other}\n", f"{other}\n{mine}\n"):
        with pytest.raises(vr.VitrewriteError, match=r"VR41[02] umsa"):
            vr.apply(spec, plain())


@given(tiny_vit(), st.lists(st.sampled_from(["skip", "1x1", "msa"]), min_size=3, max_size=3))
@DEAR
@torch.no_grad()
def test_random_models(model: VisionTransformer, states: list[str]) -> None:
    """Registers, layer scale, norms of q and k, no biases, no class token, oblong grids."""
    model.eval()
    rewritten = fill(vr.apply(UMSA.format("kernels=[1], tau=1"), model))
    for insertion, each in zip(rewritten.result.editor.insertions, states, strict=False):
        opened = {"skip": [-1.0, 1.0], "1x1": [1.0, -1.0], "msa": [1.0, 1.0]}[each]
        insertion.module.logits.copy_(torch.tensor(opened))
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    found, delta = rewritten.module.eval()(images), rewritten.delta()
    told = ", ".join(f'"{each}"' for each in states[: len(model.blocks)])
    hard = vr.apply(UMSA.format(f"kernels=[1], tau=1, state=[{told}]"), model)
    for name, tensor in hard.delta().items():
        if "umsa" in name:
            tensor.copy_(delta[name])
    for made in (vr.lower(rewritten), hard, vr.lower(hard)):
        torch.testing.assert_close(made.module.eval()(images), found, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_is_around_a_skipped_attention_stays() -> None:
    spec = "insert adapter(hidden=2) at every branch\nreplace blocks[*].attn with umsa()\n"
    rewritten, images = fill(vr.apply(spec, plain())), torch.randn(2, 3, 16, 16)
    for insertion in rewritten.result.editor.insertions:
        if insertion.pass_name == "umsa":
            insertion.module.logits.fill_(-1)
    found = rewritten.module.eval()(images), vr.lower(rewritten).module.eval()(images)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_updates_of_weights_that_a_search_reads() -> None:
    """On top of a search, LoRA and SSF do not go into the weights that convolutions are made of."""
    first, images = searched(plain()), torch.randn(2, 3, 16, 16)
    for clause in (
        "insert lora(rank=2) at blocks[*].attn.{q, v}\n",
        "insert ssf() at blocks[*].attn.{qkv, proj}\n",
        "insert repadapter(hidden=4) at blocks[*].attn.qkv\n",
    ):
        again = fill(vr.apply(clause, first.module))
        found = again.module.eval()(images), vr.lower(again).module.eval()(images)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        told = [step.waived.get("lowers_exactly") for step in again.result.steps]
        assert all("reads the weight of the layer too" in str(why) for why in told)
