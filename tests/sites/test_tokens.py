"""Tokens that join the stream and leave it again, against hooks on the user's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.passes.test_prompt_heads import build, with_bias

REGISTERS = """
class Registers(nn.Module):
    inserted_by = "registers"
    changes = (0,)

    def __init__(self, count: int, dim: int, start: int) -> None:
        super().__init__()
        self.count, self.dim, self.start = count, dim, start
        self.tokens = nn.Parameter(torch.zeros(count, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.tokens.expand(x.shape[0], -1, -1)
        return torch.cat([x[:, : self.start], rows, x[:, self.start :]], dim=1)


@dataclass(frozen=True)
class WithRegisters(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("prepend",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    writes: ClassVar[tuple[str, ...]] = ("prefix",)
    count: int = option(3, minimum=1)

    def rewrite(self, block: Any) -> None:
        block.expect(self.count < 9, "count", f"{self.count} registers are too many")
        start = block.own_prefix
        registers = Registers(self.count, block.dim, start)
        block.input.join(registers, start=start, count=self.count)
        block.output.leave(start, self.count)
"""
SPEC = "prepend registers() to blocks[1]\n"


@pytest.fixture(autouse=True)
def registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, registers=REGISTERS)


def test_tokens_that_are_in_one_block_alone() -> None:
    """The bias of scores in that block has room for them, that of the next one has not."""
    base: Any = build("beit_base_patch16_224", depth=3)
    rewritten = fill(vr.apply(SPEC, base))
    rooms = [n for n, _ in rewritten.module.named_modules() if n.endswith("_bias")]
    assert rooms == ["blocks.1.attn.registers_bias"]
    tokens = rewritten.delta()["blocks.1.registers.tokens"]
    x = torch.randn(2, 3, 32, 32)
    block = base.blocks[1]
    with_bias(1)(torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])}))

    def put(_: Any, args: Any) -> Any:
        x, *rest = args
        return torch.cat([x[:, :1], tokens.expand(2, -1, -1), x[:, 1:]], 1), *rest

    block.register_forward_pre_hook(put)
    block.register_forward_hook(lambda _m, _a, y: torch.cat([y[:, :1], y[:, 4:]], 1))
    with torch.no_grad():
        assert torch.equal(rewritten.module.eval()(x), base(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC + "prepend prompt(count=2) to blocks[0]\n", "VR417"),
        ("prepend prompt(count=2) to blocks[0]\n" + SPEC, "VR410 .*joined the prefix already"),
        (SPEC.replace("()", "(count=9)"), r"VR403 9 registers are too many at 'blocks\[1\]'"),
    ],
)
def test_what_is_refused(spec: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=message):
        vr.plan(spec, build("vit_tiny_patch16_224", depth=3))


def test_a_stream_that_is_no_sequence_has_no_prefix() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*no sequence of tokens"):
        vr.plan(SPEC, "swin_tiny_patch4_window7_224")
