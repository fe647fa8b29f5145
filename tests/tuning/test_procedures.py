"""What a pass can contribute: phases that score, prune and start again, losses, groups, schedules.

The procedures here are attached to LoRA, which has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vitrewrite as vr
from tests.authored import install
from vitrewrite import catalog
from vitrewrite.data import Batch
from vitrewrite.errors import TuneError
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import ParameterGroup, Phase, Procedure, Run, Settings, tune
from vitrewrite.tuning.loop import TrainingLoop

SETTINGS = Settings(steps=3, batch=32, log_every=1, checkpoint_every=2, lr=1e-2, keep=20)
SPEC = """model tiny.py:build(num_classes=4)
insert lora(rank={rank}) at blocks[*].attn.q
train head
"""


class Score(Phase):
    """Adds up gradients over the data; trains nothing."""

    name, update, settings = "score", False, {"steps": 5}

    def after_backward(self, run: Run) -> None:
        gradient = run.inserted("lora")[0].up.grad
        assert isinstance(gradient, torch.Tensor)
        run.memory["score"] = run.memory.get("score", 0) + gradient.abs().sum(0)
        run.memory.setdefault("steps", []).append(run.step)

    def finish(self, run: Run) -> None:
        run.memory["best"] = int(run.memory["score"].argmax())


class Retrain(Phase):
    """A smaller model, one of its matrices frozen, from new random weights."""

    name, settings = "retrain", {"steps": 4, "lr": 0.02}

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        small = vr.apply(SPEC.format(rank=1 + run.memory["best"]))
        for module in small.inserted("lora"):
            module.down.requires_grad_(False)
        return small

    def start(self, run: Run) -> None:
        run.rewind()
        with torch.no_grad():
            run.rewritten.module.head.bias.fill_(0.5)  # type: ignore[union-attr, operator]

    def finish(self, run: Run) -> None:
        run.memory["accuracies"] = [*run.memory.get("accuracies", []), run.score]


class PruneAndRewind(Procedure):
    def phases(self, run: Run) -> Sequence[Phase]:
        return [Phase(), Score(), Retrain()]


class Distil(Procedure):
    """A loss towards the base that fades, a group of its own, and a random path."""

    skips_parameters = True

    def groups(self, run: Run) -> Iterable[ParameterGroup]:
        return [ParameterGroup("head", ("head.",), lr=0.5, schedule="constant", weight_decay=0.0)]

    def before_step(self, run: Run) -> None:
        draw = torch.rand((), generator=run.generator("path"))
        run.memory["paths"] = [*run.memory.get("paths", []), float(draw)]

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        with torch.no_grad():
            wanted = run.base(batch.images)
        return {"distillation": (1 - run.progress) * F.mse_loss(output, wanted)}

    def after_step(self, run: Run) -> None:
        run.memory["done"] = run.step


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the pass `lora` a procedure."""
    return lambda made: monkeypatch.setattr(catalog.load("lora"), "procedure", lambda _: made)


def run(out: str, **more: Any) -> Rewritten:
    return tune(vr.apply(SPEC.format(rank=3)), "digits:0-3", SETTINGS, out=out, **more)


def same(first: str, second: str) -> bool:
    a, b = (load_file(Path(each) / "delta.safetensors") for each in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_phases_score_rebuild_and_rewind(here: Path, attach: Any) -> None:
    attach(PruneAndRewind())
    given = vr.apply(SPEC.format(rank=3))
    result = tune(given, "digits:0-3", SETTINGS, out="out")
    assert result is not given
    assert result.training["phases"] == ["train", "score", "retrain"]
    assert result.training["steps"] == 3 + 5 + 4
    names = [p.name for p in sorted(Path("out/checkpoints").iterdir())]
    totals = [(0, 0), (0, 2), (0, 3), (1, 3), (1, 5), (1, 7), (1, 8), (2, 8), (2, 10), (2, 12)]
    assert names == [f"{phase:02}-{total:08}" for phase, total in totals]
    folder = {n: load_file(f"out/checkpoints/{n}/tensors.safetensors") for n in names}
    trained, scored = folder["00-00000003"], folder["01-00000008"]
    for name in (n for n in trained if n.startswith("/model/")):
        assert torch.equal(trained[name], scored[name]), name
    assert scored["/run/memory/score"].shape == (3,)
    start, end = folder["02-00000008"], folder["02-00000012"]
    assert torch.equal(start["/model/head.bias"], torch.full((4,), 0.5))
    down, up = (f"/model/blocks.0.attn.qkv_lora.{n}" for n in ("down", "up"))
    assert torch.equal(start[down], end[down])
    assert not torch.equal(start[up], end[up])
    assert end[up].shape[1] == 1 + int(scored["/run/memory/score"].argmax())


@pytest.mark.parametrize("updates", [8, pytest.param(11, marks=pytest.mark.slow)])
def test_a_procedure_goes_on_where_it_was(
    updates: int, here: Path, attach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(PruneAndRewind())
    run("whole")
    original, calls = TrainingLoop._update, []

    def interrupted(loop: TrainingLoop, sums: Any) -> None:
        calls.append(1)
        if len(calls) == updates:
            raise KeyboardInterrupt
        original(loop, sums)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    run("out", resume=True)
    assert same("out", "whole")


def test_losses_groups_and_random_choices(here: Path, attach: Any) -> None:
    import json

    attach(Distil())
    result = run("out")
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    for line in steps:
        assert line["terms"].keys() == {"task", "distillation"}
        assert line["loss"] == pytest.approx(sum(line["terms"].values()))
        assert line["rates"]["head"] == 0.5
    # At first the model is the base, so there is nothing to distil.
    assert steps[0]["terms"]["distillation"] < 1e-9 < steps[1]["terms"]["distillation"]
    assert [line["rates"]["weights"] for line in steps] == pytest.approx([0.01, 0.0075, 0.0025])
    state = json.loads(Path("out/checkpoints/00-00000003/state.json").read_text())
    memory = state["run"]["memory"]
    assert memory["done"] == 3
    assert len(set(memory["paths"])) == 3
    assert result.training["phases"] == ["train"]


def test_hooks_of_all_passes_act_but_only_one_brings_phases(here: Path, attach: Any) -> None:
    spec = "insert lora(rank=2) at blocks[0].attn.q\ninsert lora(rank=2) at blocks[1].attn.q\n"
    both = f"model tiny.py:build\n{spec}"
    attach(Distil())
    tune(vr.apply(both), "digits", Settings(steps=1), out="hooks")
    attach(PruneAndRewind())
    with pytest.raises(TuneError, match="VR854"):
        tune(vr.apply(both), "digits", Settings(steps=1), out="phases")


def test_what_cannot_be_in_a_checkpoint_is_refused(here: Path, attach: Any) -> None:
    class Odd(Procedure):
        def before_step(self, run: Run) -> None:
            run.memory["odd"] = {"inner": object()}

    attach(Odd())
    with pytest.raises(TypeError, match="/run/memory/odd/inner"):
        run("out")


def test_a_phase_without_steps_is_measured(here: Path, attach: Any) -> None:
    class Choose(Phase):
        name, settings = "choose", {"epochs": 0, "steps": None}

    class Measured(Procedure):
        def phases(self, run: Run) -> Sequence[Phase]:
            return [Phase(), Choose()]

    attach(Measured())
    result = run("out")
    text = Path("out/metrics.jsonl").read_text().splitlines()
    accuracies = [line.partition('"accuracy": ')[2].split(",")[0] for line in text]
    first, second = (float(a) for a in accuracies if a)
    assert first == second == result.training["accuracy"]


BY_SITE = SPEC.replace("*", "0:2").replace("rank={rank}", "rank=[2, 3], dropout=0")


class Ranks(Procedure):
    """Notes the options of the pass at each site."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def before_step(self, run: Run) -> None:
        pairs = zip(run.inserted("lora"), run.passes("lora"), strict=True)
        seen: Any = [(m.up.shape[1], method.rank) for m, method in pairs]  # type: ignore[union-attr, index, attr-defined]
        run.memory["seen"] = [list(pair) for pair in seen]


def test_a_procedure_sees_the_options_of_each_site(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Ranks] = []

    def procedure(method: Any) -> Ranks:
        made.append(Ranks())
        return made[-1]

    monkeypatch.setattr(catalog.load("lora"), "procedure", procedure)
    data = {}
    monkeypatch.setattr(Ranks, "after_step", lambda _, run: data.update(run.memory))
    tune(vr.apply(BY_SITE), "digits:0-3", SETTINGS, out="out")
    assert data["seen"] == [[2, 2], [3, 3]]
    assert len(made) == 2


def test_a_procedure_of_the_first_site_only_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.load("lora"), "procedure", lambda method: Ranks(method.rank))
    with pytest.raises(TuneError, match=r"VR859 lora.rank differs from site to site") as got:
        tune(vr.apply(BY_SITE), "digits:0-3", SETTINGS, out="out")
    assert "at 'blocks[1].attn.q' it is 3" in str(got.value)
    assert "rank=[2, 3]" in str(got.value)
    assert not Path("out").exists()


NORMED = """
class Normed(nn.Module):
    inserted_by = "normed"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.norm, self.out = nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x))


@dataclass(frozen=True)
class NormedHead(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)

    def rewrite(self, head: Any) -> None:
        head.replace(Normed(head.in_features))
"""


def test_a_batch_norm_that_a_pass_put_in_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, here, normed=NORMED)
    rewritten = vr.apply("model tiny.py:build(num_classes=4)\nreplace head with normed()\n")
    trained = tune(rewritten, "digits:0-3", SETTINGS, out="out").delta()
    delta = load_file("out/delta.safetensors")
    assert delta.keys() == trained.keys()
    assert int(delta["head.normed.norm.num_batches_tracked"]) == SETTINGS.steps
    assert float(delta["head.normed.norm.running_mean"].abs().max()) > 0
