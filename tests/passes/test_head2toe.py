"""The `head2toe` pass: the authors' numbers, taps read by hand, selection, counts, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from vitrewrite.passes.head2toe import TapsHead
from vitrewrite.passes.head2toe.selection import lengths, scores, selected

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.refusal import expect_refusal
from vitrewrite.folder.reading import load_folder
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, tune

SPEC = "replace head with head2toe({})\n"
DATA = "digits?images=60"
SETTINGS = Settings(steps=2, batch=16, lr=1e-2)
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DEPTH, WIDTH = 3, 16
TAPS = 1 + 4 * DEPTH


def test_golden() -> None:
    """Averages, features, penalty, scores, what is kept and in which order, and both heads."""
    case = goldens.case("head2toe")
    known, names = case.tensors, [name for name, _ in case.about["hyper"]["taps"]]
    taps = [known[f"input.{name}"] for name in names]
    counts = tuple(tap.shape[2] for tap in taps)
    head = TapsHead(counts, (0,) * len(taps), 5)
    for tap, name in zip(taps, names, strict=True):
        case.close(head.averaged(tap, 0), f"pooled.{name}")
    case.close(head.representation(*taps), "features_all")
    case.close(1e-4 * lengths(known["head_all.weight"])[None], "penalty_all")
    case.close(scores(known["head_all.weight"]), "scores")
    order, starts = selected(known["scores"], 0.2), [0, *accumulate(counts)]
    kept = [order[(order >= a) & (order < b)] - a for a, b in pairwise(starts)]
    for positions, name in zip(kept, names, strict=True):
        assert positions.tolist() == known.get(f"kept.{name}", torch.zeros(0)).tolist()
    new = TapsHead(tuple(map(len, kept)), (0,) * len(taps), 5, selected=True)
    new.kept = torch.cat(kept)
    new.weight.data, new.bias.data = known["head.weight"], known["head.bias"]
    case.close(new.representation(*taps), "representation")
    with torch.no_grad():
        case.close(new(*taps), "output")


def by_hand(model: Any, kind: str = "mlp") -> list[torch.Tensor]:
    """The averages of the taps of a timm ViT, read by hooks."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, y: torch.Tensor) -> None:
        found.append(y.mean(1))

    for block in model.blocks:
        last = block.mlp if kind == "mlp" else block
        for part in (block.norm1, block.attn, block.mlp.act, last):
            part.register_forward_hook(keep)
    pooled = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
    return [pooled, *found]


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("last", ["mlp", "block"])
@torch.no_grad()
def test_taps_of_the_users_own(pool: str, last: str) -> None:
    model = vit(global_pool=pool).eval()
    rewritten = fill(vr.apply(SPEC.format(f"taps=[norm, attn, hidden, {last}]"), model))
    weight, bias = (rewritten.delta()[f"head.head2toe.{k}"] for k in ("weight", "bias"))
    assert weight.shape == (5, WIDTH + DEPTH * 7 * WIDTH)
    read = torch.cat([F.normalize(tap, dim=-1) for tap in by_hand(model, last)], -1)
    found = rewritten.module.eval()(IMAGES)
    torch.testing.assert_close(found, F.linear(read, weight, bias), rtol=1e-4, atol=1e-5)
    assert torch.equal(rewritten.module.train()(IMAGES), found)


def test_windows() -> None:
    """As published: windows of int(tokens / (target / width)), what is left over is dropped."""
    tap = torch.randn(2, 17, 16)
    head = TapsHead((5 * 16,), (3,), 4)
    expected = torch.stack([tap[:, 3 * i : 3 * i + 3].mean(1) for i in range(5)], 1).flatten(1)
    torch.testing.assert_close(head.averaged(tap, 3), expected)
    rewritten = vr.apply(SPEC.format("target=80"), vit())
    made: Any = rewritten.inserted("head2toe")[0]
    assert made.windows == (0, *(3, 3, 13, 3) * DEPTH)
    assert made.features[:5] == (16, 80, 80, 64, 80)
    assert rewritten.module.eval()(IMAGES).shape == (3, 5)


def test_a_tap_of_zeros_stays_zero() -> None:
    head = TapsHead((4, 4), (0, 0), 3)
    out = head(torch.zeros(2, 4), torch.zeros(2, 5, 4))
    torch.testing.assert_close(out, head.bias.expand(2, 3))


def test_figures_of_the_card() -> None:
    model = "model vit_base_patch16_224(num_classes=100)\n"
    plan = vr.plan(model + SPEC.format(""))
    assert plan.measures.params.trainable == 65_280 * 100 + 100
    assert plan.measures.macs - plan.measures.macs_base == (65_280 - 768) * 100


def test_gradients_reach_the_head_alone() -> None:
    rewritten = vr.apply(SPEC.format(""), vit())
    rewritten.module.train()(IMAGES).square().sum().backward()
    reached = {n for n, p in rewritten.module.named_parameters() if p.grad is not None}
    assert reached == {"head.weight", "head.bias"}


def found(result: Rewritten) -> Sequence[int]:
    """Which features were kept, by number."""
    kept: Sequence[int] = result.result.found["head2toe"].options["head"]["kept"]
    return kept


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rewritten]:
    out = tmp_path_factory.mktemp("head2toe") / "run"
    rewritten = vr.apply(SPEC.format("fraction=0.02"), vit(num_classes=10, in_chans=1))
    return out, tune(rewritten, DATA, SETTINGS, out=out)


def test_selection(tuned: tuple[Path, Rewritten]) -> None:
    out, result = tuned
    assert list(result.training["phases"]) == ["a head on all features", "a head on what is kept"]
    kept = found(result)
    count = int(0.02 * (WIDTH + DEPTH * 7 * WIDTH))
    assert len({*kept}) == count
    delta = result.delta()
    assert delta["head.head2toe.weight"].shape == (10, count)
    assert delta["head.head2toe.kept"].shape == (count,)
    assert result.report["params"]["trainable"] == 10 * count + 10
    vr.verify(result, graphs=False)
    again = load_folder(out)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(again.module.eval()(images), result.module.eval()(images))
    assert found(again) == kept
    stated: Any = vr.apply(result.stated, vit(num_classes=10, in_chans=1)).inserted("head2toe")[0]
    assert torch.equal(stated.kept, delta["head.head2toe.kept"])


def test_what_was_selected_is_not_selected_again(
    tuned: tuple[Path, Rewritten], tmp_path: Path
) -> None:
    again = tune(load_folder(tuned[0]), DATA, SETTINGS, out=tmp_path / "again")
    assert found(again) == found(tuned[1])
    assert list(again.training["phases"]) == ["train"]


STARTS = [0, *accumulate([WIDTH, *(WIDTH, WIDTH, 4 * WIDTH, WIDTH) * DEPTH])]
"""Where the features of each tap start."""


def keeping(taps: range) -> str:
    """A clause that keeps two features of some taps, the third of each before the first."""
    return SPEC.format(f"kept={[i for tap in taps for i in (STARTS[tap] + 2, STARTS[tap])]}")


@torch.no_grad()
def test_what_no_feature_is_kept_of_is_gone() -> None:
    """Selected first and divided then; hidden units of the second block are the last that count."""
    model = vit().eval()
    rewritten = fill(vr.apply(keeping(range(1, 8)), model))
    names = {name.rpartition(".")[0] for name in rewritten.module.state_dict()}
    assert not any(n.startswith(("blocks.2", "norm")) or n == "blocks.1.mlp.fc2" for n in names)
    delta = rewritten.delta()
    read = torch.cat([F.normalize(tap[:, [2, 0]], dim=-1) for tap in by_hand(model)[1:8]], -1)
    weight, bias = delta["head.head2toe.weight"], delta["head.head2toe.bias"]
    found = rewritten.module.eval()(IMAGES)
    torch.testing.assert_close(found, F.linear(read, weight, bias), rtol=1e-4, atol=1e-5)
    assert torch.equal(vr.lower(rewritten).module.eval()(IMAGES), found)


@pytest.mark.parametrize("last", [0, 1, 6, 7, 12])
def test_every_last_tap(last: int) -> None:
    rewritten = vr.apply(keeping(range(last, last + 1)), vit())
    assert rewritten.module.eval()(IMAGES).shape == (3, 5)
    blocks = len(rewritten.module.get_submodule("blocks")._modules)  # type: ignore[arg-type]
    assert blocks == (DEPTH if last in (0, 12) else (last + 3) // 4)


def test_a_plain_probe_has_one_phase(tmp_path: Path) -> None:
    rewritten = vr.apply(SPEC.format("fraction=1, penalty=0"), vit(num_classes=10, in_chans=1))
    result = tune(rewritten, DATA, SETTINGS, out=tmp_path / "run")
    assert list(result.training["phases"]) == ["a head on all features"]
    assert not result.result.found


def test_one_feature_stays_at_least() -> None:
    assert selected(torch.tensor([1.0, 3, 3, 2]), 0.5).tolist() == [1, 2]
    assert selected(torch.tensor([1.0, 3, 3, 2]), 0.1).tolist() == [1]


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "share": (SPEC.format("fraction=0"), {}, "VR203", "fraction"),
    "more than all": (SPEC.format("fraction=1.5"), {}, "VR203", "fraction"),
    "no such tap": (SPEC.format("taps=[mpl]"), {}, "VR20", "mlp"),
    "no tap": (SPEC.format("taps=[]"), {}, "VR403", "no tap"),
    "twice": (SPEC.format("taps=[mlp, mlp]"), {}, "VR403", "twice"),
    "target": (SPEC.format("target=100000"), {}, "VR403", "at most 272"),
    "none of them": (SPEC.format("kept=[3, 352]"), {}, "VR403", "0..351"),
    "a feature twice": (SPEC.format("kept=[3, 3]"), {}, "VR403", "named twice"),
    "no head": (SPEC.format(""), {"num_classes": 0}, "VR406", "head"),
    "merged": (SPEC.format("") + "insert merge.tome(r=2) after blocks[*].attn\n", {}, "VR410",
               "some stand for several patches"),
    "lora": ("insert lora(rank=2) at blocks[*].attn.q\n" + SPEC.format(""), {}, "VR520", "lora"),
    "biases": ("train every bias\n" + SPEC.format(""), {}, "VR520", "trained: blocks.0"),
    "prompts": ("prepend prompt(count=2) to blocks[*]\n" + SPEC.format(""), {}, "VR520", "prompt"),
    "vqt": ("prepend vqt() to blocks[*]\n" + SPEC.format(""), {}, "VR455", "vqt and head2toe"),
    "mlp": (SPEC.format("") + "replace head with mlp_head()\n", {}, "VR455", "head2toe and mlp"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, model, code, words = BAD[name]
    expect_refusal(spec, vit(**model), code, words)


def test_what_lies_in_front_may_be_frozen() -> None:
    spec = "insert lora(rank=2) at blocks[*].attn.q\nfreeze blocks[*]\n" + SPEC.format("")
    rewritten = vr.apply(spec, vit())
    assert rewritten.measures.params.trainable == 5 * (WIDTH + DEPTH * 7 * WIDTH) + 5


def test_too_small_a_share(tmp_path: Path) -> None:
    rewritten = vr.apply(SPEC.format("fraction=0.001"), vit(num_classes=10, in_chans=1))
    with pytest.raises(vr.VitrewriteError, match=r"VR866 a share of 0.001 leaves none of 352"):
        tune(rewritten, DATA, SETTINGS, out=tmp_path / "run")


def test_windows_and_stages_are_refused() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    with pytest.raises(vr.VitrewriteError, match="one sequence of tokens"):
        vr.plan(SPEC.format(""), model)
