"""The `sls` pass: the published rule on the user's own features, cutting, resuming, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from vitrewrite.passes.sls.pruning import enough

import vitrewrite as vr
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.folder.reading import load_folder
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, silhouette, tune

LORA = "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}\n"
RULE = "drop blocks[*] by sls(samples=60, {})\n"
RAW = RULE.format("space=raw, theta=0.5")
DATA = "digits:0-2?images=100"
SETTINGS = Settings(epochs=1, batch=20, lr=2e-3)


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{
        "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2,
        "num_classes": 3, "in_chans": 1, **options,
    })  # fmt: skip


def tuned(out: Path, rule: str = RAW, settings: Settings = SETTINGS, **more: Any) -> Rewritten:
    return tune(vr.apply(f"{LORA}{rule}train head\n", vit()), DATA, settings, out=out, **more)


def by_hand(host: Rewritten) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Class tokens behind each block of the tuned host."""
    module, labels = host.module.eval(), []
    found: dict[str, list[torch.Tensor]] = {}
    for i in range(4):
        rows = found.setdefault(f"blocks[{i}]", [])
        block = module.get_submodule(f"blocks.{i}")
        block.register_forward_hook(lambda _m, _x, y, rows=rows: rows.append(y[:, 0]))
    images = open_data(DATA, Preprocessing.of(host.base)).train
    with torch.no_grad():
        for batch in batches(images, 20, seed=host.seed, limit=60):
            module(batch.images)
            labels.append(batch.labels)
    return {role: torch.cat(rows) for role, rows in found.items()}, torch.cat(labels)


@pytest.mark.parametrize("options", ["space=raw, theta=0.5", "theta=0.2, perplexity=12"])
def test_the_rule_on_features_of_the_users_own(tmp_path: Path, options: str) -> None:
    host = tune(vr.apply(f"{LORA}train head\n", vit()), DATA, SETTINGS, out=tmp_path / "host")
    found, labels = by_hand(host)
    scores = []
    for rows in reversed(found.values()):
        points = rows.double().numpy()
        if "raw" not in options:
            tsne = TSNE(perplexity=12, init="pca", random_state=0)
            points = tsne.fit_transform(rows.numpy())
            points = (points - points.min(0)) / (points.max(0) - points.min(0))
        scores.append(silhouette_score(points, labels.numpy()))
    theta = 0.5 if "raw" in options else 0.2
    kept = 4
    while scores[0] >= 0 and kept and scores[4 - kept] >= theta * scores[0]:
        kept -= 1
    kept = 4 if scores[0] < 0 else kept + 1
    result = tuned(tmp_path / "run", RULE.format(options))
    choice = result.choice("sls")
    assert list(choice.gone) == [f"blocks[{i}]" for i in range(kept, 4)]
    for i, score in enumerate(choice.scores.values()):
        assert score == pytest.approx(scores[i], abs=1e-4)


def test_thresholds() -> None:
    assert enough([0.5], 0.3)
    assert enough([0.5, 0.15], 0.3)
    assert not enough([0.5, 0.14], 0.3)
    assert not enough([-0.1], 0.3)
    apart = torch.tensor([[0.0, 0], [0, 1], [9, 9], [9, 8]])
    assert silhouette(apart, torch.tensor([0, 0, 1, 1])) > 0.8
    assert silhouette(apart, torch.tensor([0, 1, 0, 1])) < 0


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rewritten]:
    out = tmp_path_factory.mktemp("sls") / "run"
    return out, tuned(out)


def test_what_is_cut_is_gone(cut: tuple[Path, Rewritten]) -> None:
    out, result = cut
    assert result.choice("sls").gone
    names = {name.split(".")[1] for name in result.module.state_dict() if "blocks" in name}
    assert names == {"0", "1"}
    assert not any(name.startswith("blocks.3") for name in result.delta())
    again = load_folder(out)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(again.module.eval()(images), result.module.eval()(images))
    assert again.choice("sls") == result.choice("sls")
    assert again.result.steps[1].sites == ("blocks[2]", "blocks[3]")
    vr.verify(again, graphs=False)


def test_what_was_chosen_is_not_chosen_again(cut: tuple[Path, Rewritten], tmp_path: Path) -> None:
    again = tune(load_folder(cut[0]), DATA, SETTINGS, out=tmp_path / "again")
    assert again.choice("sls") == cut[1].choice("sls")


class StoppedError(Exception):
    pass


def test_a_run_goes_on_where_it_was_stopped(
    cut: tuple[Path, Rewritten], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrewrite.passes.sls.pruning import Again

    def stop(_self: Any, _run: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(Again, "after_step", stop)
    with pytest.raises(StoppedError):
        tuned(tmp_path / "run")
    monkeypatch.undo()
    resumed = tuned(tmp_path / "run", resume=True)
    for name, tensor in cut[1].delta().items():
        assert torch.equal(resumed.delta()[name], tensor), name


@pytest.mark.parametrize("kind", ["FT", "CLR", "TFS"])
def test_how_what_is_left_is_trained(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrewrite.passes.sls.pruning import Again

    seen: dict[str, Any] = {}

    def look(_self: Any, run: Any) -> None:
        seen.setdefault("lr", run.settings.lr)
        seen.setdefault("up", run.rewritten.delta()["blocks.0.attn.q.lora.up"].clone())

    monkeypatch.setattr(Again, "before_step", look)
    tuned(tmp_path / "run", RULE.format(f"space=raw, theta=0.5, retrain={kind}"))
    assert seen["lr"] == (1e-5 if kind == "FT" else 2e-3)
    assert bool(seen["up"].any()) == (kind != "TFS")  # new ones start at zero


ODD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "not the last": ("drop blocks[0:2] by sls()\n", {}, "VR410", "does not end with them"),
    "patches": (RAW, {"global_pool": "avg"}, "VR410", "head reads patches"),
    "theta": ("drop blocks[*] by sls(theta=1.5)\n", {}, "VR203", "theta"),
    "no pass that drops": ("drop blocks[*] by lora()\n", {}, "VR208", "lora cannot be used"),
    "inserted": ("insert sls() at blocks[*]\n", {}, "VR208", "sls cannot be used"),
    "twice": (
        "drop blocks[2:] by sls()\ndrop blocks[3:] by sls()\n",
        {},
        "VR401",
        "two clauses drop blocks by sls",
    ),
    "no block": ("drop blocks[0].attn.q by sls()\n", {}, "VR409", "takes out blocks"),
}


@pytest.mark.parametrize("name", ODD)
def test_bad_specs(name: str) -> None:
    spec, options, code, message = ODD[name]
    with pytest.raises(vr.VitrewriteError, match=f"{code} .*{message}"):
        vr.plan(spec, vit(**options))


def test_no_block_at_all() -> None:
    rewritten = vr.apply("drop optional blocks[9:] by sls()\ntrain head\n", vit())
    assert rewritten.choice("sls").gone == ()


def test_a_hierarchical_model() -> None:
    model = timm.create_model("test_convnext", num_classes=3)
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*head reads patches"):
        vr.plan("drop blocks[*] by sls()\n", model)


@pytest.mark.parametrize(
    ("rule", "data", "code", "message"),
    [
        (RULE.format("perplexity=60"), DATA, "VR866", "60 images are too few for t-SNE"),
        (RAW, "digits:2?images=30", "VR866", "1 classes have no silhouette"),
        (f"insert lora(rank=2) at blocks[3].mlp.fc1\n{RAW}", DATA, "VR401", "taken out by another"),
    ],
)  # fmt: skip
def test_bad_runs(rule: str, data: str, code: str, message: str, tmp_path: Path) -> None:
    rewritten = vr.apply(f"{rule}train head\n", vit(num_classes=1 if ":2" in data else 3))
    with pytest.raises(vr.VitrewriteError, match=f"{code} .*{message}"):
        tune(rewritten, data, SETTINGS, out=tmp_path / "run")
