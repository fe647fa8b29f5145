"""Rows that ask and are not asked (VQT), against the card's equations on timm's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.sites.by_hand import (
    IMAGES,
    KV,
    MERGE,
    RECEIVED,
    ByHand,
    agree,
    emitted,
    reached,
    swin,
    vit,
)

QUERIES = """
class QueriesModule(nn.Module):
    inserted_by = "{name}"

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.rows = nn.Parameter(torch.ones(1, count, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows.expand(x.shape[0], -1, -1)


class ReadModule(nn.Module):
    '''x + g o, with o the mean of what rows became.'''

    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, *asked: torch.Tensor) -> torch.Tensor:
        return x + self.gain * torch.cat(asked, 1).mean(1, keepdim=True)


@dataclass(frozen=True)
class Queries(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    def rewrite(self, attn: Any) -> None:
        found = attn.context.shared
        found[attn.role] = attn.extend_q(QueriesModule(2, attn.dim))
        if attn.role == attn.siblings[-1]:
            attn.block.output.insert(ReadModule(attn.dim), *found.values())
"""


class Vqt(torch.nn.Module):
    """Z = [Q; X], keys and values of X alone; what becomes of Q is added behind the last block."""

    def __init__(self, model: Any, rows: list[torch.Tensor], gain: torch.Tensor) -> None:
        super().__init__()
        self.model, self.rows, self.gain = model, rows, gain
        self.keys: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        model = self.model
        seen: list[Any] = []
        x = model._pos_embed(model.patch_embed(images))
        for block, rows in zip(model.blocks, self.rows, strict=True):
            z = torch.cat([rows.expand(len(x), -1, -1), x], 1)
            z = z + self.attend(block.attn, block.norm1(z), rows.shape[1], len(seen))
            z = z + block.mlp(block.norm2(z))
            seen.append(z[:, : rows.shape[1]])
            x = z[:, rows.shape[1] :]
        x = x + self.gain * torch.cat(seen, 1).mean(1, keepdim=True)
        made: torch.Tensor = model.forward_head(model.norm(x))
        return made

    def attend(self, attn: Any, y: torch.Tensor, count: int, index: int) -> torch.Tensor:
        batch, length, _ = y.shape
        qkv = attn.qkv(y).reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1][:, :, count:], qkv[2][:, :, count:]
        if self.keys:
            more = self.keys[index].expand(batch, -1, -1, -1)
            k, v = torch.cat([more, k], 2), torch.cat([more, v], 2)
        weights = (q * attn.scale @ k.transpose(-2, -1)).softmax(-1)
        made: torch.Tensor = attn.proj((weights @ v).transpose(1, 2).reshape(batch, length, -1))
        return made


def plain() -> Any:
    return vit(attn_drop_rate=0.0, proj_drop_rate=0.0)


def by_hand(delta: dict[str, torch.Tensor], name: str, model: Any) -> Vqt:
    rows = [delta[f"blocks.{i}.{name}.rows"] for i in range(2)]
    return Vqt(model, rows, delta[f"blocks.1.{name}.gain"])


def test_rows_ask_and_tokens_do_not_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, asking=QUERIES.replace("{name}", "asking"))
    rewritten = vr.apply("insert asking() at blocks[*].attn\n", plain())
    with torch.no_grad():  # bit for bit
        assert torch.equal(rewritten.module.eval()(IMAGES), plain().eval()(IMAGES))
    width, keys, count = 16, 17, 2
    each = count * (width * width + 2 * keys * width + width * width + 8 * width * width)
    assert rewritten.report["macs"] - rewritten.report["macs_base"] == 2 * each
    fill(rewritten)
    agree(rewritten, by_hand(rewritten.delta(), "asking", plain()))
    vr.verify(rewritten, graphs=False)
    reached(rewritten)
    emitted(rewritten, tmp_path / "out")


LORA = "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v} + blocks[0].mlp.fc1"


@pytest.mark.parametrize("swapped", [False, True])
def test_rows_pass_what_other_clauses_put_there(
    swapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches beside layers, and rows beside keys, whichever clause is first."""
    name = f"vqt_{swapped}".lower()
    install(monkeypatch, tmp_path, **{name: QUERIES.replace("{name}", name)})
    clauses = [f"insert {name}() at blocks[*].attn", LORA, KV]
    rewritten = fill(vr.apply("\n".join(clauses[::-1] if swapped else clauses) + "\n", plain()))
    model, delta = plain(), rewritten.delta()
    with torch.no_grad():
        for key in [k for k in delta if k.endswith("lora.up")]:
            update = delta[key] @ delta[key.replace("up", "down")]
            owner, _, part = key.removesuffix(".lora.up").rpartition(".")
            if part == "fc1":
                model.get_submodule(f"{owner}.fc1").weight += update
            else:
                start = "qkv".index(part) * 16
                model.get_submodule(f"{owner}.qkv").weight[start : start + 16] += update
    hand = by_hand(delta, name, model)
    hand.keys = [delta[f"blocks.{i}.attn.kv_prompt.kv"] for i in range(2)]
    agree(rewritten, hand)
    lowered = vr.lower(rewritten)
    agree(lowered, hand)
    assert not any("lora" in name for name in lowered.module.state_dict())


def test_weights_that_are_read_are_those_of_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows pass what reads them, and it is given what it is given for the tokens."""
    texts = {"vqt_seen": QUERIES.replace("{name}", "vqt_seen")}
    tap = RECEIVED.format(name="peak", tap="weights_per_head")
    install(monkeypatch, tmp_path, **texts, peak=tap)
    clauses = ["insert vqt_seen() at blocks[0].attn", "insert peak() at blocks[0].attn"]
    outputs = []
    for order in (clauses, clauses[::-1]):
        rewritten = fill(vr.apply("\n".join(order) + "\n", plain()))
        outputs.append(rewritten.module.eval()(IMAGES).detach())
    torch.testing.assert_close(*outputs)
    model, delta = plain(), rewritten.delta()
    block, hand = model.blocks[0], ByHand(model.blocks[0].attn)
    rows, read = delta["blocks.0.vqt_seen.rows"], delta["blocks.0.vqt_seen.gain"]
    attend = Vqt(model, [], read).attend

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = block.attn(block.norm1(x))
        peaked = hand.weights.square().reshape(len(x), -1).mean(1)[:, None, None]
        z = torch.cat([rows.expand(len(x), -1, -1), x], 1)
        asked = rows + attend(block.attn, block.norm1(z), 2, 0)[:, :2]
        made = []
        for each in (x + y, asked):
            each = each + delta["blocks.0.peak.gain"] * peaked
            made.append(each + block.mlp(block.norm2(each)))
        return made[0] + read * made[1].mean(1, keepdim=True)

    block.forward = forward
    agree(rewritten, model)


def test_tokens_merge_without_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, vqt_merge=QUERIES.replace("{name}", "vqt_merge"))
    mine = "insert vqt_merge() at blocks[*].attn"
    outputs = []
    for spec in (f"{mine}\n{MERGE}\n", f"{MERGE}\n{mine}\n"):
        rewritten = vr.apply(spec, plain())
        merged = vr.apply(f"{MERGE}\n", plain())
        with torch.no_grad():
            same = [m.module.eval()(IMAGES) for m in (rewritten, merged)]
            assert torch.equal(*same)
            outputs.append(fill(rewritten).module(IMAGES))
    assert torch.equal(*outputs)
    assert not torch.equal(same[0], outputs[0])


def eva() -> Any:
    torch.manual_seed(0)
    return timm.models.eva.Eva(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        use_rot_pos_emb=True,
    )


def beit() -> Any:
    torch.manual_seed(0)
    return timm.models.beit.Beit(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        use_rel_pos_bias=True,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (swin, "it does not attend over one sequence of tokens"),
        (eva, "the block tells its tokens by where they stand"),
        (beit, "its scores have a bias or mask that differs between queries"),
    ],
)
def test_blocks_that_know_positions_are_refused(
    make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"vqt_{make.__name__}"
    install(monkeypatch, tmp_path, **{name: QUERIES.replace("{name}", name)})
    with pytest.raises(vr.VitrewriteError, match=f"VR410 {name} at '.*attn': {message}"):
        vr.apply(f"insert {name}() at every attention\n", make())
