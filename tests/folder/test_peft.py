"""Deltas as adapters of the library peft: the same outputs there, the same tensors back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from tests.cli.invoke import LORA, TINY, invoke
from tests.hf.zoo import ZOO as HF
from tests.models import spread
from vitrewrite.folder.adapter import save_adapter
from vitrewrite.rewrite.rewritten import Rewritten

QV = "insert lora(rank=3, scale=0.7) at blocks[*].attn.{q, v}\ntrain head\n"
SPECS = {
    "rows of a fused layer": QV,
    "a whole fused layer": "insert lora(rank=4, convention=library, alpha=16, dropout=0.2)"
    " at blocks[*].attn.qkv\ntrain head + norm\n",
    "several ranks and scales": QV + "insert lora(rank=2, scale=3) at blocks[1].mlp.fc2\n",
    "two scales in one layer": "insert lora(rank=2, scale=0.5) at blocks[*].attn.q\n"
    "insert lora(rank=5, scale=2) at blocks[0].attn.v\n",
    "rank-stabilised": "insert lora(rank=5, convention=library, alpha=3, rank_stabilised=true)"
    " at every linear in blocks\n",
    "spt": "insert lora(rank=2, convention=spt) at blocks[0].attn.{k, proj} + blocks[1].mlp.fc1\n",
}


def tiny(**more: Any) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return spread(VisionTransformer(**{**options, "num_classes": 5, **more})).eval()


def trained(spec: str, model: nn.Module) -> Rewritten:
    """A rewrite with a delta that is nowhere zero."""
    rewritten = vr.apply(spec, model)
    torch.manual_seed(1)
    for tensor in rewritten.delta().values():
        tensor.copy_(torch.randn(tensor.shape) * 0.2)
    return rewritten


def outputs(model: nn.Module, side: int = 32) -> torch.Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        found = model.eval()(torch.randn(2, 3, side, side))
    return found if isinstance(found, torch.Tensor) else next(iter(found.values()))


def in_peft(model: nn.Module, folder: Path) -> nn.Module:
    """The adapter as peft loads it, every tensor of it."""
    made = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)
    told = made.load_adapter(folder, "again")
    assert not told.unexpected_keys
    assert not [k for k in told.missing_keys if "again" in k]
    return made.eval()


def same(first: Rewritten, second: Rewritten) -> bool:
    one, two = first.delta(), second.delta()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_peft_computes_the_same_and_what_it_saves_is_read_back(spec: str, tmp_path: Path) -> None:
    model = tiny()
    rewritten = trained(spec, model)
    save_adapter(rewritten, tmp_path / "out")
    loaded = in_peft(model, tmp_path / "out")
    expected = outputs(rewritten.module)
    assert (expected - outputs(model)).abs().max() > 0.05
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-5, atol=1e-5)
    assert same(vr.load(vr.apply(spec, model), tmp_path / "out"), rewritten)
    loaded.save_pretrained(tmp_path / "peft", selected_adapters=["default"])
    assert same(vr.load(vr.apply(spec, model), tmp_path / "peft"), rewritten)


FAMILIES = {
    "vit of transformers": (
        lambda: HF["vit"].build(), 32,
        "insert lora(rank=2) at blocks[*].attn.{q, v} + blocks[*].mlp.fc1\ntrain head\n",
    ),
    "swin of timm": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=8,
            depths=(2, 1), num_heads=(1, 2),
        ), 64, "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n",
    ),
    "heads in turn, 1x1 convolutions": (
        lambda: timm.create_model(
            "levit_conv_128s", embed_dim=(32, 48, 64), num_heads=(2, 3, 4), depth=(1, 1, 1),
            num_classes=4,
        ), 224, "insert lora(rank=2) at blocks[*].attn.{q, v}\n",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str, tmp_path: Path) -> None:
    build, side, spec = FAMILIES[name]
    torch.manual_seed(0)
    model = spread(build()).eval()
    rewritten = trained(spec, model)
    save_adapter(rewritten, tmp_path)
    expected = outputs(rewritten.module, side)
    assert (expected - outputs(model, side)).abs().max() > 1e-3
    torch.testing.assert_close(
        outputs(in_peft(model, tmp_path), side), expected, rtol=1e-5, atol=1e-5
    )
    assert same(vr.load(vr.apply(spec, model), tmp_path), rewritten)


class TwoHeads(VisionTransformer):
    """Names that end alike: peft looks for ends of names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.extra_head = nn.Linear(16, 5)
        mlp = nn.ModuleDict({"fc1": nn.Linear(5, 5)})
        self.more = nn.ModuleDict({"blocks": nn.Sequential(nn.ModuleDict({"mlp": mlp}))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = self.forward_head(self.forward_features(x), pre_logits=True)
        return self.head(x) + self.more.blocks[0]["mlp"]["fc1"](self.extra_head(x))


def test_names_that_end_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = spread(TwoHeads(num_classes=5, **options)).eval()
    spec = (
        "insert lora(rank=2) at blocks[0].mlp.fc1\ninsert lora(rank=3) at blocks[1].mlp.fc1\n"
        'train module("head")\n'
    )
    rewritten = trained(spec, model)
    save_adapter(rewritten, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert isinstance(settings["target_modules"], str)
    loaded = in_peft(model, tmp_path)
    torch.testing.assert_close(outputs(loaded), outputs(rewritten.module), rtol=1e-5, atol=1e-5)
    assert same(vr.load(vr.apply(spec, model), tmp_path), rewritten)


def test_what_was_trained_in_peft_is_read(tmp_path: Path) -> None:
    model = tiny()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["qkv"],
        modules_to_save=["head"],
        rank_pattern={r"blocks\.1\.attn\.qkv": 2},
        alpha_pattern={"1.attn.qkv": 3},
        init_lora_weights=False,
    )
    made = peft.get_peft_model(copy.deepcopy(model), config)
    spread(made.base_model.model.head.modules_to_save)
    made.save_pretrained(tmp_path)
    spec = (
        "insert lora(rank=[4, 2], convention=library, alpha=[8, 3]) at blocks[*].attn.qkv\n"
        "train head\n"
    )
    rewritten = vr.load(vr.apply(spec, model), tmp_path)
    torch.testing.assert_close(outputs(rewritten.module), outputs(made), rtol=1e-5, atol=1e-5)
    scaled = vr.apply(
        "insert lora(rank=[4, 2], scale=1) at blocks[*].attn.qkv\ntrain head\n", model
    )
    vr.load(scaled, tmp_path)  # another scale, made up for
    torch.testing.assert_close(outputs(scaled.module), outputs(made), rtol=1e-5, atol=1e-5)


UNSAID = {
    "another pass": ("insert adaptformer() at blocks[*].mlp_branch\n", "what adaptformer puts at"),
    "no layer": ("train head\n", "adapts no layer"),
    "a tensor of the model": (QV + "train cls_token\n", "training 'cls_token'"),
    "trained around it": (QV + "train blocks[0].attn.qkv\n", "an adapter at 'blocks.0.attn.qkv'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAID)
def test_what_peft_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    spec, message = UNSAID[name]
    with pytest.raises(vr.VitrewriteError, match="VR770") as caught:
        save_adapter(vr.apply(spec, tiny()), tmp_path / "out")
    assert message in caught.value.render()
    assert not (tmp_path / "out").exists()


def test_a_lowered_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vr.VitrewriteError, match="VR770"):
        save_adapter(vr.lower(vr.apply(QV, tiny())), tmp_path / "out")


def settings(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return edit


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)

    return edit


KEY = "base_model.model.blocks.0.attn.qkv.lora_B.weight"
FROZEN = "base_model.model.norm.weight"
BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "kind": ("VR771", settings(lambda s: s.update(peft_type="VERA")), "kind 'VERA'"),
    "variant": ("VR771", settings(lambda s: s.update(use_dora=True)), "use_dora"),
    "no JSON": ("VR771", lambda p: (p / "adapter_config.json").write_text("{"), "cannot read"),
    "odd pattern": ("VR771", settings(lambda s: s.update(alpha_pattern={"(": 1})), "no regular"),
    "patterns": ("VR771", settings(lambda s: s.update(rank_pattern=[1])), "is no object"),
    "no tensors": ("VR771", lambda p: (p / "adapter_model.safetensors").unlink(), "cannot read"),
    "rank": ("VR772", settings(lambda s: s.update(r=9)), "say rank 9"),
    "missing": ("VR772", tensors(lambda t: t.pop(KEY)), "has no tensor"),
    "shape": ("VR772", tensors(lambda t: t.update({KEY: torch.ones(2, 2)})), "is 2x2, not 48x6"),
    "rows of k": ("VR772", tensors(lambda t: t[KEY][20].fill_(1)), "rows that the spec leaves"),
    "mixed parts": ("VR772", tensors(lambda t: t[KEY][0].fill_(1)), "or mixes parts"),
    "frozen": ("VR772", tensors(lambda t: t.update({FROZEN: torch.ones(16)})), "norm.weight"),
    "infinite": ("VR716", tensors(lambda t: t[KEY][0].fill_(torch.inf)), "infinite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    code, edit, message = BROKEN[name]
    model = tiny()
    save_adapter(trained(QV, model), tmp_path)
    edit(tmp_path)
    target = vr.apply(QV, model)
    before = {k: v.clone() for k, v in target.delta().items()}
    with pytest.raises(vr.VitrewriteError, match=code) as caught:
        vr.load(target, tmp_path)
    assert message in caught.value.render()
    assert all(torch.equal(v, before[k]) for k, v in target.delta().items())


def test_other_specs_and_another_base_are_refused(tmp_path: Path) -> None:
    model = tiny()
    save_adapter(trained(QV, model), tmp_path)
    for spec, code in [
        (QV.replace("rank=3", "rank=4"), "VR772"),
        (QV.replace("{q, v}", "q"), "VR772"),
        ("insert lora(rank=3) at blocks[0].attn.{q, v}\ntrain head\n", "VR772"),
        ("insert ssf() at blocks[*].attn.qkv\n", "VR770"),
    ]:
        with pytest.raises(vr.VitrewriteError, match=code):
            vr.load(vr.apply(spec, model), tmp_path)
    with torch.no_grad():
        model.norm.weight[0] += 1
    with pytest.raises(vr.VitrewriteError, match="VR720"):
        vr.load(vr.apply(QV, model), tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    Path("lora.peft").write_text(LORA)
    assert invoke("apply", "lora.peft", "--out", "made").status == 0
    done = invoke("convert", "made", "--to", "peft")
    assert done.status == 0
    assert done.out == "converted LORA of 2 layers, head whole\nwritten   made-peft/\n"
    assert invoke("convert", "made", "--to", "peft", "--json").json["layers"] == 2  # replaced
    assert invoke("lower", "made", "--delta", "made-peft", "--out", "low").status == 0
    refused = invoke("convert", "low", "--to", "peft", "--out", "out")
    assert refused.status == 1
    assert "VR705" in refused.err
    assert not Path("out").exists()


def test_apply_starts_from_a_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = trained(QV, tiny())
    vr.save(first, tmp_path / "own.safetensors")
    save_adapter(first, tmp_path / "peft")
    for source in ("own.safetensors", tmp_path / "peft"):
        again = vr.apply(QV, tiny(), delta=source)
        assert torch.equal(outputs(again.module), outputs(first.module)), source
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "lora.peft").write_text(LORA)
    arguments = ("lora.peft", "weights=random")
    assert invoke("apply", *arguments, "seed=1", "--out", "one").status == 0
    assert invoke("apply", *arguments, "seed=2", "--out", "other").status == 0
    made = invoke("apply", *arguments, "delta=one/delta.safetensors", "seed=1", "--out", "again")
    assert made.status == 0
    deltas = [load_file(f"{name}/delta.safetensors") for name in ("one", "again")]
    assert all(torch.equal(tensor, deltas[1][name]) for name, tensor in deltas[0].items())
    wrong = invoke("apply", *arguments, "delta=other/delta.safetensors", "seed=1", "--out", "x")
    assert "VR720" in wrong.err
    assert not Path("x").exists()
