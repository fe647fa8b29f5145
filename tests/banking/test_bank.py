"""Banks: each sample of a mixed batch gets the bits that its delta alone yields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import fx, nn

import vitrewrite as vr
from tests.hf.zoo import ZOO as HF
from tests.models import spread
from tests.test_capture import tiny
from vitrewrite.banking.slots import TaskSlots
from vitrewrite.folder.adapter import save_adapter
from vitrewrite.rewrite.rewritten import Rewritten

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"
SPECS = {
    "lora": LORA,
    "lora of rank 1": "insert lora(rank=1) at blocks[*].attn.qkv + blocks[*].mlp.fc2\n",
    "ssf": "insert ssf() at every conv in patch_embed + blocks[*].{norm1, norm2} + norm\n"
    "insert ssf() at blocks[*].attn.{qkv, proj}\ntrain head\n",
    "adaptformer": "insert adaptformer(bias=true) at blocks[*].mlp_branch\ntrain head\n",
    "adapter": "insert adapter(hidden=4) at blocks[*].mlp.fc2 + blocks[0].attn.{q, proj}\n",
    "sparse and norms": "train head + norm + every norm in blocks\n",
    "biases": "train every bias in blocks\n",
    "prompts": "prepend prompt(count=3) to blocks[*]\nprepend kv_prompt(n=2) to blocks[0].attn\n",
    "merging": "insert lora(rank=2) at blocks[*].attn.v\ninsert merge.bdm() after blocks[0].attn\n",
}
MIXED = ["d", "a", "a", "c", "b", "d"]


def deltas(rewritten: Rewritten, names: str = "abcd") -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        found[name] = {
            k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in rewritten.delta().items()
        }
    return found


@torch.no_grad()
def alone(
    rewritten: Rewritten,
    held: Mapping[str, Mapping[str, torch.Tensor]],
    x: torch.Tensor,
    tasks: list[str],
) -> torch.Tensor:
    """Each sample as the rewritten model computes it in this batch with the delta of its task."""
    before = {k: v.clone() for k, v in rewritten.delta().items()}
    rows = []
    for i, task in enumerate(tasks):
        for name, tensor in rewritten.delta().items():
            tensor.copy_(held[task][name])
        found = rewritten.module.eval()(x)
        rows.append((found if isinstance(found, torch.Tensor) else next(iter(found.values())))[i])
    for name, tensor in rewritten.delta().items():
        tensor.copy_(before[name])
    return torch.stack(rows)


def images(count: int = 6, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_mixed_batch_is_each_delta_alone_bit_for_bit(spec: str) -> None:
    rewritten = vr.apply(spec, tiny())
    held = deltas(rewritten)
    bank = vr.bank(rewritten, held, capacity=5)
    x = images()
    with torch.no_grad():
        assert torch.equal(bank.module(x, MIXED), alone(rewritten, held, x, MIXED))
        assert torch.equal(bank.module(x, "b"), alone(rewritten, held, x, ["b"] * 6))
        assert torch.equal(bank.module(x[:2], [3, 0]), alone(rewritten, held, x[:2], ["d", "a"]))
        assert torch.equal(bank.module(x[:1], "c"), alone(rewritten, held, x[:1], ["c"]))


FAMILIES = {
    "windows, rows apart": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=16,
            depths=(2, 1), num_heads=(1, 2), num_classes=5,
        ), 64, "insert lora(rank=2) at blocks[*].attn.{q, v}\n"
        "insert ssf() at blocks[*].attn.proj\ntrain head\n",
    ),
    "a model of transformers": (lambda: HF["vit"].build(), 32, LORA),
    "programs that differ in training": (
        lambda: tiny(drop_path_rate=0.2, proj_drop_rate=0.1), 32,
        "insert lora(rank=2) at blocks[*].mlp.fc1\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_other_models(name: str) -> None:
    build, side, spec = FAMILIES[name]
    torch.manual_seed(0)
    rewritten = vr.apply(spec, spread(build()).eval())
    held = deltas(rewritten)
    module, x = vr.bank(rewritten, held).module, images(4, side)
    tasks = ["a", "c", "c", "b"]
    with torch.no_grad():
        found: Any = module(x, tasks)
    found = found if isinstance(found, torch.Tensor) else next(iter(found.values()))
    assert torch.equal(found, alone(rewritten, held, x, tasks))


def test_samples_alone_are_computed_once_where_that_gives_the_same_bits() -> None:
    rewritten = vr.apply(LORA, tiny())
    bank = vr.bank(rewritten, deltas(rewritten))
    with torch.no_grad():
        bank.module(images(), MIXED)
    known = {n: m._alone for n, m in bank.module.named_modules() if isinstance(m, TaskSlots)}
    assert all(len(found) == 1 for found in known.values())
    assert all(all(found.values()) for name, found in known.items() if "lora" in name)


@pytest.fixture
def compiled() -> Iterator[list[fx.GraphModule]]:
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def test_one_compiled_program_for_all_that_is_added_removed_and_asked_for(
    compiled: list[fx.GraphModule],
) -> None:
    def backend(graph: fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph

    rewritten = vr.apply("insert lora(rank=2) at blocks[0].attn.{q, v}\ntrain head\n", tiny())
    held = deltas(rewritten)
    bank = vr.bank(rewritten, {k: held[k] for k in "ab"}, capacity=3)
    made, x = torch.compile(bank.module, backend=backend, fullgraph=True), images()

    def check(tasks: list[str]) -> None:
        slots = bank.module.slots(tasks, 6)
        torch.testing.assert_close(made(x, slots), bank.module(x, tasks), rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        check(list("aabbab"))
        bank.add("c", held["c"])
        check(list("abccba"))
        bank.remove("a")
        bank.add("d", held["d"])
        check(list("dddbbc"))
    assert len(compiled) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [SPECS["adapter"], SPECS["ssf"], SPECS["biases"], SPECS["merging"]]
)
def test_compiled_code_of_other_passes(spec: str, compiled: list[fx.GraphModule]) -> None:
    rewritten = vr.apply(spec, tiny())
    bank = vr.bank(rewritten, deltas(rewritten))
    made = torch.compile(bank.module, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = made(images(), bank.module.slots(MIXED, 6))
        torch.testing.assert_close(found, bank.module(images(), MIXED), rtol=1e-4, atol=1e-5)


# -- heads -----------------------------------------------------------------------------------------


def of_classes(count: int, spec: str = LORA) -> Rewritten:
    """The tiny model with another number of classes, and a delta that is nowhere zero."""
    model = tiny()
    model.head = nn.Linear(16, count)
    rewritten = vr.apply(spec, model)
    for tensor in rewritten.delta().values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(count)))
    return rewritten


def test_tasks_with_other_numbers_of_classes(tmp_path: Path) -> None:
    few, many = of_classes(3), of_classes(7)
    vr.save(few, tmp_path / "few.safetensors")
    vr.save(many, tmp_path / "many.safetensors")
    base = vr.apply(LORA, tiny())
    held = {n: tmp_path / f"{n}.safetensors" for n in ("few", "many")}
    bank, x = vr.bank(base, held, capacity=3), images(4)
    assert bank.classes == 7
    tasks = ["few", "many", "many", "few"]
    with torch.no_grad():
        found = bank.module(x, tasks)
        assert found.shape == (4, 7)
        for i, task in enumerate(tasks):
            one = {"few": few, "many": many}[task].module.eval()(x)[i]
            assert torch.equal(found[i, : len(one)], one)
            assert found[i, len(one) :].eq(-torch.inf).all()
        slots, head = bank.module.slots(tasks, 4), bank.module.graph.get_submodule("head")
        (mapped,) = head._mapped(slots, [codes := torch.randn(4, 16)])  # as it is compiled
        torch.testing.assert_close(mapped, head(slots, codes), rtol=1e-5, atol=1e-5)
    with pytest.raises(vr.VitrewriteError, match="VR776"):
        bank.add("more", of_classes(8))
    assert vr.bank(base, held, classes=9).add("more", of_classes(8)) == 2


def test_deltas_of_models_by_name_with_their_own_classes(tmp_path: Path) -> None:
    text, weights = (
        "model vit_tiny_patch16_224(depth=1, img_size=32{})\ntrain head\n",
        tmp_path / "w.safetensors",
    )
    four = vr.apply(text.format(", num_classes=4"))
    save_file({k: v for k, v in four.module.state_dict().items() if "head" not in k}, weights)
    for name, more in {"ten": ", num_classes=10", "all": ""}.items():
        vr.save(vr.apply(text.format(more), weights=str(weights)), tmp_path / name)
    bank = vr.bank(four, {"ten": tmp_path / "ten"}, classes=1000)
    assert bank.add("all", tmp_path / "all") == 1
    with torch.no_grad():
        found = bank.module(images(2), ["ten", "all"])
    assert found.isfinite().sum(1).tolist() == [10, 1000]


# -- adding, removing, refusing --------------------------------------------------------------------


def test_whatever_a_delta_is_given_as(tmp_path: Path) -> None:
    rewritten = vr.apply(LORA, tiny())
    held = deltas(rewritten, "a")["a"]
    for name, tensor in rewritten.delta().items():
        tensor.copy_(held[name])
    vr.save(rewritten, tmp_path / "a.safetensors")
    save_adapter(rewritten, tmp_path / "peft")
    given = {"file": tmp_path / "a.safetensors", "text": str(tmp_path / "a.safetensors"),
             "peft": tmp_path / "peft", "tensors": held, "model": rewritten}  # fmt: skip
    other = vr.apply(LORA, tiny())
    before = {k: v.clone() for k, v in other.module.state_dict().items()}
    bank, x = vr.bank(other, given), images(2)
    with torch.no_grad():
        expected = rewritten.module.eval()(x)
        assert all(torch.equal(bank.module(x, task), expected) for task in given)
    assert all(torch.equal(v, before[k]) for k, v in other.module.state_dict().items())
    assert bank.tasks == {name: i for i, name in enumerate(given)}
    assert repr(bank).startswith("<bank of 5 of 16 tasks, at most 5 classes: 0: file, 1: text")


def test_frozen_weights_are_shared_and_it_stays_in_eval_mode() -> None:
    rewritten = vr.apply(LORA, tiny(proj_drop_rate=0.5))
    rewritten.module.train()
    bank, x = vr.bank(rewritten, deltas(rewritten), capacity=4), images(2)
    assert all(module.training for module in rewritten.module.modules())
    with torch.no_grad():
        assert torch.equal(bank.module(x, "a"), bank.module.train()(x, "a"))
        assert not torch.equal(rewritten.module(x), rewritten.module(x))  # dropout
    own = dict(rewritten.module.named_parameters())
    state = bank.module.state_dict()
    assert state["graph.blocks.0.attn.qkv.weight"].data_ptr() == (
        own["blocks.0.attn.qkv.weight"].data_ptr()
    )
    assert state["graph.blocks.0.attn.qkv_lora.down_of_tasks"].shape == (4, 4, 16)
    assert not bank.module.train().training
    assert not any(p.requires_grad for p in bank.module.parameters())


def test_what_is_not_there_is_refused() -> None:
    rewritten = vr.apply(LORA, tiny())
    held = deltas(rewritten)
    bank = vr.bank(rewritten, {k: held[k] for k in "abc"}, capacity=3)
    x = images(2)
    for tasks in ("e", ["a", "e"], [0, 3], [0, -1], ["a"] * 3, torch.tensor([0, 7]), []):
        with pytest.raises(vr.VitrewriteError, match="VR774"):
            bank.module(x, tasks)
    for name in ("d", "a", ""):
        with pytest.raises(vr.VitrewriteError, match="VR775"):
            bank.add(name, held["d"])
    bank.remove("a")
    assert "a" not in bank
    assert len(bank) == 2
    with pytest.raises(vr.VitrewriteError, match="VR774"):
        bank.module(x, [0, 1])
    with pytest.raises(vr.VitrewriteError, match="VR774"):
        bank.remove("a")
    assert bank.module.graph(x, torch.tensor([0, 1]))[0].isnan().all()  # nobody's tensors
    for capacity in (0, -1, 2.5):
        with pytest.raises(vr.VitrewriteError, match="VR775"):
            vr.bank(rewritten, capacity=capacity)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["missing", "shape", "nan", "spec", "base"])
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(
    what: str, tmp_path: Path
) -> None:
    rewritten = vr.apply(LORA, tiny())
    bank = vr.bank(rewritten, deltas(rewritten, "a"))
    delta: Any = deltas(rewritten, "b")["b"]
    name = next(iter(delta))
    if what == "missing":
        del delta[name]
    if what == "shape":
        delta[name] = torch.zeros(9, 9)
    if what == "nan":
        delta[name][0] = torch.nan
    if what in ("spec", "base"):
        model, spec = tiny(), LORA if what == "base" else LORA.replace("rank=2", "scale=2, rank=2")
        with torch.no_grad():
            model.norm.weight[0] += what == "base"
        vr.save(vr.apply(spec, model), delta := tmp_path / "d.safetensors")
    code = {"nan": "VR716", "spec": "VR721", "base": "VR720"}.get(what, "VR722")
    state = {k: v.clone() for k, v in bank.module.state_dict().items()}
    with pytest.raises(vr.VitrewriteError, match=code):
        bank.add("b", delta)
    after = bank.module.state_dict()
    assert all(torch.equal(v.nan_to_num(9), after[k].nan_to_num(9)) for k, v in state.items())
    assert list(bank.tasks) == ["a"]


UNFIT = {
    "a tensor of the model": ("train cls_token\n", "'cls_token' cannot be in a bank"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_sample_can_have_of_its_own_is_refused(name: str) -> None:
    spec, message = UNFIT[name]
    with pytest.raises(vr.VitrewriteError, match="VR773") as caught:
        vr.bank(vr.apply(spec, tiny()))
    assert message in caught.value.render()


def test_a_lowered_model_is_refused() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR773"):
        vr.bank(vr.lower(vr.apply(LORA, tiny())))
