"""What passes read of the tokens: guarded where sizes are free, and true in training too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import vitrewrite as vr
from tests.authored import install

MERGE = "insert merge.bdm() after blocks[0].attn\n"
EXAMPLE = torch.zeros(1, 3, 64, 64)


class Free(nn.Module):
    """A vision transformer without positions: it takes any size."""

    def __init__(self, drop: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 16, stride=16)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.drop and self.training:
            x = x[:, ::2]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def free(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return Free(**more).eval()


def vit(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=5, **more
    ).eval()


def test_a_grid_is_guarded_where_sizes_are_free(tmp_path: Path) -> None:
    rewritten = vr.apply(MERGE, free(), example=EXAMPLE)
    assert rewritten.report["tokens"] == [17, 9, 9]
    assert all(check.holds for check in vr.verify(rewritten, graphs=False))
    space: dict[str, Any] = {"__name__": "emitted"}
    folder = vr.emit(rewritten, tmp_path / "out")
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), space)
    lowered = vr.lower(rewritten).module
    for module in (rewritten.module, space["build"](), lowered):
        assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
        for sides, grid in (((96, 96), "6x6"), ((48, 48), "3x3"), ((32, 128), "2x8")):
            with pytest.raises(ValueError, match=f"merge.bdm .* grid of 4x4 patches, got {grid}"):
                module(torch.zeros(2, 3, *sides))
    again = vr.capture(rewritten.module, EXAMPLE)
    with pytest.raises(ValueError, match="captured for"):
        again(torch.zeros(2, 3, 32, 128))


def test_one_guard_per_pass_and_none_where_the_model_has_its_own() -> None:
    assert vr.apply(MERGE, free(), example=EXAMPLE).source.text.count("is made for a grid") == 1
    assert "is made for" not in vr.apply(MERGE, vit()).source.text


def test_what_needs_no_grid_follows_the_size() -> None:
    spec = "prepend prompt(count=2) to blocks[*]\ninsert lora(rank=2) at blocks[*].attn.q\n"
    rewritten = vr.apply(spec, free(), example=EXAMPLE)
    assert rewritten.module(torch.zeros(2, 3, 96, 48)).shape == (2, 5)


FOLLOWS = '''
class FollowsModule(nn.Module):
    inserted_by = "follows"
    changes = (0,)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        prefix, patches = x[:, :1], x[:, 1:]
        turned = patches.reshape(x.shape[0], height, width, -1).flip(2)
        return torch.cat([prefix, turned.reshape(x.shape[0], height * width, -1)], 1)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """It has none."""


@dataclass(frozen=True)
class Follows(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    reads: ClassVar[tuple[str, ...]] = ("grid",)

    def rewrite(self, block: Any) -> None:
        block.mid.insert(FollowsModule(), *block.mid.grid_size)

    def delta(self, module: Any) -> list[dict[str, torch.Tensor]]:
        return [{}]
'''


def test_a_pass_can_take_the_grid_as_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, follows=FOLLOWS)
    spec = "insert follows() at blocks[*]\n"
    rewritten = vr.apply(spec, free(), example=EXAMPLE)
    assert "is made for" not in rewritten.source.text
    assert all(check.holds for check in vr.verify(rewritten, graphs=False))
    for sides in ((64, 64), (96, 48), (32, 128)):
        x = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found, expected = rewritten.module.eval()(x), turned(free(), x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    fixed = vr.apply(spec, vit())
    assert fixed.module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*no full grid"):
        vr.plan(MERGE + "insert follows() at blocks[1]\n", free(), example=EXAMPLE)


def turned(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The same by hand."""
    x = model.patch(x)
    height, width = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([model.token.expand(x.shape[0], -1, -1), x], 1)
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        patches = x[:, 1:].reshape(x.shape[0], height, width, -1).flip(2)
        x = torch.cat([x[:, :1], patches.reshape(x.shape[0], height * width, -1)], 1)
        x = x + block.mlp(block.norm2(x))
    result: torch.Tensor = model.head(model.norm(x)[:, 0])
    return result


READS = '''
class {cls}Module(nn.Module):
    inserted_by = "{name}"
    changes = (0,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """It has none."""


@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    reads: ClassVar[tuple[str, ...]] = {reads}

    def rewrite(self, block: Any) -> None:
        block.output.insert({cls}Module())
        {line}

    def delta(self, module: Any) -> list[dict[str, torch.Tensor]]:
        return [{{}}]
'''


@pytest.mark.parametrize(
    ("name", "line", "reads", "found"),
    [
        ("reads1", "block.output.tokens.grid", "('grid',)", "guard"),
        ("reads2", "block.context.anatomy.stream.grid", "()", "guard"),
        ("reads3", "block.context.anatomy.stream.tokens", "()", "guard"),
        ("reads4", "block.context.stream.at(0).grid", "('grid',)", "guard"),
        ("reads5", "block.output.tokens.prefix", "('prefix',)", "none"),
        ("reads6", "block.output.tokens.grid", "()", "VR415 reads6 reads 'grid'"),
        ("reads7", "block.output.tokens.size", "('grid',)", "VR415 reads7 reads 'size'"),
        ("reads8", "block.output.become(prefix=3)", "('prefix',)", "VR415 reads8 writes 'prefix'"),
    ],
)
def test_no_way_to_the_facts_is_without_guard(
    name: str, line: str, reads: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = READS.format(name=name, cls=name.capitalize(), reads=reads, line=line)
    install(monkeypatch, tmp_path, **{name: text})
    spec = f"insert {name}() at blocks[0]\n"
    if found.startswith("VR"):
        with pytest.raises(vr.VitrewriteError, match=found):
            vr.apply(spec, free(), example=EXAMPLE)
        return
    source = vr.apply(spec, free(), example=EXAMPLE).source.text
    assert (f"{name} is made for a grid of 4x4 patches" in source) == (found == "guard")


@pytest.mark.parametrize(
    ("model", "unit", "counts"),
    [
        (vit(patch_drop_rate=0.25), "patch_drop", "17 become 13"),
        (vit(patch_drop_rate=0.25, reg_tokens=2), "patch_drop", "19 become 15"),
        (free(drop=True), "the root", "17 become 9"),
    ],
    ids=["patch dropout", "and registers", "a slice"],
)
def test_facts_hold_in_training(model: nn.Module, unit: str, counts: str) -> None:
    with pytest.raises(
        vr.VitrewriteError, match=f"VR416 merge.bdm needs .*'{unit}' changes .*: {counts}"
    ):
        vr.plan(MERGE, model, example=EXAMPLE)
    others = "insert lora(rank=2) at blocks[*].attn.q\nprepend kv_prompt(n=2) to blocks[*].attn\n"
    rewritten = vr.apply(others, model, example=EXAMPLE)
    assert rewritten.module.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_what_training_keeps_in_front_is_a_fact() -> None:
    """Patch dropout leaves class token and registers where they are; prompts stand behind them."""
    spec = "prepend prompt(count=2) to blocks[*]\n"
    rewritten = vr.apply(spec, vit(patch_drop_rate=0.25, reg_tokens=2))
    assert rewritten.module.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert vr.plan(MERGE, vit(drop_path_rate=0.3, proj_drop_rate=0.1)).measures.tokens == (
        17,
        9,
        9,
    )


def test_training_that_moves_the_first_tokens() -> None:
    model: Any = vit(patch_drop_rate=0.25)
    model.patch_drop.num_prefix_tokens = 0
    with pytest.raises(vr.VitrewriteError, match="VR416 prompt needs the prefix tokens"):
        vr.plan("prepend prompt(count=2) to blocks[*]\n", model)
