"""Training of stitches: draws, scores, what the largest model teaches, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner

import vitrewrite as vr
import vitrewrite.cli.showing
from tests.passes.test_snnet import STITCH, anchors, golden
from tests.passes.test_stitch_bias import ESTA, NUMBERS, OPTIONS, esta, names
from vitrewrite.cli.commands import cli
from vitrewrite.data import Batch
from vitrewrite.language.settings import Settings
from vitrewrite.profiling import latency
from vitrewrite.report.palette import Interval, best, intervals
from vitrewrite.report.stitches import TrainedStitches
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tasks import Classification
from vitrewrite.tuning import tune
from vitrewrite.tuning.loop import TrainingLoop
from vitrewrite.tuning.palette import draw, shares
from vitrewrite.tuning.stitches import StitchPhase

SCORED = Settings(stitch_sampling="scored", stitch_teacher="anchor")


def test_intervals_of_the_paper() -> None:
    three = "stitch tiny=vit_tiny, small=vit_small, base=vit_base with snnet(ends=inner)\n"
    space = vr.plan(three).measures.stitches
    assert space is not None
    parts = intervals([stitch.macs for stitch in space.stitches], 15)
    assert [len(p.stitches) for p in parts] == [7, 12, 12, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4]
    folded = vr.plan("esta").measures.stitches  # the range of the paper is that of folded models
    assert folded is not None
    costs = [stitch.macs_lowered for stitch in folded.stitches]
    assert costs == [stitch.macs for stitch in space.stitches]
    assert min(costs) / 1e9 == pytest.approx(1.254, abs=5e-4)
    assert max(costs) / 1e9 == pytest.approx(17.564, abs=5e-4)


def test_intervals_have_every_stitch_once_and_one_if_costs_are_equal() -> None:
    parts = intervals([5, 1, 9, 3, 9], 4)
    assert [part.stitches for part in parts] == [(1,), (3,), (0,), (2, 4)]
    assert intervals([3, 3], 4) == (Interval(3, 3, (0, 1)),)


def test_draws_are_by_interval_and_then_by_score() -> None:
    parts = (Interval(0, 1, (0,)), Interval(1, 2, ()), Interval(2, 3, (1, 2)))
    generator = torch.Generator().manual_seed(0)
    found = [
        draw(parts, [0.0, 1.0, 0.0], generator, temperature=1.0, normalised=False)
        for _ in range(4000)
    ]
    wanted = [0.5, 0.5 * 0.7311, 0.5 * 0.2689]
    assert [found.count(n) / 4000 for n in range(3)] == pytest.approx(wanted, abs=0.03)
    assert shares([200.0, 100.0], temperature=1.0, normalised=False)[0] == 1
    assert float(shares([200.0, 100.0], temperature=1.0, normalised=True)[0]) < 0.7
    assert float(shares([200.0, 100.0], temperature=100.0, normalised=False)[0]) < 0.8


def test_a_stitch_that_was_never_drawn_is_no_best() -> None:
    part = Interval(0, 1, (0, 1))
    assert best(part, [0.0, 3.0], [4, 0]) == 0
    assert best(part, [0.0, 3.0], [0, 0]) is None


@pytest.mark.parametrize("stitch", ["1_2", "2_1"])
def test_a_step_is_that_of_the_reference(stitch: str) -> None:
    about, tensors = golden("esta-pst")
    made = esta(model=anchors(about), example=tensors["input"])
    delta = made.delta()
    with torch.no_grad():
        for name, (tensor, index) in names(made, tensors, "method.").items():
            delta[tensor][index] = tensors[name]
    phase, number = StitchPhase(made, SCORED), NUMBERS[stitch]
    run: Any = SimpleNamespace(
        module=made.module.eval(),
        settings=SCORED,
        memory={},
        progress=0.0,
        generator=lambda _: torch.Generator().manual_seed(0),
        task=Classification(10),
    )
    phase.before_step(run)
    phase.memory(run)["drawn"] = number
    batch = Batch(tensors["input"], tensors["labels"].long())
    output = phase.output(run, run.module, batch.images)
    torch.testing.assert_close(output, tensors[f"output.{stitch}"], rtol=0, atol=1e-4)
    loss = phase.loss(run, batch, output)
    terms = phase.terms(run, batch, output)
    wanted = about["step"][stitch]
    assert float(loss.detach()) == pytest.approx(wanted["student_loss"], rel=1e-4)
    assert float(terms["anchor"].detach()) == pytest.approx(wanted["teacher_ce"], rel=1e-4)
    (loss + terms["anchor"]).backward()
    phase.after_backward(run)
    found = phase.memory(run)["scores"][number]
    assert found == pytest.approx(0.1 * wanted["snip_score"], rel=1e-4)
    # The gradients that the optimiser sees are those of both losses.
    after = {n: p.grad.clone() for n, p in run.module.named_parameters() if p.grad is not None}
    run.module.zero_grad()
    own = run.module.stitch(batch.images, number)
    said = run.module.stitch(batch.images, phase.largest)
    hard = said.detach().argmax(1)
    cross = torch.nn.functional.cross_entropy
    whole = 0.5 * cross(own, batch.labels) + 0.5 * cross(own, hard) + cross(said, batch.labels)
    whole.backward()
    for name, parameter in run.module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(after[name], parameter.grad, rtol=1e-4, atol=1e-6)


def trained(folder: Path, made: Rewritten | None = None, **settings: Any) -> dict[str, Any]:
    made = made or vr.apply(f"{STITCH}{OPTIONS}, ends=inner)\n{ESTA}train every base.head\n")
    given: dict[str, Any] = {
        "steps": 6, "batch": 8, "stitch_sampling": "scored", "stitch_teacher": "anchor",
        "stitch_intervals": 4, "stitch_warmup": 0.5, **settings,
    }  # fmt: skip
    tune(made, "digits", Settings(**given), out=folder)
    found: dict[str, Any] = made.training["stitches"]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run by MACs, and what it says of stitches; nothing is written into it."""
    folder = tmp_path_factory.mktemp("finished") / "a"
    return folder, trained(folder)


def test_a_run_scores_what_it_draws_and_says_the_best_of_each_interval(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, found = finished
    assert sum(found["drawn"]) == 6
    assert [bool(n) for n in found["drawn"]] == [score > 0 for score in found["scores"]]
    bests = [row["best"] for row in found["intervals"] if row["best"] is not None]
    assert sorted(map(int, found["measured"])) == sorted(bests)
    report = json.loads((folder / "report.json").read_text())
    assert report["training"]["stitches"] == found
    assert trained(tmp_path / "b") == found  # all draws hang on the seed
    again = vr.apply(f"{STITCH}{OPTIONS}, ends=inner)\n{ESTA}train every base.head\n")
    before = {n: p.detach().clone() for n, p in again.module.named_parameters()}
    trained(tmp_path / "c", again, steps=1, weight_decay=0.1)
    table = "front.blocks.0.attn.qkv_stitch_bias"
    module: Any = again.module.get_submodule(table)
    moved = (module.table.detach() != before[f"{table}.table"]).any(1)
    drawn = again.training["stitches"]["drawn"].index(1)
    assert [n for n, m in zip(module.stitches, moved, strict=True) if m] == [
        n for n in module.stitches if n == drawn
    ]


def test_uniform_draws_measure_all(tmp_path: Path) -> None:
    made = vr.apply(f"{STITCH}ends=inner)\ntrain every base\n")
    found = trained(tmp_path / "a", made, stitch_sampling="uniform", stitch_teacher="none")
    assert len(found["measured"]) == len(found["drawn"]) == 8


def test_a_resumed_run_ends_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        steps=8,
        batch=8,
        checkpoint_every=3,
        stitch_sampling="scored",
        stitch_teacher="anchor",
        stitch_warmup=0.2,
        stitch_intervals=3,
        stitch_start="score",
        stitch_scores="maximum",
        stitch_momentum=0.5,
        stitch_temperature=0.5,
        stitch_weight=0.3,
    )

    def run(out: str, *, resume: bool = False) -> tuple[dict[str, torch.Tensor], Any]:
        made = vr.apply(f"{STITCH}{OPTIONS}, ends=inner)\n{ESTA}train every base.head\n")
        tune(made, "digits", settings, out=tmp_path / out, resume=resume, device="cpu")
        return made.delta(), made.training["stitches"]

    whole, told = run("whole")
    original, calls = TrainingLoop._update, []

    def update(self: TrainingLoop, sums: dict[str, torch.Tensor]) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        original(self, sums)

    monkeypatch.setattr(TrainingLoop, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    monkeypatch.undo()
    parts, again = run("parts", resume=True)
    assert again == told
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_what_cannot_be(tmp_path: Path) -> None:
    small = "depth=1, embed_dim=32, num_heads=4, img_size=32, patch_size=16, num_classes=10"
    one = vr.apply(f"model vit_tiny_patch16_224({small})\ntrain head")
    with pytest.raises(vr.VitrewriteError, match=r"VR536 stitch_sampling is about stitches"):
        tune(one, "digits", SCORED, out=tmp_path / "a")
    with pytest.raises(vr.VitrewriteError, match=r"VR203 tune.stitch_momentum"):
        vr.plan(f"{STITCH})\ntune {{ stitch_momentum = 1.0 }}\n")


def test_the_best_of_an_interval_is_shown_and_taken_out(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, found = finished
    row = next(row for row in found["intervals"] if row["best"] is not None)
    run = CliRunner().invoke
    shown = run(cli, ["show", "stitches", str(folder), "--svg", str(tmp_path / "a.svg")])
    assert shown.exit_code == 0, shown.output
    assert f"stitch {row['best']} " in shown.output
    drawing = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    dots = [each for each in drawing if each.tag.endswith("circle")]
    bests = sum(each["best"] is not None for each in found["intervals"])
    assert len(dots) == len(found["scores"]) + bests
    at = (row["from"] + row["to"]) / 2e6
    arguments = ["lower", str(folder), "--out", str(tmp_path / "b"), "--macs", f"{at}M"]
    lowered = run(cli, arguments)
    assert lowered.exit_code == 0, lowered.output
    assert f"stitch {row['best']} of" in (tmp_path / "b" / "model.py").read_text()


TIMES = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
"""Milliseconds of the eight stitches: the first model takes the longest."""


def clock(steps: Any, rounds: int, device: Any, tick: Any) -> dict[str, list[float]]:
    """In place of time: every stitch runs once, and takes what the table says."""
    for step in steps.values():
        step()
        tick()
    return {name: [TIMES[int(name)] / 1000] * rounds for name in steps}


def test_intervals_of_time_are_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "timed", clock)
    timed: dict[str, Any] = {"steps": 2, "stitch_by": "latency"}
    found = trained(tmp_path / "a", stitch_rounds=3, stitch_batch=2, **timed)
    assert found["latency"]["ms"] == TIMES
    assert [found["latency"][key] for key in ("batch", "rounds", "device")] == [2, 3, "cpu"]
    assert [row["stitches"] for row in found["intervals"]] == [[1, 2], [3, 4], [5, 6], [0, 7]]
    assert (found["intervals"][0]["from"], found["intervals"][-1]["to"]) == (1.0, 9.0)
    (tmp_path / "t.json").write_text(json.dumps({"ms": TIMES}))
    monkeypatch.setattr(latency, "timed", None)  # a table is not measured
    table = str(tmp_path / "t.json")
    again = trained(tmp_path / "b", stitch_table=table, **timed)
    assert again["scores"] == found["scores"]
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    shown = TrainedStitches.of(tmp_path / "a", report)
    assert (shown.by, shown.costs) == ("latency", tuple(TIMES))
    assert all(" ms " in line for line in shown.lines())
    row = next(row for row in found["intervals"] if row["best"] is not None)
    assert shown.timed(None).at(row["to"] - 0.5) == row["best"]
    assert shown.split().by == "macs"


def test_a_run_by_macs_is_split_by_latency_afterwards(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.setattr(latency, "timed", clock)
    run, table = CliRunner().invoke, str(tmp_path / "t.json")
    arguments = ["show", "stitches", str(folder), "--latency", table, "--json"]
    first = run(cli, arguments)
    assert first.exit_code == 0, first.output
    assert json.loads(Path(table).read_text())["ms"] == TIMES
    monkeypatch.setattr(latency, "timed", None)
    shown = json.loads(run(cli, [*arguments, "--svg", str(tmp_path / "a.svg")]).stdout)
    assert shown["by"] == "latency"
    assert [row["stitches"] for row in shown["intervals"]] == [[1, 2], [3, 4], [5, 6], [0, 7]]
    assert "9 ms</text>" in (tmp_path / "a.svg").read_text()
    lower = ["lower", str(folder), "--out", str(tmp_path / "b")]

    def code(*more: str) -> str:
        error: Any = run(cli, [*lower, *more]).exception
        return str(error.code)

    assert code("--latency", "5ms") == "VR540"
    assert code("--table", table) == code("--latency", "5ms", "--macs", "1G") == "VR905"
    row = next(row for row in shown["intervals"] if row["best"] is not None)
    at = f"{row['from'] / 1000 + 0.0005:g}s"
    lowered = run(cli, [*lower, "--latency", at, "--table", table])
    assert lowered.exit_code == 0, lowered.output
    assert f"stitch {row['best']} of" in (tmp_path / "b" / "model.py").read_text()
    assert "is no time such as 12ms" in run(cli, [*lower, "--latency", "5"]).stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [("[1]", "it is no object"), ('{"ms": [1, 2]}', "it has 2 numbers, and there are 8 stitches"),
     ('{"ms": [1, 2, 3, 4, 5, 6, 7, -1]}', "-1.0 ms is no time"), ("{", "Expecting"),
     ('{"ms": [1, 2, 3, 4, 5, 6, 7, 8], "sides": 2}', "it is no object")],
)  # fmt: skip
def test_what_is_no_table_of_latencies(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(vr.VitrewriteError, match=f"VR541 .*{why}"):
        latency.Latencies.read(tmp_path / "t.json", 8)  # type: ignore[attr-defined]


def test_stitches_that_are_timed_are_what_is_taken_out() -> None:
    made = vr.apply(f"{STITCH}{OPTIONS}, ends=inner)\n{ESTA}train every base.head\n")
    with torch.no_grad():
        for tensor in made.delta().values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    pool: dict[str, Any] = {}
    x = torch.randn(2, 3, 32, 32)
    for number in (0, 3, 7):
        timed = latency._deployed(made, number, torch.device("cpu"), pool)
        wanted = vr.lower(made, stitch=number).module.eval()(x)
        torch.testing.assert_close(timed(x), wanted, rtol=1e-4, atol=1e-4)
    found = latency.latencies_of(made, torch.device("cpu"), batch=1, rounds=1)
    assert len(found.ms) == 8


def test_what_cannot_be_taken_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"from": 10, "to": 20, "stitches": [0], "best": 0},
        {"from": 20, "to": 30, "stitches": [1], "best": None},
    ]
    palette = TrainedStitches("a", (10, 25), ("x", "y"), {"intervals": rows})
    assert palette.at(15) == palette.at(20) == 0
    for cost in (25, 31):
        with pytest.raises(vr.VitrewriteError, match="VR539 no stitch was chosen in the interval"):
            palette.at(cost)
    made = vr.apply(f"{STITCH}ends=inner)\n")
    vr.emit(made, tmp_path / "a")
    with pytest.raises(vr.VitrewriteError, match=r"VR538 .* has no stitches that were trained"):
        TrainedStitches.of(tmp_path / "a", json.loads((tmp_path / "a" / "report.json").read_text()))


def test_the_command_solves_the_layers_from_the_images(tmp_path: Path) -> None:
    spec = tmp_path / "esta.peft"
    spec.write_text(f"{STITCH}{OPTIONS}, ends=inner)\n{ESTA}train every base.head\n")
    arguments = [
        "tune", str(spec), "data=digits", "tune.steps=1", "tune.batch=8",
        "tune.stitch_sampling=scored", "--out", str(tmp_path / "a"),
    ]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["calibration"]["images"] == 100
    again = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
