"""What `verify` runs, counted: no forward twice, and each that a check needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from vitrewrite.models import create, load_state
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.verification import reference, runs, verify_rewritten
from vitrewrite.verification.modes import mode_watched
from vitrewrite.verification.reference import BASE, EMITTED, MODULE, OWN, Runs
from vitrewrite.verification.runs import Casts, Situation

from ..models import spread

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
DROPS = "insert lora(rank=2, dropout=0.1) at blocks[*].attn.{q, v}\n"
PLAIN = "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}\n"
TRAINING, PAIR = Situation(training=True), Situation(2)


def vit(spec: str) -> Rewritten:
    torch.manual_seed(0)
    model = spread(VisionTransformer(**SIZES, num_classes=5))
    return vr.apply(spec, model.eval())


def counted(monkeypatch: pytest.MonkeyPatch, spec: str) -> Counter[Any]:
    """The runs of `verify`, by model and situation."""
    done: Counter[Any] = Counter()
    run: Callable[..., Any] = Runs._run

    def counting(self: Runs, which: str, situation: Situation) -> Any:
        done[which, situation] += 1
        return run(self, which, situation)

    monkeypatch.setattr(Runs, "_run", counting)
    verify_rewritten(vit(spec), graphs=False)
    return done


def test_no_forward_is_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    done = counted(monkeypatch, DROPS)
    assert set(done.values()) == {1}
    own, base = ({s for which, s in done if which == each and not s.shapes} for each in (OWN, BASE))
    assert TRAINING in own
    assert base == own - {TRAINING}  # the program asks for no mode: it is the run in eval
    # LoRA drops in training: there it is another forward.
    assert {(MODULE, TRAINING), (EMITTED, TRAINING)} <= done.keys()
    assert (EMITTED, Situation()) not in done


def test_what_asks_for_no_mode_is_not_run_in_training() -> None:
    compared = Runs(vit("insert ia3() at blocks[*].attn.{k, v}\n"))
    (check,) = [
        c for c in reference.reference(compared, compared.situations) if "emitted" in c.name
    ]
    assert check.holds
    assert "training at equal seed, 2 images" in check.note
    done = [situation for which, situation in compared.made if which in (MODULE, EMITTED)]
    assert not any(situation.training for situation in done)


@pytest.mark.parametrize("part", ["base", "module"])
def test_a_model_that_asks_is_run_in_training(part: str) -> None:
    rewritten = vit(PLAIN)
    module = getattr(rewritten, part)
    right = module.forward
    module.forward = lambda *args: right(*args) + float(module.training)
    compared = Runs(rewritten)
    wrong = [c for c in reference.reference(compared, compared.situations) if c.holds is False]
    assert all("training" in c.note for c in wrong)
    assert len(wrong) == (1 if part == "base" else 2)


def test_the_mode_is_watched_and_nothing_else_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    with mode_watched(model) as outer:
        model[0](torch.zeros(1, 2))
        assert not outer.asked
        with mode_watched(model) as inner:
            model(torch.zeros(1, 2))
            model.train()
        assert inner.asked
        assert outer.asked
    assert "training" not in vars(nn.Module)
    assert all(m.training and m.__dict__["training"] for m in model.modules())


def test_what_is_compiled_is_taken_to_ask() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with mode_watched(nn.Sequential(scripted)) as watch:
        pass
    assert watch.asked


def test_another_dtype_is_made_once_of_what_models_share(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []

    class Counting(Casts):
        def of(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            before = len(self._made)
            found = super().of(tensor, dtype)
            made.extend([tensor] * (len(self._made) - before))
            return found

    rewritten = vit(PLAIN)
    compared = Runs(rewritten, casts=Counting())
    for which in (OWN, BASE, MODULE, EMITTED):
        compared(which, Situation(dtype=torch.bfloat16))
    state = rewritten.module.state_dict()
    assert len(made) == len({t.data_ptr() for t in state.values()})


def test_what_has_no_version_or_no_place_of_its_own_is_cast_too() -> None:
    casts = Casts()
    with torch.inference_mode():
        made = torch.full((2,), 1.5)
    assert casts.of(made, torch.bfloat16).tolist() == [1.5, 1.5]
    with pytest.warns(UserWarning, match="beta"):
        sparse = torch.eye(2).to_sparse_csr()
    assert torch.equal(casts.of(sparse, torch.float64).to_dense(), torch.eye(2).double())
    changed = torch.zeros(2)
    casts.of(changed, torch.bfloat16)
    assert casts.of(changed.add_(1), torch.bfloat16).tolist() == [1, 1]


def test_tensors_are_shared_where_they_are_alike() -> None:
    model = create("vit_tiny", {"depth": 1, "num_classes": 3})
    other = create("vit_tiny", {"depth": 1, "num_classes": 3}, initialise=False)
    state = model.state_dict()
    load_state(other, state, "test", share=True)
    assert all(t.data_ptr() == state[k].data_ptr() for k, t in other.state_dict().items())
    load_state(other.bfloat16(), state, "test", share=True)
    assert other.head.weight.dtype == torch.bfloat16
    assert runs.apart([other.head.weight], [state["head.weight"].bfloat16()]) == 0  # type: ignore[list-item]
