"""Attentions and feed-forward parts that become something else and keep their weights (SPViT)."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import equal, fill, state
from tests.sites.by_hand import KV, MERGE, RECEIVED, agree, emitted, reached, swin, vit
from vitrewrite.folder.reading import unlowered_folder

UMSA = """
class BottleneckModule(nn.Module):
    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.relu(self.down(x)))


class HeadsModule(nn.Module):
    '''A 1x1 bottleneck out of one head: relu(x sum_h s_h V_h + b) sum_h s_h O_h + proj.bias.'''

    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.logits = nn.Parameter(torch.ones(heads))

    def mixed(self, v, v_bias, proj):
        s = self.logits.softmax(0)
        down = torch.einsum("h,hdc->dc", s, v.unflatten(0, (self.heads, -1)))
        bias = torch.einsum("h,hd->d", s, v_bias.unflatten(0, (self.heads, -1)))
        return down, bias, torch.einsum("h,chd->cd", s, proj.unflatten(1, (self.heads, -1)))

    def forward(self, x, q, q_bias, k, k_bias, v, v_bias, proj, proj_bias):
        down, bias, up = self.mixed(v, v_bias, proj)
        return torch.relu(x @ down.T + bias) @ up.T + proj_bias


@dataclass(frozen=True)
class Heads(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)

    def rewrite(self, attn: Any) -> None:
        attn.become(HeadsModule(attn.heads))

    def lower(self, attn: Any, module: Any) -> bool:
        held = attn.editor.root.get_submodule(attn.path)
        width = attn.dim
        down, bias, up = module.mixed(
            held.qkv.weight[2 * width :], held.qkv.bias[2 * width :], held.proj.weight
        )
        hard = BottleneckModule(width, len(bias))
        hard.down.weight, hard.down.bias = nn.Parameter(down), nn.Parameter(bias)
        hard.up.weight, hard.up.bias = nn.Parameter(up), nn.Parameter(held.proj.bias.clone())
        attn.take_over(hard)
        return True
"""
BESIDE = """
class GatedModule(nn.Module):
    '''y + g x W_q^T: the attention runs still.'''

    inserted_by = "{name}"
    changes = (1,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, x, y, q, q_bias, k, k_bias, v, v_bias, proj, proj_bias):
        return y + self.gain * (x @ q.T)


@dataclass(frozen=True)
class Gated(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    def rewrite(self, attn: Any) -> None:
        attn.become(GatedModule(attn.dim), beside=True)
"""
UFFN = """
import torch.nn.functional as F

class UnitsModule(nn.Module):
    '''fc2(u gelu(fc1 x)), u a gate per hidden unit.'''

    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.logits = nn.Parameter(torch.ones(hidden))

    def forward(self, x, fc1, bias1, fc2, bias2):
        return F.linear(torch.sigmoid(self.logits) * F.gelu(F.linear(x, fc1, bias1)), fc2, bias2)


@dataclass(frozen=True)
class Units(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("mlp",)

    keep: bool = option(True)

    def rewrite(self, mlp: Any) -> None:
        if self.keep:
            mlp.become(UnitsModule(mlp.hidden))
        else:
            mlp.become(ScaledModule(mlp.dim), keep=False)


class ScaledModule(nn.Module):
    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale
"""


def plain(**options: Any) -> Any:
    return vit(attn_drop_rate=0.0, proj_drop_rate=0.0, **options)


def bottleneck(attn: Any, logits: torch.Tensor) -> None:
    """What `HeadsModule` does, on timm's own layers."""

    def forward(attn: Any, x: torch.Tensor, **_: Any) -> torch.Tensor:
        s, heads = logits.softmax(0), attn.num_heads
        v = attn.qkv.weight.chunk(3)[2].chunk(heads)
        bias = attn.qkv.bias.chunk(3)[2].chunk(heads)
        out = attn.proj.weight.chunk(heads, 1)
        down, b, up = (sum(s[h] * each[h] for h in range(heads)) for each in (v, bias, out))
        return F.linear(F.linear(x, down, b).relu(), up, attn.proj.bias)

    attn.forward = MethodType(forward, attn)


def test_an_attention_becomes_a_bottleneck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, heads_mix=UMSA.replace("{name}", "heads_mix"))
    rewritten = fill(vr.apply("insert heads_mix() at blocks[*].attn\n", plain()))
    model, delta = plain(), rewritten.delta()
    for i, block in enumerate(model.blocks):
        bottleneck(block.attn, delta[f"blocks.{i}.attn.heads_mix.logits"])
    agree(rewritten, model)
    kept, own = rewritten.module.state_dict(), plain().state_dict()
    assert own.keys() <= kept.keys()
    assert len(kept) == len(own) + 2
    vr.verify(rewritten, graphs=False)
    reached(rewritten)
    emitted(rewritten, tmp_path / "out")
    lowered = vr.lower(rewritten)
    agree(lowered, model)
    assert not any("qkv" in name for name in lowered.module.state_dict())
    keys = lowered.report["keys"]["blocks.0.attn.qkv.weight"]
    assert keys["to"] == [
        f"blocks.0.attn.heads_mix.{n}" for n in ("down.bias", "down.weight", "up.bias", "up.weight")
    ]
    assert keys["clause"] == "insert heads_mix() at blocks[*].attn"
    vr.emit(lowered, tmp_path / "low")
    assert equal(state(unlowered_folder(tmp_path / "low")), state(rewritten))


@pytest.mark.parametrize(
    "other", ["insert lora(rank=2) at blocks[0].attn.q", KV, MERGE, "received"]
)
def test_clauses_about_what_is_done_no_more(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "heads_two"
    install(
        monkeypatch,
        tmp_path,
        **{
            name: UMSA.replace("{name}", name),
            "taken": RECEIVED.format(name="taken", tap="weights"),
        },
    )
    mine = f"insert {name}() at blocks[*].attn"
    other = "insert taken() at blocks[*].attn" if other == "received" else other
    for spec in (f"{mine}\n{other}\n", f"{other}\n{mine}\n"):
        with pytest.raises(
            vr.VitrewriteError, match=r"VR412 heads_two has .blocks.[01]..attn."
        ) as e:
            vr.apply(spec, plain())
        if "taken" not in spec:
            assert other in e.value.render()


def test_an_attention_that_runs_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other clauses at it stay what they are, in any order."""
    install(monkeypatch, tmp_path, gated_q=BESIDE.replace("{name}", "gated_q"))
    mine, lora = "insert gated_q() at blocks[*].attn", "insert lora(rank=2) at blocks[0].attn.v"
    for spec in (f"{mine}\n{lora}\n{KV}", f"{lora}\n{KV}\n{mine}"):
        rewritten = fill(vr.apply(f"{spec}\n", plain()))
        without = fill(vr.apply(f"{lora}\n{KV}\n", plain()))
        delta = rewritten.delta()
        for i, block in enumerate(without.module.blocks):
            gain, q = delta[f"blocks.{i}.attn.gated_q.gain"], block.attn.qkv.weight[:16]
            block.attn.register_forward_hook(
                lambda _m, args, y, gain=gain, q=q: y + gain * (args[0] @ q.T)
            )
        agree(rewritten, without.module)
    vr.verify(rewritten, graphs=False)
    reached(rewritten)


def test_a_feed_forward_part_becomes_gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, units=UFFN.replace("{name}", "units"))
    rewritten = fill(vr.apply("insert units() at blocks[*].mlp\n", plain()))
    model, delta = plain(), rewritten.delta()
    for i, block in enumerate(model.blocks):
        u = delta[f"blocks.{i}.mlp.units.logits"].sigmoid()
        block.mlp.act.register_forward_hook(lambda _m, _x, y, u=u: y * u)
    agree(rewritten, model)
    vr.verify(rewritten, graphs=False)
    reached(rewritten)
    emitted(rewritten, tmp_path / "out")
    assert plain().state_dict().keys() <= rewritten.module.state_dict().keys()
    gone = vr.apply("insert units(keep=false) at blocks[0].mlp\n", plain())
    assert not any(n.startswith("blocks.0.mlp.fc") for n in gone.module.state_dict())
    model = plain()
    model.blocks[0].mlp = torch.nn.Identity()
    agree(gone, model)


def test_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"win_heads": UMSA, "win_units": UFFN}
    install(monkeypatch, tmp_path, **{k: v.replace("{name}", k) for k, v in passes.items()})
    spec = "insert win_heads() at every attention\ninsert win_units() at every mlp\n"
    rewritten, model = fill(vr.apply(spec, swin())), swin()
    delta = rewritten.delta()
    for i, block in enumerate(model.layers[0].blocks):
        path = f"layers.0.blocks.{i}"
        bottleneck(block.attn, delta[f"{path}.attn.win_heads.logits"])
        forward = block.attn.forward
        block.attn.forward = lambda x, mask=None, forward=forward: forward(x)
        u = delta[f"{path}.mlp.win_units.logits"].sigmoid()
        block.mlp.act.register_forward_hook(lambda _m, _x, y, u=u: y * u)
    agree(rewritten, model, torch.randn(3, 3, 32, 32))


def eva() -> Any:
    torch.manual_seed(0)
    return timm.models.eva.Eva(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=5,
        use_rot_pos_emb=True,
        swiglu_mlp=True,
    )


def test_without_some_biases_and_with_norms_of_q_and_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, gated_n=BESIDE.replace("{name}", "gated_n"))
    for make in (lambda: plain(qkv_bias=False, qk_norm=True), eva):
        rewritten, model = fill(vr.apply("insert gated_n() at blocks[*].attn\n", make())), make()
        for i, block in enumerate(model.blocks):
            gain, attn = rewritten.delta()[f"blocks.{i}.attn.gated_n.gain"], block.attn
            q = attn.qkv.weight[:16] if attn.qkv is not None else attn.q_proj.weight
            attn.register_forward_hook(
                lambda _m, args, y, gain=gain, q=q: y + gain * (args[0] @ q.T)
            )
        agree(rewritten, model)
        emitted(rewritten, tmp_path / f"out{len(model.blocks)}")


def test_a_gated_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, units_g=UFFN.replace("{name}", "units_g"))
    with pytest.raises(vr.VitrewriteError, match=r"VR410 units_g at 'blocks.0..mlp': it is gated"):
        vr.apply("insert units_g() at blocks[0].mlp\n", eva())
