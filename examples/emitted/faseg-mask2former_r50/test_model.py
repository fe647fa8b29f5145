"""Properties of this rewritten model, for your CI: `pytest test_model.py`.

Needs torch, safetensors, hypothesis and pytest; vitrewrite and timm are not used.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
SHAPE = (3, 512, 512)
TOTAL, TRAINABLE = 50564759, 50564759


def _source():
    spec = importlib.util.spec_from_file_location("rewritten_model", HERE / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in _tensors(item)]


def _images(batch, seed=0):
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return images


@pytest.fixture(scope="module")
def model():
    weights = HERE / "weights.safetensors"
    source = _source()
    return source.load(weights) if weights.exists() else source.build().eval()


def test_parameter_counts(model):
    assert sum(p.numel() for p in model.parameters()) == TOTAL
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINABLE


@settings(max_examples=3, deadline=None)
@given(batch=st.integers(1, 3), seed=st.integers(0, 1000))
def test_images_do_not_see_each_other(model, batch, seed):
    x = _images(batch, seed)
    with torch.no_grad():
        together = _tensors(model(x))
        alone = [_tensors(model(x[i : i + 1])) for i in range(batch)]
    for whole, *parts in zip(together, *alone):
        if len(whole) == batch and all(len(part) == 1 for part in parts):
            torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-3, atol=1e-4)


def test_gradients_reach_what_is_trained_and_nothing_else(model):
    model.train()
    outputs = _tensors(model(_images(2)))
    sum(output.square().sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    model.zero_grad(set_to_none=True)
    model.eval()

