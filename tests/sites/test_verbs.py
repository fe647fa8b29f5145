"""The verbs of layers and branches, each against hooks on the user's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill, vit

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

SCALED = """
class {cls}Module(nn.Module):
    inserted_by = "{name}"
    changes = {changes}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.ones(width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.ones_(self.gain)

    def forward(self, {args}) -> torch.Tensor:
        return {result}


@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("{kind}",)
    claims: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, site: Any) -> None:
        site.{verb}({cls}Module(16))

    def delta(self, module: Any) -> list[dict[str, torch.Tensor]]:
        return [dict(module.named_parameters())]
"""
DROP = """
@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)

    def rewrite(self, branch: Any) -> None:
        branch.drop()
"""


def scaled(
    name: str,
    kind: str,
    verb: str,
    changes: str = "(0,)",
    args: str = "x: torch.Tensor",
    result: str = "x * self.gain",
) -> str:
    cls = name.capitalize()
    return SCALED.format(
        name=name, cls=cls, kind=kind, verb=verb, changes=changes, args=args, result=result
    )


@torch.no_grad()
def both(spec: str, hooked: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rewritten = fill(vr.apply(f"{spec}\n", vit()))
    model = vit().eval()
    hooked(model, rewritten.delta())
    return rewritten.module.eval()(IMAGES), model(IMAGES)


def test_before_a_linear_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is beside it already; the module has to say that it stands there."""
    ahead = scaled("leading", "linear", "before", "(0,)\n    ahead = True")
    install(monkeypatch, tmp_path, leading=ahead, other=scaled("other", "linear", "before"))
    at = "blocks[0].mlp.fc1"
    with pytest.raises(vr.VitrewriteError, match="VR435 OtherModule") as caught:
        vr.apply(f"insert other() at {at}\n", vit())
    assert "ahead = True" in caught.value.render()

    def hooked(model: Any, delta: dict[str, torch.Tensor]) -> None:
        layer, site = model.blocks[0].mlp.fc1, "blocks.0.mlp.fc1"
        if f"{site}.lora.up" in delta:
            layer.weight.add_(delta[f"{site}.lora.up"] @ delta[f"{site}.lora.down"])
        gain = delta[f"{site}.leading.gain"]
        layer.register_forward_pre_hook(lambda _, args: (args[0] * gain,))

    lora = f"insert lora(rank=2, dropout=0) at {at}"
    for spec in (
        f"insert leading() at {at}",
        f"insert leading() at {at}\n{lora}",
        f"{lora}\ninsert leading() at {at}",
    ):
        torch.testing.assert_close(*both(spec, hooked), rtol=1e-4, atol=1e-5)
        rewritten = fill(vr.apply(f"{spec}\n", vit()))
        lowered = vr.lower(rewritten)
        torch.testing.assert_close(
            lowered.module(IMAGES), rewritten.module.eval()(IMAGES), rtol=1e-4, atol=1e-5
        )
        assert "blocks.0.mlp.fc1_lora.up" not in lowered.module.state_dict()
    vr.verify(rewritten, graphs=False)


def test_wrap_scales_all_of_a_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, wrapped=scaled("wrapped", "branch", "wrap"))

    def hooked(model: Any, delta: dict[str, torch.Tensor]) -> None:
        for i, block in enumerate(model.blocks):
            attn, mlp = (delta[f"blocks.{i}{n}.wrapped.gain"] for n in (".attn_branch", ""))
            block.attn.register_forward_hook(lambda _m, _x, y, gain=attn: y * gain)
            block.mlp.register_forward_hook(lambda _m, _x, y, gain=mlp: y * gain)

    torch.testing.assert_close(*both("insert wrapped() at every branch", hooked))


def test_what_stands_at_a_branch_is_in_the_order_of_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """g (y + x) is another thing than g y + x."""
    added = scaled(
        "added", "branch", "beside", "(1,)", "x: torch.Tensor, y: torch.Tensor", "y + x * self.gain"
    )
    install(monkeypatch, tmp_path, added=added, gated=scaled("gated", "branch", "wrap"))

    def reference(first: str) -> Any:
        def hooked(model: Any, delta: dict[str, torch.Tensor]) -> None:
            block, kept = model.blocks[1], []
            block.norm2.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
            plus, times = (delta[f"blocks.1.{n}.gain"] for n in ("added", "gated"))

            def changed(_m: Any, _x: Any, y: torch.Tensor) -> torch.Tensor:
                x = kept.pop()
                return y * times + x * plus if first == "gated" else (y + x * plus) * times

            block.mlp.register_forward_hook(changed)

        return hooked

    at = "blocks[1].mlp_branch"
    for first, second in (("gated", "added"), ("added", "gated")):
        spec = f"insert {first}() at {at}\ninsert {second}() at {at}"
        torch.testing.assert_close(*both(spec, reference(first)))
        (order,) = vr.apply(f"{spec}\n", vit()).report["order"]
        assert order["as_in_spec"]


def test_drop_takes_a_branch_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, gone=DROP.format(cls="Gone"))
    rewritten = vr.apply("insert gone() at blocks[1].attn_branch\ntrain head\n", vit())
    model = vit().eval()
    model.blocks[1].attn.register_forward_hook(lambda _m, _x, y: torch.zeros_like(y))
    with torch.no_grad():
        torch.testing.assert_close(rewritten.module.eval()(IMAGES), model(IMAGES))
    left = rewritten.module.state_dict().keys()
    lost = vit().state_dict().keys() - left
    assert {name.split(".")[2] for name in lost} == {"norm1", "attn"}
    assert all(name.startswith("blocks.1.") for name in lost)


def test_a_branch_with_another_clause_in_it_is_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, away=DROP.format(cls="Away"))
    lora = "insert lora(rank=2) at blocks[1].attn.q"
    with pytest.raises(vr.VitrewriteError, match=rf"VR410 .*'{lora[:11]}.* put something into it"):
        vr.apply(f"{lora}\ninsert away() at blocks[1].attn_branch\n", vit())
    again = "insert away() at blocks[1].mlp_branch\ninsert away() at every branch in blocks[1]\n"
    with pytest.raises(vr.VitrewriteError, match="VR401"):
        vr.apply(again, vit())


GONE = "insert lost() at blocks[1].mlp_branch"


@pytest.mark.parametrize(
    ("clause", "site"),
    [
        ("insert lora(rank=2) at blocks[1].mlp.fc1", "blocks[1].mlp.fc1"),
        ("insert lora(rank=2) at every linear", "blocks[1].mlp.fc1"),
        ("insert adaptformer(hidden=2) at blocks[1].mlp_branch", "blocks[1].mlp_branch"),
        ("insert ssf() at blocks[1].norm2", "blocks[1].norm2"),
        ("insert kept() at blocks[1].mlp_branch", "blocks[1].mlp_branch"),
        ("train blocks[1].mlp", "blocks[1].mlp"),
        ("freeze blocks[1].norm2", "blocks[1].norm2"),
    ],
)
def test_what_is_about_a_branch_that_is_gone_shows_both(
    clause: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        monkeypatch, tmp_path, lost=DROP.format(cls="Lost"), kept=scaled("kept", "branch", "wrap")
    )
    with pytest.raises(vr.VitrewriteError) as got:
        vr.plan(f"{GONE}\n{clause}\n", vit())
    assert (got.value.code, got.value.span and got.value.span.line) == ("VR401", 2)
    assert got.value.message == f"'{site}' is taken out by another clause"
    assert GONE in got.value.notes[0]
    rest = vr.plan(f"{GONE}\ntrain every norm\n", vit())
    assert rest.measures.params.trainable == 6 * 32
