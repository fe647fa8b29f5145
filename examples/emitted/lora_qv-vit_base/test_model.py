"""Properties of this rewritten model, for your CI: `pytest test_model.py`.

Needs torch, safetensors, hypothesis and pytest, and for the model that it was made from timm;
vitrewrite is not used.
"""

import copy
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
SHAPE = (3, 224, 224)
TOTAL, TRAINABLE = 86862568, 1063912
ORIGINAL = 'vit_base_patch16_224'
OPTIONS = {}


def _source():
    spec = importlib.util.spec_from_file_location("rewritten_model", HERE / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        together, alone = model(x), torch.cat([model(x[i : i + 1]) for i in range(batch)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_gradients_reach_what_is_trained_and_nothing_else(model):
    model.train()
    model(_images(2)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    model.zero_grad(set_to_none=True)
    model.eval()


@pytest.mark.parametrize(
    ("batch", "training", "dtype"),
    [
        (1, False, torch.float32),
        (2, False, torch.float32),
        (2, True, torch.float32),
        (1, False, torch.bfloat16),
    ],
)
def test_at_its_start_it_is_the_model_that_it_was_made_from(model, batch, training, dtype):
    timm = pytest.importorskip("timm")
    original, start = timm.create_model(ORIGINAL, **OPTIONS), copy.deepcopy(model)
    known = dict(original.named_modules())
    inserted = [module for name, module in start.named_modules() if name not in known]
    for module in inserted:
        if hasattr(type(module), "inserted_by") and any(True for _ in module.parameters()):
            names = inspect.signature(type(module)).parameters
            made = type(module)(**{name: getattr(module, name) for name in names})
            for parameter, value in zip(module.parameters(), made.parameters()):
                parameter.data.copy_(value)
    state = start.state_dict()
    original.load_state_dict({name: state[name] for name in original.state_dict()})
    x = _images(batch).to(dtype)
    outputs = []
    for each in (original, start):
        each.to(dtype).train(training).requires_grad_(False)
        for module in inserted:
            module.eval()
        torch.manual_seed(0)
        outputs.append(each(x))
    assert torch.equal(*outputs)


def test_another_image_size_is_refused(model):
    with pytest.raises(ValueError, match="captured for"):
        model(torch.cat([_images(1), _images(1)[..., :32, :]], dim=-2))

