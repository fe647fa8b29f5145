"""SETR-PUP against numbers from MMSegmentation and from the authors' code, and in use."""

from __future__ import annotations

import ast
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from vitrewrite.passes.setr import SetrHeads

import vitrewrite as vr
from tests.authored import install
from tests.cli.invoke import invoke
from tests.goldens import Case, case
from tests.tuning.scenes import scenes
from vitrewrite import models
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.emission.realise import realise
from vitrewrite.folder.writing import model_text
from vitrewrite.profiling.run import measure
from vitrewrite.tasks import Dense
from vitrewrite.tuning import Settings, tune
from vitrewrite.verification import verify_rewritten

HEADS = {"setr-pup": "mmseg", "setr-pup-authors": "authors"}


def rewritten_of(golden: Case) -> Any:
    """The case's base with its heads, on its weights."""
    options = f"classes=3, width=12, taps=[0, 1, 2, 3], aux={HEADS[golden.name]}"
    made = vr.apply(f"replace head with setr({options})\ntrain every parameter\n", golden.base())
    prefix = "method.head."
    given = {k.removeprefix(prefix): v for k, v in golden.tensors.items() if k.startswith(prefix)}
    (heads,) = made.inserted("setr")
    missing, extra = heads.load_state_dict(given, strict=False)
    assert not extra
    assert all("num_batches" in name for name in missing)
    return made


def losses(made: Any, output: Any, labels: torch.Tensor) -> list[torch.Tensor]:
    """The task's loss and, as training adds them, those of the other heads."""
    run: Any = SimpleNamespace(task=Dense(3), settings=Settings())
    (method,) = made.result.methods.values()
    terms = method.procedure().terms(run, SimpleNamespace(labels=labels), output)
    assert all(name.startswith("aux.") for name in terms)
    return [run.task.loss(output, labels), *terms.values()]


@pytest.mark.parametrize("name", HEADS)
def test_golden_outputs_losses_and_gradients(name: str) -> None:
    golden = case(name)
    given = golden.tensors
    made = rewritten_of(golden)
    module = made.module
    golden.close(module.eval()(given["input"]), "output")
    output = module.train()(given["input"])
    golden.close(output[0], "output_train")
    for i, each in enumerate(output[1:]):
        if f"aux_train.{i}" in given:
            golden.close(each, f"aux_train.{i}")
    found = losses(made, output, given["labels"])
    factors = torch.tensor([1.0, *(0.4 for _ in found[1:])])
    torch.testing.assert_close(torch.stack(found), given["loss_terms"] * factors)
    torch.stack(found).sum().backward()
    noise = golden.about.get("rounding_noise_gradients", ())
    names = {k.removeprefix("grad."): v for k, v in given.items() if k.startswith("grad.")}
    gradients = {
        n if n.startswith("head.") else f"base.{n}": p.grad for n, p in module.named_parameters()
    }
    assert names.keys() <= gradients.keys()
    assert {n for n in gradients if n.startswith("head.")} <= names.keys()
    largest = max(float(v.abs().max()) for v in names.values())
    for key, expected in names.items():
        bound = 1e-5 * largest
        if f"grad.{key}" not in noise:
            bound = 1e-3 * float(expected.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(
            gradients[key], expected, rtol=0, atol=bound, msg=partial("{}: {}".format, key)
        )
    for key, expected in given.items():
        if key.startswith("after_step."):
            buffer = module.get_buffer(key.removeprefix("after_step."))
            torch.testing.assert_close(buffer, expected)


# -- on models ------------------------------------------------------------------------------------

TINY = "model vit_tiny_patch16_224(img_size=64, depth=4, embed_dim=32, num_heads=2)\n"
HEAD = "replace head with setr(classes=3, width=8)\n"
TAPS = (1, 2, 3)  # those of 4 blocks that are nearest to 10, 15, 20 and 24 of 24
AROUND = {
    "lora": "insert lora(rank=2) at blocks[*].attn.{q, v}\n",
    "prompts": "prepend prompt(count=3) to blocks[*]\n",
    "late prompts": "prepend prompt(count=3) to blocks[2:]\n",
}


def used(made: Any) -> Any:
    """With weights and statistics as training leaves them: none is zero or one."""
    torch.manual_seed(0)
    for name, tensor in made.delta().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return made


def test_counts_of_the_shipped_specs() -> None:
    plan = vr.plan("setr_pup_lora")
    assert all(verdict.holds is not False for verdict in plan.claims)
    assert plan.measures.params.trainable == 13_143_640 + 2 * 24 * 2 * 16 * 1024
    assert plan.measures.macs_lowered == pytest.approx((362.0 + 63.2) * 1e9, rel=1e-3)


@pytest.mark.parametrize(("kind", "main", "others"), [
    ("mmseg", 4_171_414, 3 * 2_990_742), (None, 4_171_414, 0),
    ("authors", 4_171_414 + 4 * 256, 4 * (2_990_742 - 256 * 256 * 9 - 2 * 256 + 256)),
])  # fmt: skip
def test_published_sizes(kind: str | None, main: int, others: int) -> None:
    with torch.device("meta"):
        heads = SetrHeads(1024, 256, 150, 1 if kind is None else 4, kind, 16)
    assert sum(p.numel() for p in heads.main.parameters()) == main
    assert sum(p.numel() for p in heads.aux.parameters()) == others


@pytest.mark.parametrize("around", AROUND)
def test_prompts_are_left_out_and_only_the_main_head_is_lowered(around: str) -> None:
    """What the head sees is the patches alone: before lowering, and behind it without prompts."""
    made = used(vr.apply(TINY + AROUND[around] + HEAD + "train head\n"))
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    module: Any = made.module.eval()
    features = module.forward_features(images)
    assert [tuple(f.shape) for f in features] == [(3, 4, 4, 32)] * len(features)
    seen: list[torch.Tensor] = []
    for index in TAPS:
        block = module.get_submodule(f"blocks.{index}")
        block.register_forward_hook(lambda _m, _x, y: seen.append(y))
    module(images)
    for stream, patches in zip(seen, features, strict=True):
        assert torch.equal(stream[:, -16:].unflatten(1, (4, 4)), patches)
    lowered = vr.lower(made).module.eval()
    torch.testing.assert_close(lowered(images), module(images), rtol=1e-4, atol=1e-5)
    names = lowered.state_dict().keys()
    assert not [n for n in names if "aux" in n or ".bn." in n or "lora" in n]
    assert isinstance(lowered.forward_features(images), torch.Tensor)  # one tap is left
    assert lowered.train()(images).shape == (3, 3, 64, 64)


def test_what_is_printed_is_captured_as_one_program_for_both_modes(tmp_path: Path) -> None:
    """Training takes the result of the heads apart, evaluation returns it as it is."""
    made = used(vr.apply(TINY + HEAD))
    (tmp_path / "setr_model.py").write_text(model_text(made))
    twin: Any = models.create(f"{tmp_path / 'setr_model.py'}:build")
    twin.load_state_dict(made.module.state_dict())
    captured: Any = vr.capture(twin)
    again = realise(captured).text
    assert ast.dump(ast.parse(again)) == ast.dump(ast.parse(made.source.text))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        found, wanted = (m.train(training)(images) for m in (captured, twin))
        assert isinstance(found, tuple) == training
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("aux", "graphs"),
    [
        ("mmseg", False), ("authors", False), ("none", False),
        pytest.param("mmseg", True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_is_claimed_holds(aux: str, graphs: bool) -> None:
    head = HEAD.replace("width=8", f"width=8, aux={aux}")
    checks = vr.verify(vr.apply(TINY + AROUND["prompts"] + head), graphs=graphs)
    (found,) = (c for c in checks if "gradients reach" in c.name)
    assert ("in training alone" in found.note) == (aux != "none")


HALF = """
class Half(nn.Module):
    inserted_by = "half"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.both, self.training_alone = nn.Linear(width, 2), nn.Linear(width, 2)
        self.never = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        y = self.both(x)
        return (y, self.training_alone(x)) if self.training else y


@dataclass(frozen=True)
class HalfUsed(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)

    def rewrite(self, head: Any) -> None:
        head.replace(Half(head.in_features))
"""


def test_what_neither_mode_reaches_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, half=HALF)
    made = vr.apply(TINY + "replace head with half()\n")
    (found,) = (c for c in verify_rewritten(made, graphs=False) if "gradients" in c.name)
    assert found.holds is False
    assert found.note == "head.never.weight, head.never.bias"


def test_the_first_values() -> None:
    (heads,) = vr.apply(TINY + "replace head with setr(aux=authors)\n").inserted("setr")
    weight = heads.main.convs[1].conv.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert float(heads.aux[2].classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    zero = ("bias", "running_mean")
    for name, tensor in heads.state_dict().items():
        if name.endswith(zero):
            assert not tensor.any(), name
        if name.endswith(("norm.weight", "bn.weight", "running_var")):
            assert bool((tensor == 1).all()), name


def test_a_run_supervises_all_heads_and_judges_the_main_one(tmp_path: Path) -> None:
    scenes(tmp_path / "data", training=8, validation=4)
    made = vr.apply(TINY + AROUND["lora"] + HEAD + "train head\n")
    before = {k: v.clone() for k, v in made.delta().items()}
    settings = Settings(steps=4, batch=4, lr=1e-2, optimiser="sgd", log_every=1)
    tune(made, str(tmp_path / "data"), settings, out=tmp_path / "out")
    lines = [json.loads(s) for s in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert {*steps[0]["terms"]} == {"task", "aux.0", "aux.1"}
    assert all(0.2 < s["terms"]["aux.0"] / (0.4 * s["terms"]["task"]) < 5 for s in steps)
    assert 0 < made.report["training"]["mIoU"] < 1
    moved = [k for k, v in made.delta().items() if not torch.equal(v, before[k])]
    assert {k.split(".")[0] for k in moved} == {"head", "blocks"}
    assert any("running_var" in k for k in moved)
    vr.emit(vr.lower(made), tmp_path / "lowered")
    assert invoke("lower", tmp_path / "lowered", "--undo", "--out", tmp_path / "again").status == 0


def test_sensitivities_are_those_of_the_loss_with_the_new_head(tmp_path: Path) -> None:
    scenes(tmp_path / "data", training=3, validation=1)
    spec = TINY + HEAD + "insert lora(rank=2) at sensitive(budget=1K, samples=3, scale=8K)\n"
    found = measure(vr.parse(spec), data=tmp_path / "data")
    module: Any = vr.apply(TINY + HEAD + "train every parameter\n").module.eval()
    images = open_data(str(tmp_path / "data"), Preprocessing.of(module)).train
    (batch,) = batches(images, 3, seed=0, limit=3)
    name = "blocks.1.attn.qkv.weight"
    expected = torch.zeros_like(module.get_parameter(name))
    for x, y in zip(batch.images, batch.labels, strict=True):
        scores = F.interpolate(module(x[None]), y.shape, mode="bilinear")
        loss = F.cross_entropy(scores, y[None], ignore_index=255)
        expected += torch.autograd.grad(loss, module.get_parameter(name))[0] ** 2
    torch.testing.assert_close(found.tensors[f"sensitivity.{name}"], expected)
    assert not found.tensors["sensitivity.norm.weight"].any()  # nothing reads it any more
    made = vr.apply(spec, profile=found)
    assert 0 < made.report["params"]["trainable_without_head"] <= 1000


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (TINY + HEAD.replace("width=8", "taps=[1, 4]"), "VR403", "4 is none of 4 blocks"),
        (TINY + HEAD.replace("width=8", "taps=[2, 1]"), "VR403", "not in increasing order"),
        (TINY + HEAD.replace("classes=3", "classes=1"), "VR203", "classes"),
        (
            "model vit_tiny_patch16_224(img_size=24, patch_size=8)\n" + HEAD, "VR410",
            "not multiples of 16",
        ),
        ("model vit_tiny_patch16_224(img_size=16)\n" + HEAD, "VR410", "no full grid"),
        ("model swin_tiny_patch4_window7_224\n" + HEAD, "VR410", "no sequence"),
        ("model deit_tiny_distilled_patch16_224\n" + HEAD, "VR410", "several heads"),
        (TINY + "insert merge.tome(r=2) after blocks[*].attn\n" + HEAD, "VR410", "no full grid"),
        (
            TINY.replace("num_heads=2", "num_heads=2, patch_drop_rate=0.5") + HEAD, "VR416",
            "the grid of patches",
        ),
        (
            TINY + "insert lora() at head\n" + HEAD, "VR401", "another clause adapts it",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(text: str, code: str, told: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(text)
    assert caught.value.code == code
    assert told in str(caught.value)
