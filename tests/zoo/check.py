"""What becomes of one model: exact, refused with a reason, or wrong."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitrewrite as vr
from tests.models import spread
from tests.zoo.clean import Clean
from tests.zoo.subject import Inputs, Subject, call, tensors
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.construction import construct

EXACT, REFUSED, WRONG, UNFIT = "exact", "refused", "wrong", "does not run"
FAST_PATH = 2e-6  # torch's own attention in eval mode adds in another order
SIZES = (1.5,)  # of height and width, beside the model's own


@dataclass
class Found:
    """What was found of a model.

    Attributes:
        outcome: `exact`, `refused`, `wrong`, or `does not run` if the model itself does not.
        why: the message of a refusal, or what differs and by how much.
        sizes: `any` if it runs at other sizes as the model does, `guarded` if it refuses them by
            name, `fixed` if the model itself takes one size.
        worst: the largest difference that was seen.
    """

    key: str
    outcome: str = EXACT
    why: str = ""
    sizes: str = "fixed"
    worst: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _WrongError(Exception):
    """A capture that computes something else."""


def check(subject: Subject, clean: Clean | None = None) -> Found:
    """Builds, captures, emits and compares a model.

    Args:
        subject: the model.
        clean: an interpreter that has neither the library nor vitrewrite, to run the source in.
    """
    found = Found(subject.key)
    torch.manual_seed(0)
    try:
        model = spread(construct(subject.build)).eval()
        inputs = subject.inputs(2, 1)
        with torch.no_grad():
            expected = tensors(call(copy.deepcopy(model), inputs))
        if not expected:
            raise ValueError("it returns no tensor")
    except Exception as error:  # whatever a library may raise
        found.outcome, found.why = UNFIT, _line(error)
        return found
    try:
        _compare(subject, model, found, clean)
    except vr.VitrewriteError as error:
        found.outcome, found.why = REFUSED, _line(error)
    except _WrongError as error:
        found.outcome, found.why = WRONG, str(error)
    except TimeoutError:
        raise
    except Exception as error:  # a crash is wrong, too
        found.outcome = WRONG
        last = traceback.extract_tb(error.__traceback__)[-1]
        found.why = f"{_line(error)} ({Path(last.filename).name}:{last.lineno})"
    return found


def _compare(subject: Subject, model: nn.Module, found: Found, clean: Clean | None) -> None:
    example = subject.inputs(1, 1)
    captured = vr.capture(model, example.get("", example))
    rewritten = vr.apply("# no clauses\n", model, example=example.get("", example))
    text = model_text(rewritten)
    space: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(text, subject.name, "exec"), space)
    emitted = construct(space["build"])
    emitted.load_state_dict(model.state_dict())
    others = {"captured": captured, "emitted": emitted}
    allowed = FAST_PATH if _has_fast_path(model) else 0.0
    for batch in (1, 3):
        _same(model, others, subject.inputs(batch, 1), found, f"eval, batch {batch}", allowed)
    _same(model, others, subject.inputs(2, 1), found, "training", 0.0, training=True)
    found.sizes = _other_sizes(subject, model, others, found, allowed)
    _bfloat16(subject, model, others, found, allowed)
    if clean is not None:
        wanted = _output(model, subject.inputs(2, 1))
        got = clean.run(text, model.state_dict(), subject.inputs(2, 1))
        _equal(wanted, got, found, "clean interpreter", allowed)


def _same(
    model: nn.Module,
    others: dict[str, nn.Module],
    inputs: Inputs,
    found: Found,
    what: str,
    allowed: float,
    *,
    training: bool = False,
) -> None:
    wanted = _output(model, inputs, training=training)
    for name, other in others.items():
        got = _output(other, inputs, training=training)
        _equal(wanted, got, found, f"{name}, {what}", allowed)


def _output(model: nn.Module, inputs: Inputs, *, training: bool = False) -> dict[str, torch.Tensor]:
    """The outputs in a mode; statistics that training moves are put back."""
    state = {k: v.clone() for k, v in model.named_buffers()}
    model.train(training)
    torch.manual_seed(7)
    try:
        with torch.no_grad():
            return {k: v.clone() for k, v in tensors(call(model, inputs)).items()}
    finally:
        model.eval()
        for name, buffer in model.named_buffers():
            if name in state and buffer.shape == state[name].shape:
                buffer.copy_(state[name])


def _equal(
    wanted: dict[str, torch.Tensor],
    got: dict[str, torch.Tensor],
    found: Found,
    what: str,
    allowed: float,
) -> None:
    if list(wanted) != list(got):
        raise _WrongError(f"{what}: returns {list(got)[:6]}, not {list(wanted)[:6]}")
    for name, tensor in wanted.items():
        other = got[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            described = f"{other.dtype} {tuple(other.shape)}"
            raise _WrongError(f"{what}: {described}, not {tensor.dtype} {tuple(tensor.shape)}")
        if torch.equal(tensor, other):
            continue
        same_nan = torch.equal(tensor.isnan(), other.isnan()) and tensor.is_floating_point()
        off = (tensor.double() - other.double()).nan_to_num().abs().max().item()
        if not same_nan or off > allowed:
            raise _WrongError(f"{what}: off by {off:.2g}")
        found.worst = max(found.worst, off)


def _other_sizes(
    subject: Subject, model: nn.Module, others: dict[str, nn.Module], found: Found, allowed: float
) -> str:
    """Compares at other image sizes, where the model takes them."""
    answers = set()
    for factor in SIZES:
        inputs = subject.inputs(1, factor)
        try:
            wanted = _output(model, inputs)
        except Exception:  # the model itself is made for one size
            continue
        for name, other in others.items():
            try:
                got = _output(other, inputs)
            except ValueError as error:
                if "captured for" not in str(error):
                    raise
                answers.add("guarded")
                continue
            _equal(wanted, got, found, f"{name}, {factor} times the size", allowed)
            answers.add("any")
    return "guarded" if "guarded" in answers else "any" if answers else "fixed"


def _bfloat16(
    subject: Subject, model: nn.Module, others: dict[str, nn.Module], found: Found, allowed: float
) -> None:
    halves = {name: copy.deepcopy(other).bfloat16() for name, other in others.items()}
    own = copy.deepcopy(model).bfloat16()
    inputs = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in subject.inputs(2, 1).items()
    }
    try:
        wanted = _output(own, inputs)
    except Exception as error:  # not every model runs in bfloat16
        found.notes.append(f"the model does not run in bfloat16: {_line(error)}")
        return
    # The fast path rounds elsewhere, by a bfloat16's last place.
    bound = allowed and 2**-7 * max(float(t.abs().max()) for t in wanted.values())
    for name, other in halves.items():
        try:
            got = _output(other, inputs)
        except (TypeError, ValueError) as error:
            if "captured for" not in str(error):
                raise
            found.notes.append("guarded in dtype")
            continue
        _equal(wanted, got, found, f"{name}, bfloat16", bound)


def _has_fast_path(model: nn.Module) -> bool:
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return any(isinstance(module, kinds) for module in model.modules())


def _line(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    named = isinstance(error, vr.VitrewriteError)
    return (first if named else f"{type(error).__name__}: {first}")[:300]


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError` in the main thread after a while."""
    import signal

    def alarm(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
