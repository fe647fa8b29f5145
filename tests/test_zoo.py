"""Capture and emission of real timm models: exact, in every mode, and a fixed point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vitrewrite as vr
from tests.folders import tell_of_images
from tests.models import BEYOND, ZOO, spread
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tracing.construction import construct
from vitrewrite.tracing.leaves import is_torch_class

EMPTY = "# no clauses\n"


class Subject:
    """A model of the zoo with non-trivial weights, its capture, and its emission."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.model = spread(construct(lambda: timm.create_model(name, **ZOO[name]))).eval()
        embed = getattr(self.model, "patch_embed", None)
        size = getattr(embed, "img_size", None) or self.model.pretrained_cfg["input_size"][1:]
        self.shape = (3, *size)
        self.state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.before = self.output(self.model, 2)
        self.rewritten: Rewritten = vr.apply(EMPTY, self.model)
        self.captured = vr.capture(self.model)

    def images(self, batch: int) -> torch.Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(batch))

    @torch.no_grad()
    def output(self, model: nn.Module, batch: int, *, training: bool = False) -> torch.Tensor:
        state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        model.train(training)
        torch.manual_seed(7)
        result: torch.Tensor = model(self.images(batch))
        model.load_state_dict({**model.state_dict(), **state})  # batch norms moved in training
        return result


@pytest.fixture(scope="module")
def subject(request: Any) -> Subject:
    """Built once for all tests of one model."""
    return Subject(request.param)


# All tests of a model go to one process, so that it is built once.
_PARAMS = [
    pytest.param(
        name, marks=[pytest.mark.xdist_group(name), *([pytest.mark.slow] if name in BEYOND else ())]
    )
    for name in ZOO
]
zoo = pytest.mark.parametrize("subject", _PARAMS, indirect=True, scope="module")


@zoo
class TestZoo:
    def test_exact_in_eval_at_two_batch_sizes(self, subject: Subject) -> None:
        for batch in (2, 3):
            expected = subject.output(subject.model, batch)
            assert torch.equal(subject.output(subject.captured, batch), expected)

    def test_exact_in_training_at_equal_seed(self, subject: Subject) -> None:
        expected = subject.output(subject.model, 2, training=True)
        assert torch.equal(subject.output(subject.captured, 2, training=True), expected)
        assert not torch.equal(expected, subject.before)  # the drop rates do act

    def test_the_users_model_is_as_it_was_and_still_works(self, subject: Subject) -> None:
        state = subject.model.state_dict()
        assert state.keys() == subject.state.keys()
        assert all(torch.equal(state[k], v) for k, v in subject.state.items() if "num_b" not in k)
        assert torch.equal(subject.output(subject.model, 2), subject.before)
        assert "timm" in type(subject.model).__module__

    def test_state_dict_keys_and_storage(self, subject: Subject) -> None:
        assert list(subject.captured.state_dict()) == list(subject.state)
        own = dict(subject.model.named_parameters())
        for name, parameter in subject.captured.named_parameters():
            assert parameter is not own[name]
            assert parameter.data_ptr() == own[name].data_ptr()

    def test_no_forward_of_timm_is_left(self, subject: Subject) -> None:
        for path, module in subject.captured.named_modules():
            cls = type(module)
            assert is_torch_class(cls) or cls.__module__.startswith("vitrewrite."), path
            assert is_torch_class(cls) or "timm" not in cls.forward.__module__, path
            containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
            assert not (is_torch_class(cls) and module._modules) or cls in containers, path

    def test_emitted_source_is_exact_and_a_fixed_point(self, subject: Subject) -> None:
        text = model_text(subject.rewritten)
        space: dict[str, Any] = {"__name__": "emitted"}
        exec(compile(text, subject.name, "exec"), space)
        emitted = construct(space["build"])
        emitted.load_state_dict(subject.state)
        for training in (False, True):
            expected = subject.output(subject.model, 2, training=training)
            assert torch.equal(subject.output(emitted, 2, training=training), expected)
        example = torch.empty(1, *subject.shape, device="meta")
        again = vr.apply(EMPTY, emitted, example=example)
        again.model_name, again.weights = subject.rewritten.model_name, subject.rewritten.weights
        tell_of_images(again, subject.rewritten)  # which is in no code
        assert model_text(again) == text
        assert max(map(len, text.splitlines())) <= 100 or "unpack(" in text


RUN = """
import importlib.util, sys
for name in ("timm", "vitrewrite", "torchvision"):
    sys.modules[name] = None
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
torch.set_num_threads(1)
outputs = {}
for path in sorted(folder.glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = load_file(folder / f"{path.stem}.image")["image"]
    with torch.no_grad():
        outputs[path.stem] = module.load(folder / f"{path.stem}.safetensors")(image).contiguous()
save_file(outputs, folder / "outputs")
"""


@pytest.mark.slow
def test_every_model_runs_in_a_clean_interpreter(tmp_path: Path) -> None:
    """No vitrewrite, no timm: one process for all models, since torch is slow to import."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same kernels as in the other process
    expected = {}
    names = [name for name in ZOO if name not in BEYOND]
    for name in names:
        subject = Subject(name)
        (tmp_path / f"{name}.py").write_text(model_text(subject.rewritten))
        save_file(subject.state, tmp_path / f"{name}.safetensors")
        save_file({"image": subject.images(1)}, tmp_path / f"{name}.image")
        expected[name] = subject.output(subject.model, 1)
    command = [sys.executable, "-I", "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    torch.set_num_threads(threads)
    assert done.returncode == 0, done.stderr
    outputs = load_file(tmp_path / "outputs")
    assert [n for n in names if not torch.equal(outputs[n], expected[n])] == []
