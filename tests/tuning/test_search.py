"""The search over structure: what it costs, what it ends with, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests.authored import install
from tests.tuning.structures import kinds
from vitrewrite.errors import FileError, TuneError, VitrewriteError
from vitrewrite.folder.reading import load_folder
from vitrewrite.rewrite.deciding import recompiled
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings, search, tune
from vitrewrite.tuning.draws import drawn
from vitrewrite.tuning.projection import Projection
from vitrewrite.tuning.spaces import Space, space_of

UNITS = "replace blocks[*].mlp with uffn()\ntrain every parameter\n"
KINDS = "replace blocks[*].mlp with mlp_kinds()\ntrain every parameter\n"
DATA = "digits:0-2?images=60"
SETTINGS = Settings(
    epochs=1,
    batch=20,
    lr=2e-3,
    search_steps=4,
    gate_lr=0.3,
    log_every=1,
    checkpoint_every=1,
    keep=20,
)


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{
        "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2,
        "num_classes": 3, "in_chans": 1, **options,
    })  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def passes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        install(
            patch,
            tmp_path_factory.mktemp("passes"),
            mlp_kinds=kinds("mlp_kinds", "MlpKinds"),
            mlp_dear=kinds("mlp_dear", "MlpDear", " + 1"),
        )
        yield


def space(spec: str, **options: Any) -> Space:
    found = space_of(vr.apply(spec, vit(**options)))
    assert found is not None
    return found


def middle(spec: str, share: float = 0.5) -> int:
    low, high = space(spec).ends
    return round(low + share * (high - low))


def tuned(
    out: Path, spec: str = UNITS, more: dict[str, Any] | None = None, **run: Any
) -> Rewritten:
    settings = SETTINGS.changed({"macs": middle(spec), **(more or {})})
    return tune(vr.apply(spec, vit()), DATA, settings, out=out, **run)


# -- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [UNITS, KINDS])
def test_costs_are_those_of_what_is_built(spec: str) -> None:
    known = space(spec)
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        found = drawn(known, float(middle(spec, float(torch.rand((), generator=draw)))), draw)
        built = recompiled(known.rewritten, known.found(found.opened)).measures
        assert built.macs_lowered == known.at(found.opened) == found.cost
        with torch.no_grad():
            for part, opened in zip(known.parts, found.opened, strict=True):
                logits = part.logits(known.rewritten.module)
                logits.copy_(torch.tensor(opened) * 2.0 - 1)
        assert float(known.cost(known.rewritten.module).detach()) == built.macs_lowered


def test_states_of_gates_that_hang_together() -> None:
    (part, *_), units = space(KINDS).parts, space(UNITS).parts[0]
    assert part.states == ((False, False), (True, False), (True, True))
    assert part.alike[0] == ((False, False), (False, True))
    assert [*part.costs] == sorted(part.costs)
    assert units.states == ()
    assert units.count == 64


def test_the_papers_table() -> None:
    """2 C (N + 1) for each norm; what no search decides about of an MLP counts for patches too."""
    rewritten = vr.apply(UNITS.replace("[*]", "[0:2]"), vit())
    plain, paper = (space_of(rewritten, patches=patches) for patches in (False, True))
    assert plain is not None
    assert paper is not None
    norms, left = 3 * 2 * 16 * 17, 2 * 16 * 64
    searched = sum(
        a.cost(a.ends[1]) - b.cost(b.ends[1]) for a, b in zip(plain.parts, paper.parts, strict=True)
    )
    assert searched == 2 * left
    assert paper.ends[1] - plain.ends[1] == norms - left - searched


# -- meeting the cost -----------------------------------------------------------------------------


def test_those_nearest_to_the_border_go_first() -> None:
    known = space(UNITS)
    low, high = known.ends
    unit = known.parts[0].prices[0]
    logits = [[1.0] * 64 for _ in known.parts]
    logits[1][7], logits[2][3], logits[0][0] = 0.2, 0.1, -0.1
    found = Projection(known, logits, high - 3 * unit)
    assert found.cost == high - 3 * unit
    closed = {(i, j) for i, part in enumerate(found.opened) for j, o in enumerate(part) if not o}
    assert closed == {(0, 0), (1, 7), (2, 3)}
    assert (found.moved, found.searched) == (2, high - unit)
    assert Projection(known, logits, high).opened[0][0]
    assert Projection(known, logits, low).cost == low


def test_of_gates_that_hang_together_the_likeliest_state() -> None:
    known = space(KINDS)
    part = known.parts[0]
    target = known.ends[1] - (part.costs[2] - part.costs[0])
    logits = [[0.1, 2.0], [2.0, 0.4], [2.0, 0.7]]
    assert Projection(known, logits, target).opened == [[False, False], [True, True], [True, True]]
    # Two at once, where one does not come within 1 %.
    target = known.ends[1] - 2 * (part.costs[2] - part.costs[1])
    found = Projection(known, [[2.0, 0.3], [2.0, 0.4], [2.0, 0.5]], target)
    assert found.opened == [[True, False], [True, False], [True, True]]
    assert found.off == 0
    closed = Projection(known, [[-1.0, 2.0]] * 3, known.ends[0])
    assert closed.opened == [[False, False]] * 3
    assert closed.moved == 0


def test_draws_are_near_and_differ() -> None:
    known = space(UNITS)
    target = sum(known.ends) / 2
    found = [drawn(known, target, torch.Generator().manual_seed(i)) for i in range(3)]
    assert all(each.off <= 0.01 for each in found)
    widths = [tuple(map(sum, each.opened)) for each in found]
    assert len({*widths}) == 3
    assert all(min(each) >= 1 for each in widths)


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rewritten]:
    out = tmp_path_factory.mktemp("search") / "run"
    return out, tuned(out)


def same(first: Rewritten, second: Rewritten) -> bool:
    images = torch.randn(2, 1, 16, 16)
    return torch.equal(*(each.module.eval()(images) for each in (first, second)))


def test_what_is_found_is_built(done: tuple[Path, Rewritten]) -> None:
    _out, result = done
    wanted, told = middle(UNITS), result.training["search"]
    assert abs(result.measures.macs - wanted) <= 0.01 * wanted
    assert told["reached"] == result.report["macs_lowered"]
    assert told["searched"] != told["reached"]
    assert result.training["phases"] == ["search", "train"]
    widths = [b.mlp.fc1.out_features for b in result.module.blocks]  # type: ignore[union-attr, operator]
    assert widths == [*told["sites"].values()]
    after = {n: each["after"] for n, each in told["parameters"].items()}
    assert sum(after.values()) == result.measures.params.total
    assert after["uffn"] == sum(16 * 2 * w + w + 16 for w in widths)
    assert told["macs"]["uffn"]["after"] + told["macs"]["rest"]["after"] == told["reached"]


def test_the_folder_of_what_is_found(done: tuple[Path, Rewritten]) -> None:
    out, result = done
    again = load_folder(out)
    assert same(again, result)
    assert again.report["choices"] == result.report["choices"]
    vr.verify(again, graphs=False)
    assert same(vr.lower(again), result)
    anew = vr.apply(out / "architecture.peft", vit())
    assert "macs" not in (out / "architecture.peft").read_text()
    assert not same(anew, result)
    vr.load(anew, out / "delta.safetensors")
    assert same(anew, result)


def test_metrics_tell_how_far_it_is(done: tuple[Path, Rewritten]) -> None:
    lines = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    known = space(UNITS)
    steps = [line for line in lines if line["phase"] == "search" and line["event"] == "step"]
    assert len(steps) == 4
    assert all(line["rates"]["gates"] == 0.3 for line in steps)
    last = steps[-1]
    assert {*last["open"]} == {part.role for part in known.parts}
    unit = known.parts[0].prices[0]
    assert last["macs"] == known.constant + unit * sum(last["open"].values())
    assert "cost" in last["terms"]
    assert "open" not in lines[-1]


def test_it_starts_again_from_the_base(tmp_path: Path) -> None:
    model = vit()
    settings = SETTINGS.changed({"macs": middle(UNITS), "epochs": 0, "search_lr": 0.1})
    result = tune(vr.apply(UNITS, model), DATA, settings, out=tmp_path / "run")
    options = result.report["choices"]["uffn"]["options"]
    for i, block in enumerate(result.module.blocks):  # type: ignore[union-attr, arg-type]
        kept = options[f"blocks[{i}].mlp"]["keep"]
        assert torch.equal(block.mlp.fc1.weight, model.blocks[i].mlp.fc1.weight[kept])
        assert torch.equal(block.mlp.fc2.weight, model.blocks[i].mlp.fc2.weight[:, kept])
        assert torch.equal(block.attn.qkv.weight, model.blocks[i].attn.qkv.weight)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("Hardened", 1),
        pytest.param("GateSearch", 2, marks=pytest.mark.slow),
        pytest.param("Hardened", 2, marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_where_it_was_stopped(
    done: tuple[Path, Rewritten],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    step: int,
) -> None:
    def stop(_self: Any, run: Any) -> None:
        if run.step == step:
            raise StoppedError

    monkeypatch.setattr(getattr(search, phase), "after_step", stop)
    with pytest.raises(StoppedError):
        tuned(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(FileError, match="another one") as error:
        tuned(tmp_path / "run", more={"macs": middle(UNITS, 0.6)}, resume=True)
    assert any("macs was" in note for note in error.value.notes)
    resumed = tuned(tmp_path / "run", resume=True)
    for name, tensor in done[1].delta().items():
        assert torch.equal(resumed.delta()[name], tensor), name


@pytest.mark.parametrize("way", ["ranked", "salience", "random"])
def test_other_ways_to_decide(way: str, tmp_path: Path) -> None:
    result = tuned(tmp_path / "run", more={"search": way})
    wanted = middle(UNITS)
    assert abs(result.measures.macs - wanted) <= 0.01 * wanted
    assert result.training["search"]["by"] == way
    assert same(load_folder(tmp_path / "run"), result)


def test_salience_is_the_gradient_of_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def look(self: Any, run: Any) -> None:
        for block in run.module.blocks:
            weight = block.mlp.fc2.weight
            seen.append((weight * weight.grad).sum(0).abs().detach().clone())
        after(self, run)

    after = search.SalienceSearch.after_backward
    monkeypatch.setattr(search.SalienceSearch, "after_backward", look)
    monkeypatch.setattr(
        search,
        "bordered",
        lambda s, scores, t: (
            found.extend(scores),
            [[1.0 - 2 * (i % 2) for i in range(part.count)] for part in s.parts],
        )[1],
    )
    found: list[torch.Tensor] = []
    tuned(tmp_path / "run", more={"search": "salience", "search_steps": 2})
    for i, score in enumerate(found):
        torch.testing.assert_close(score, seen[i] + seen[3 + i], rtol=1e-4, atol=1e-6)


def test_states_end_as_options(tmp_path: Path) -> None:
    result = tuned(tmp_path / "run", KINDS, {"gate_lr": 0.6})
    told = result.training["search"]
    assert {*told["sites"].values()} <= {"gone", "small", "whole"}
    assert told["reached"] == result.measures.macs_lowered
    assert told["off"] == pytest.approx(abs(told["reached"] / told["asked"] - 1), abs=1e-4)
    assert same(load_folder(tmp_path / "run"), result)


def test_what_was_found_is_not_searched_again(done: tuple[Path, Rewritten], tmp_path: Path) -> None:
    settings = SETTINGS.changed({"macs": middle(UNITS)})
    again = tune(load_folder(done[0]), DATA, settings, out=tmp_path / "again")
    assert again.training["phases"] == ["train"]
    assert again.report["choices"] == done[1].report["choices"]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.2, 1.2])
def test_out_of_reach(share: float, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="is out of reach") as error:
        tuned(tmp_path / "run", more={"macs": middle(UNITS, share)})
    assert error.value.code == "VR871"
    assert any(note.startswith("within reach: ") for note in error.value.notes)
    assert not (tmp_path / "run").exists()


def test_nothing_to_search(tmp_path: Path) -> None:
    settings = SETTINGS.changed({"macs": 1000})
    with pytest.raises(TuneError, match="nothing in the spec") as error:
        tune(vr.apply("train every parameter", vit()), DATA, settings, out=tmp_path / "run")
    assert error.value.code == "VR870"


def test_what_hangs_together_has_no_ranks(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="hang together") as error:
        tuned(tmp_path / "run", KINDS, {"search": "ranked"})
    assert error.value.code == "VR872"


def test_wrong_prices_are_told() -> None:
    spec = KINDS.replace("mlp_kinds", "mlp_dear")
    with pytest.raises(VitrewriteError, match="prices of mlp_dear") as error:
        space_of(vr.apply(spec, vit()))
    assert error.value.code == "VR873"


def test_a_trained_model_is_not_searched(tmp_path: Path) -> None:
    rewritten = vr.apply(UNITS, vit())
    vr.save(rewritten, tmp_path / "delta.safetensors")
    vr.load(rewritten, tmp_path / "delta.safetensors")
    settings = SETTINGS.changed({"macs": middle(UNITS)})
    with pytest.raises(TuneError, match="trained already") as error:
        tune(rewritten, DATA, settings, out=tmp_path / "run")
    assert error.value.code == "VR874"


def test_settings_without_effect_are_told() -> None:
    text = "tune { macs = 1G, search = random, gate_lr = 0.1, cost_weight = 3 }"
    told = [w.message for w in vr.parse(f"{UNITS}{text}").warnings]
    assert len(told) == 2
    assert all("has no effect here" in each for each in told)
    assert "gate_lr" in vr.parse(f"{UNITS}tune {{ gate_lr = 0.1 }}").warnings[0].message


def test_long_lists_are_cut_where_clauses_are_told(done: tuple[Path, Rewritten]) -> None:
    spec = vr.parse(done[0] / "architecture.peft")
    assert "..." not in str(spec)
    told = vr.plan(spec, vit()).steps[0].clause.text
    assert len(told) < 300
    assert " in all]" in told
