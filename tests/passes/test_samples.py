"""Branches are dropped by sample, wherever the batch lies; dropout is shared where it should be."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests import goldens
from vitrewrite.sites.dropping import KeepSamples


class SequenceFirst(nn.Module):
    """Attention over [N, B, C] and a layer that sees no sample at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.mixer = nn.MultiheadAttention(16, 2)
        self.tokens = nn.Parameter(torch.randn(4, 16))
        self.project = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        x = x + self.mixer(self.norm(x), self.norm(x), self.norm(x))[0]
        return self.fc(x.mean(0)) + self.project(self.tokens).mean()


def swin(image: int = 56) -> nn.Module:
    """Two stages: 4 windows of 7x7 in the first, one in the second; the second block shifts."""
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        depths=(2, 1),
        embed_dim=16,
        num_heads=(2, 2),
        img_size=image,
        num_classes=3,
    )


def convnext() -> nn.Module:
    return timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3)


def vit() -> nn.Module:
    return goldens.case("lora-qv").base()


def kept(branch: str, spec: str, model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """By module path, what each branch added to y in a training pass, over what it adds in eval.

    Zero where it was dropped, 1 / (1 - p) elsewhere, for every number of the output.
    """
    module = vr.apply(f"{spec}\n", model, example=x).module
    found: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if f"_{branch}." in name:
            torch.nn.init.uniform_(parameter.data, 0.5, 1.0)

    def note(path: str) -> Any:
        def hook(each: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
            assert len(given) == 3
            whole = each.forward(given[0], given[1], torch.ones(()))
            whole, made = whole - given[1], made - given[1]
            found[path] = torch.where(whole.abs() < 1e-6, torch.nan, made / whole)

        return hook

    for path, each in module.named_modules():
        if path.endswith(f"_{branch}"):
            each.register_forward_hook(note(path))
    torch.manual_seed(0)
    with torch.no_grad():
        module.train()(x)
    assert found
    return found


def draws(ratio: torch.Tensor, axis: int, batch: int, apart: bool = False) -> list[float]:
    """The factor of each sample, which must be one for all its rows."""
    rows = ratio.movedim(axis, 0).flatten(1)
    rows = rows.unflatten(0, (-1, batch) if apart else (batch, -1))
    rows = (rows.transpose(0, 1) if apart else rows).flatten(1)
    found = []
    for row in rows:
        known = row[~row.isnan()]
        assert len(known) > 0
        assert float((known - known[0]).abs().max()) < 1e-3
        found.append(round(float(known[0]), 2))
    return found


LORA = "lora(rank=1, convention=spt, dropout=0, drop_path=0.5)"
ADAPTER = "adapter(hidden=2, dropout=0, drop_path=0.5)"


@pytest.mark.parametrize(
    ("model", "branch", "clause", "site", "size", "layout"),
    [
        (vit, "lora", LORA, "every linear in blocks", 32, lambda path: (0, False)),
        (swin, "lora", LORA, "every linear in blocks", 56, lambda path: (0, False)),
        (swin, "adapter", ADAPTER, "blocks[*].attn.{q, k, proj}", 56, lambda path: (0, False)),
        (convnext, "adapter", ADAPTER, "every linear in blocks", 64, lambda path: (0, False)),
        (
            SequenceFirst, "lora", LORA, "every linear in blocks", 32,
            lambda path: (0, True) if "out_proj" in path else (1, False),
        ),
        (vit, "lora", LORA, "head", 32, lambda path: (0, False)),
    ],
    ids=["sequence", "windows", "windows-rows", "nhwc", "sequence-first", "pooled"],
)  # fmt: skip
def test_whole_samples_are_dropped(
    model: Any, branch: str, clause: str, site: str, size: int, layout: Any
) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, size, size)
    found = kept(branch, f"insert {clause} at {site}", model(), x)
    each = {
        path: draws(ratio, layout(path)[0], 6, layout(path)[1]) for path, ratio in found.items()
    }
    values = [v for drawn in each.values() for v in drawn]
    assert set(values) <= {0.0, 2.0}
    assert len(each) == 1 or len({tuple(d) for d in each.values()}) > 1  # every branch its own
    if len(values) > 20:
        assert 0.2 < sum(v == 0 for v in values) / len(values) < 0.8


def test_rows_of_one_fused_layer_are_one_branch() -> None:
    found = kept(
        "lora", f"insert {LORA} at blocks[0].attn.{{q, v}}", swin(), torch.randn(6, 3, 56, 56)
    )
    (ratio,) = found.values()
    assert draws(ratio[..., :16], 0, 6) == draws(ratio[..., 32:], 0, 6)


def test_lowering_takes_the_draws_out() -> None:
    rewritten = vr.apply(f"insert {LORA} at every linear in blocks\n", swin())
    assert any(isinstance(m, KeepSamples) for m in rewritten.module.modules())
    lowered = vr.lower(rewritten)
    assert not any(isinstance(m, KeepSamples) for m in lowered.module.modules())
    plain = vr.apply("train head\n", swin())
    heads = [re.findall("def forward.*", r.source.text) for r in (lowered, plain)]
    assert heads[0] == heads[1]  # no input says any more how many samples there are


def test_a_value_without_samples_is_refused() -> None:
    spec = f"insert {LORA} at module('project')\n".replace("'", '"')
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(vr.VitrewriteError, match=r"VR413 .*samples of a batch cannot be told"):
        vr.apply(spec, SequenceFirst(), example=x)
    vr.apply(spec.replace("0.5", "0"), SequenceFirst(), example=x)


@pytest.mark.parametrize("together", [True, False])
def test_factors_of_samples_with_several_rows(together: bool) -> None:
    keep = KeepSamples(0.5, axis=1, together=together).train()
    torch.manual_seed(0)
    found = keep(torch.zeros(3, 12, 2, dtype=torch.bfloat16), 4)
    assert found.shape == (1, 12, 1)
    assert found.dtype == torch.bfloat16
    rows = found.flatten().unflatten(0, (4, 3) if together else (3, 4))
    assert all(len(set(r.tolist())) == 1 for r in (rows if together else rows.t()))
    assert set(found.flatten().tolist()) == {0.0, 2.0}
    assert bool((keep.eval()(torch.zeros(3, 12, 2), 4) == 1).all())


def test_spt_does_not_drop_the_input_of_proj() -> None:
    spec = "insert lora(rank=2, convention=spt, dropout=0.5, drop_path=0) at blocks[*].attn.{0}\n"
    x = torch.randn(2, 3, 32, 32)
    for site, equal in (("proj", True), ("q", False)):
        module = vr.apply(spec.replace("{0}", site), vit().train()).module
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)
        assert torch.equal(module(x), module(x)) == equal


def test_a_clause_drops_the_input_of_a_layer_once() -> None:
    spec = "insert lora(rank=2, convention=spt, dropout=0.5) at blocks[0].attn.{q, k, v}\n"
    module = vr.apply(spec, vit()).module
    drops = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    assert len(drops) == 1
