"""The Python API: what is shared, what is new, what is loaded and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrewrite as vr
from tests.folders import edit, flip
from tests.test_capture import tiny

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"


def test_the_input_model_is_unchanged_and_frozen_weights_are_shared() -> None:
    model = tiny()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    rewritten = vr.apply(SPEC, model)
    own, new = dict(model.named_parameters()), dict(rewritten.module.named_parameters())
    for name, parameter in own.items():
        shared = new[name].data_ptr() == parameter.data_ptr()
        assert shared == (not name.startswith("head")), name
        assert new[name].requires_grad == name.startswith("head")
    with torch.no_grad():
        for parameter in rewritten.module.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_delta_names_are_site_pass_tensor() -> None:
    delta = vr.apply(SPEC, tiny()).delta()
    assert {k for k in delta if "lora" in k} == {
        f"blocks.{i}.attn.{s}.lora.{t}" for i in range(2) for s in "qv" for t in ("down", "up")
    }
    assert delta["blocks.1.attn.v.lora.down"].shape == (2, 16)
    assert delta["blocks.1.attn.v.lora.up"].shape == (16, 2)
    assert {"head.weight", "head.bias"} <= delta.keys()


def test_save_and_load_a_delta(tmp_path: Path) -> None:
    model = tiny()
    first = vr.apply(SPEC, model)
    for tensor in first.delta().values():
        tensor.normal_()
    vr.save(first, tmp_path / "d.safetensors")
    second = vr.load(vr.apply(SPEC, model), tmp_path / "d.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first.module.eval()(x), second.module.eval()(x))


def test_a_delta_fits_whatever_it_was_trained_with(tmp_path: Path) -> None:
    model = tiny()
    first = vr.apply(SPEC + "tune { lr = 1e-2 }\n", model)
    first.delta()["head.bias"].fill_(3.0)
    vr.save(first, tmp_path / "d.safetensors")
    claimed = vr.apply(SPEC + "require identity at init\ntune { lr = 1e-4 }\n", model)
    assert vr.load(claimed, tmp_path / "d.safetensors").delta()["head.bias"].eq(3.0).all()


@pytest.mark.parametrize(
    "what", ["base", "spec", "missing", "extra", "shape", "cut", "foreign", "nan", "bit"]
)
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.safetensors"
    model = tiny()
    vr.save(vr.apply(SPEC, model), path)
    spec = SPEC.replace("rank=2", "rank=3") if what == "spec" else SPEC
    if what == "base":
        with torch.no_grad():
            model.norm.weight[0] += 1
    if what == "missing":
        edit(path, lambda t: t.pop("blocks.0.attn.q.lora.up"))
    if what == "extra":
        edit(path, lambda t: t.update({"blocks.7.attn.q.lora.up": torch.zeros(1)}))
    if what == "shape":
        edit(path, lambda t: t.update({"head.bias": torch.zeros(99)}))
    if what == "nan":
        edit(path, lambda t: t["blocks.0.attn.q.lora.up"].fill_(float("nan")))
    if what == "bit":
        flip(path, 8 * path.stat().st_size - 9)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    if what == "foreign":
        save_file(load_file(path), path)
    target = vr.apply(spec, model)
    before = {k: v.clone() for k, v in target.delta().items()}
    codes = {"base": "VR720", "spec": "VR721", "cut": "VR711", "foreign": "VR711", "bit": "VR715"}
    code = {**codes, "nan": "VR716"}.get(what, "VR722")
    with pytest.raises(vr.VitrewriteError, match=code):
        vr.load(target, path)
    assert all(torch.equal(v, before[k]) for k, v in target.delta().items())


def test_same_spec_same_bits_and_another_seed_others() -> None:
    model = tiny()
    deltas = [vr.apply(SPEC, model, seed=seed).delta() for seed in (0, 0, 1)]
    key = "blocks.0.attn.q.lora.down"
    assert torch.equal(deltas[0][key], deltas[1][key])
    assert not torch.equal(deltas[0][key], deltas[2][key])


def test_random_base_weights_are_seeded() -> None:
    spec = "model vit_tiny_patch16_224(depth=1, num_classes=4)\ntrain head\n"
    first, second = vr.apply(spec, seed=3), vr.apply(spec, seed=3)
    assert vr.verify(first)
    assert first.report["weights"] == "random (seed 3)"
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_reaches_the_delta_and_lowering_keeps_what_was_learnt() -> None:
    rewritten = vr.apply(SPEC, tiny())
    module = rewritten.module.train()
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 5
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(module(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        expected = module.eval()(x)
        lowered = vr.lower(rewritten)
        torch.testing.assert_close(lowered.module(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(module(x), expected)  # the original stays as it was
    assert lowered.module.state_dict().keys() == rewritten.base.state_dict().keys()


def test_a_rewritten_model_compiles_to_one_graph() -> None:
    rewritten = vr.apply(SPEC, tiny())
    torch._dynamo.reset()
    made = torch.compile(rewritten.module.eval(), backend="eager", fullgraph=True)
    for batch in (2, 3, 4):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(made(x), rewritten.module(x))
