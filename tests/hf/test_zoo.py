"""Capture and emission of Hugging Face models: exact, in every mode, and a fixed point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.folders import tell_of_images
from tests.hf.zoo import ZOO
from tests.models import spread
from tests.zoo.subject import tensors
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.construction import construct
from vitrewrite.tracing.leaves import is_torch_class

EMPTY = "# no clauses\n"
Size = tuple[int, int]


class Subject:
    """A model with non-trivial weights, its capture, and its emission."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name, self.member = name, ZOO[name]
        self.model = spread(construct(self.member.build)).eval()
        self.state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.example = torch.zeros(1, 3, *self.member.sizes[0])
        self.before = self.output(self.model, 2)
        self.hooks = [len(m._forward_hooks) for m in self.model.modules()]
        self.rewritten = vr.apply(EMPTY, self.model, example=self.example)
        self.captured = vr.capture(self.model, self.example)

    @torch.no_grad()
    def output(
        self, model: nn.Module, batch: int, size: Size | None = None, *, training: bool = False
    ) -> dict[str, torch.Tensor]:
        state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        generator = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 3, *(size or self.member.sizes[0]), generator=generator)
        model.train(training)
        torch.manual_seed(7)
        result = tensors(model(images))
        model.load_state_dict({**model.state_dict(), **state})  # batch norms moved in training
        return result


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture(scope="module")
def subject(request: Any) -> Subject:
    """Built once for all tests of one model."""
    return Subject(request.param)


_ALIKE = ("mask2former-everything", "mask2former-aux")  # the others with more outputs
_PARAMS = [
    pytest.param(
        name, marks=[pytest.mark.xdist_group(name), *[pytest.mark.slow] * (name in _ALIKE)]
    )
    for name in ZOO
]


@pytest.mark.parametrize("subject", _PARAMS, indirect=True, scope="module")
class TestZoo:
    def test_exact_in_eval_at_all_batch_and_image_sizes(self, subject: Subject) -> None:
        for size in subject.member.sizes:
            for batch in (1, 2, 3):
                expected = subject.output(subject.model, batch, size)
                assert expected
                assert same(subject.output(subject.captured, batch, size), expected)

    def test_exact_in_training_at_equal_seed(self, subject: Subject) -> None:
        for size in subject.member.sizes:
            expected = subject.output(subject.model, 2, size, training=True)
            assert same(subject.output(subject.captured, 2, size, training=True), expected)
        if subject.member.random:
            first = subject.output(subject.model, 2, training=True)
            assert not same(first, subject.before)  # the drop rates do act

    def test_the_users_model_is_as_it_was_and_still_works(self, subject: Subject) -> None:
        state = subject.model.state_dict()
        assert state.keys() == subject.state.keys()
        assert all(torch.equal(state[k], v) for k, v in subject.state.items() if "num_b" not in k)
        assert same(subject.output(subject.model, 2), subject.before)
        assert [len(m._forward_hooks) for m in subject.model.modules()] == subject.hooks

    def test_state_dict_keys_and_storage(self, subject: Subject) -> None:
        assert list(subject.captured.state_dict()) == list(subject.state)
        own = dict(subject.model.named_parameters())
        for name, parameter in subject.captured.named_parameters():
            assert parameter.data_ptr() == own[name].data_ptr()

    def test_no_forward_of_transformers_is_left(self, subject: Subject) -> None:
        for path, module in subject.captured.named_modules():
            cls = type(module)
            assert is_torch_class(cls) or cls.__module__.startswith("vitrewrite."), path
            assert is_torch_class(cls) or "transformers" not in cls.forward.__module__, path
            containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
            assert not (is_torch_class(cls) and module._modules) or cls in containers, path

    def test_emitted_source_is_exact_and_a_fixed_point(self, subject: Subject) -> None:
        text = model_text(subject.rewritten)
        assert "transformers" not in text
        space: dict[str, Any] = {"__name__": "emitted"}
        exec(compile(text, subject.name, "exec"), space)
        emitted = construct(space["build"])
        emitted.load_state_dict(subject.state)
        for training in (False, True):
            for size in subject.member.sizes:
                expected = subject.output(subject.model, 2, size, training=training)
                assert same(subject.output(emitted, 2, size, training=training), expected)
        again = vr.apply(EMPTY, emitted, example=subject.example)
        again.model_name, again.weights = subject.rewritten.model_name, subject.rewritten.weights
        tell_of_images(again, subject.rewritten)  # which is in no code
        assert model_text(again) == text
        assert max(map(len, text.splitlines())) <= 100 or "unpack(" in text
