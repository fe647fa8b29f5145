"""Nothing that the caller has set, and no other thread, changes what comes out; nor the reverse."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from vitrewrite.tracing.state import preserved
from vitrewrite.tracing.undisturbed import seed

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"
NAMED = f"model vit_tiny_patch16_224(depth=1, embed_dim=16, num_heads=2, img_size=32)\n{SPEC}"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        16, 8, embed_dim=16, depth=1, num_heads=2, num_classes=2, drop_rate=0.5, **options
    ).eval()


def results(model: Any) -> dict[str, torch.Tensor]:
    """All that comes out of the stages for a model, or for the model that the spec names."""
    rewritten = vr.apply(SPEC if isinstance(model, nn.Module) else NAMED, model)
    found = {f"state.{k}": v for k, v in rewritten.module.state_dict().items()}
    found |= {f"delta.{k}": v for k, v in rewritten.delta().items()}
    if rewritten.model_name == "VisionTransformer":
        lowered = vr.lower(rewritten).module.state_dict()
        found |= {f"lowered.{k}": v for k, v in lowered.items()}
    return found


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "set_default_device": lambda: default_device("meta"),
    "deterministic": deterministic,
}


@pytest.fixture(scope="module")
def wanted() -> dict[str, dict[str, torch.Tensor]]:
    return {"object": results(vit()), "name": results(None)}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("kind", ["object", "name"])
def test_what_comes_out_in_a_context(
    name: str, kind: str, wanted: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = vit() if kind == "object" else None
    with CONTEXTS[name]():
        found = results(model)
    assert found.keys() == wanted[kind].keys()
    for key, value in found.items():
        assert torch.equal(value, wanted[kind][key]), key
        assert not value.is_inference()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A plan and a folder, made where nothing is set."""
    folder = tmp_path_factory.mktemp("outside") / "out"
    return vr.plan(SPEC, vit()).to_json(), vr.emit(vr.apply(SPEC, vit()), folder)


@pytest.mark.parametrize("name", CONTEXTS)
def test_plan_capture_verify_and_emit_in_a_context(
    name: str, outside: tuple[Any, Path], tmp_path: Path
) -> None:
    model = vit()
    with torch.no_grad():
        output = model(IMAGES)
    with CONTEXTS[name]():
        captured = vr.capture(model)
        plan = vr.plan(SPEC, model)
        rewritten = vr.apply(SPEC, model)
        assert vr.verify(rewritten, graphs=False)
        folder = vr.emit(rewritten, tmp_path / "out")
    assert torch.equal(captured.eval()(IMAGES), output)
    assert torch.equal(rewritten.module.eval()(IMAGES), output)
    expected, other = outside
    assert plan.to_json() == expected
    for name in ("model.py", "weights.safetensors", "report.json", "plan.md", "test_model.py"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    rewritten.module.train()(IMAGES).sum().backward()


def test_a_model_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = vit()
    rewritten = vr.apply(SPEC, model)
    rewritten.module.train()(IMAGES).sum().backward()
    with torch.no_grad():
        assert torch.equal(rewritten.module.eval()(IMAGES), model(IMAGES))


def test_random_states_stay(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]

    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = states()
    rewritten = vr.apply(NAMED)
    vr.plan(SPEC, vit_drawing(before, states))
    vr.emit(vr.lower(rewritten), tmp_path / "out")
    assert states() == before


def vit_drawing(before: list[Any], states: Callable[[], list[Any]]) -> nn.Module:
    """A model whose forward draws from every generator."""
    with torch.random.fork_rng():
        model = vit()
    forward = model.forward

    def drawing(x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        return forward(x)

    model.forward = drawing  # type: ignore[method-assign]
    assert states() == before
    return model


def test_seeding_is_that_of_torch() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    seed(3)
    assert torch.equal(torch.rand(4), expected)


def test_a_model_without_weights_is_not_written(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = vit()
    assert vr.plan(SPEC, model)
    with pytest.raises(vr.VitrewriteError, match="VR809 the model has no weights: cls_token"):
        vr.emit(vr.apply(SPEC, model), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -- threads --------------------------------------------------------------------------------------


def test_many_threads_apply(wanted: dict[str, dict[str, torch.Tensor]]) -> None:
    models = [vit(), vit()]

    def work(number: int) -> list[dict[str, torch.Tensor]]:
        given = (models[number % 2], models[number // 4], None)
        return [vr.apply(NAMED, model).module.state_dict() for model in given]

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))
    assert len(done) == 8
    for found in done:
        for each, kind in zip(found, ("object", "object", "name"), strict=True):
            assert each
            assert all(torch.equal(v, wanted[kind][f"state.{k}"]) for k, v in each.items())


def test_other_threads_are_not_disturbed_by_a_capture() -> None:
    model, other = vit(), vit(class_token=False, global_pool="avg")
    with torch.no_grad():
        outputs = [m(IMAGES) for m in (model, other)]
    inside, seen = threading.Event(), threading.Event()
    forward = model.forward

    def slow(x: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is capturing:
            inside.set()
            assert seen.wait(60)
        return forward(x)

    model.forward = slow  # type: ignore[method-assign]
    found: list[Any] = []
    capturing = threading.Thread(target=lambda: found.append(vr.capture(model)))
    capturing.start()
    try:
        assert inside.wait(60)
        with torch.no_grad(), ExitStack() as stack:
            assert not model.training  # the traced thread looks at training, too
            stack.callback(seen.set)
            assert all(
                torch.equal(m(IMAGES), o) for m, o in zip((model, other), outputs, strict=True)
            )
            other.train()
            assert other.training
            assert model.get_submodule("head").training is False
            other.eval()
            assert torch.finfo(torch.float32).max == torch.finfo(outputs[0].dtype).max
            assert copy.deepcopy(other).training is False
    finally:
        seen.set()
        capturing.join()
    assert torch.equal(found[0].eval()(IMAGES), outputs[0])


def test_what_a_forward_leaves_alone_is_not_touched() -> None:
    model = vit()
    before = {m: (m.__dict__, m._parameters, dict(m.__dict__)) for m in model.modules()}
    with preserved(model):
        model.extra = 1  # type: ignore[assignment]
        model.get_submodule("norm").eps = 3.0  # type: ignore[assignment]
        model._modules["more"] = nn.Identity()
        del model._parameters["pos_embed"]
    for module, (attributes, parameters, content) in before.items():
        assert module.__dict__ is attributes
        assert module._parameters is parameters
        assert list(module.__dict__) == list(content)
    assert list(model.state_dict()) == list(vit().state_dict())
    assert model.get_submodule("norm").eps != 3.0
