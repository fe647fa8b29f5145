"""The `unmerge` pass: every patch is the token that it was merged into, on a whole grid again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.passes.test_merge_tome import groups, image, vit, watched

TOME = "insert merge.tome(r=8) after blocks[0:2].attn\n"
SPEC = TOME + "insert unmerge() after blocks[2]\n"


def tokens(**options: Any) -> Any:
    """A model that yields logits of all its tokens."""
    return vit(**{"global_pool": "", "class_token": True, **options}).eval()


def belongs(given: list[tuple[Any, ...]], r: int, prefix: int) -> torch.Tensor:
    """[batch, tokens at first], in which token each is behind all merges; from what they get."""
    count = given[0][0][0].shape[1]
    into = torch.arange(count).repeat(len(given[0][0][0]), 1)
    for (_, k, *_), _ in given:
        for i, m in enumerate(k.mean(1)):
            where = {a: n for n, g in enumerate(groups(m, r, prefix)) for a in g}
            into[i] = torch.tensor([where[int(a)] for a in into[i]])
    return into


class Passing(torch.nn.Module):
    """In place of a block."""

    def forward(self, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "img_size": (20, 28)}], ids=str)
@torch.no_grad()
def test_every_patch_is_the_token_that_it_is_in(options: dict[str, Any]) -> None:
    size = options.get("img_size", (32, 32))
    x, prefix = image(*size), 1 + options.get("reg_tokens", 0)
    short, whole = (vr.apply(s, tokens(**options)) for s in (TOME, SPEC))
    into = belongs(watched(short, x), 8, prefix)
    modules = [each.module.eval() for each in (short, whole, vr.lower(whole))]
    for module in modules:
        module.blocks[3] = Passing()  # type: ignore[assignment]
    y = modules[0](x)
    expected = y.gather(1, into[..., None].expand(-1, -1, 5))
    for module in modules[1:]:
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    assert y.shape[1] == into.shape[1] - 16


def test_facts_are_those_of_a_whole_grid() -> None:
    """Another merge, a convolution and prompts may follow, in the same model and behind it."""
    more = (
        "insert merge.bdm(dropout=0) after blocks[3].attn\n"
        "insert convpass(hidden=2, dropout=0) at blocks[3].attn_branch\n"
    )
    rewritten = fill(vr.apply(SPEC + more, vit()))
    assert rewritten.report["tokens"] == [65, 57, 49, 65, 33]
    vr.verify(rewritten, graphs=False)
    with pytest.raises(vr.VitrewriteError, match=r"VR410 convpass at 'blocks\[2\].mlp_branch'"):
        vr.plan(SPEC + more.replace("blocks[3].attn_branch", "blocks[2].mlp_branch"), vit())
    again = SPEC + TOME.replace("[0:2]", "[3]") + "insert unmerge() after blocks[3]\n"
    assert vr.plan(again, vit()).measures.tokens == (65, 57, 49, 65, 65)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_sizes_do_not_count_behind_it(pool: str) -> None:
    """With one merge in the last block, and all given back, means are those of all patches."""
    spec = "insert merge.tome(r=8) after blocks[3].attn\n"
    with torch.no_grad():
        merged, whole = (
            vr.apply(s, vit(global_pool=pool).eval()).module(image())
            for s in (spec, spec + "insert unmerge() after blocks[3]\n")
        )
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)


class Maps(torch.nn.Module):
    """Features of two blocks as maps."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.vit = vit(**options)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.vit.forward_intermediates(
            x, indices=[2, 3], intermediates_only=True
        )
        return maps


def test_dense_features() -> None:
    rewritten = vr.apply(SPEC, Maps().eval(), example=image(batch=1))
    assert [tuple(m.shape) for m in rewritten.module(image())] == [(2, 16, 8, 8)] * 2
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*on their grid, 8x8"):
        vr.apply(TOME, Maps().eval(), example=image(batch=1))


def test_prompts_in_between() -> None:
    spec = "prepend prompt(count=3) to blocks[1:]\n" + SPEC
    rewritten = fill(vr.apply(spec, vit()))
    assert rewritten.report["tokens"] == [65, 57, 52, 68, 68]
    vr.verify(rewritten, graphs=False)
    with torch.no_grad():
        y, lowered = (r.module.eval()(image()) for r in (rewritten, vr.lower(rewritten)))
    torch.testing.assert_close(lowered, y, rtol=1e-4, atol=1e-5)


def test_gradients_and_another_dtype() -> None:
    rewritten = vr.apply(SPEC + "train blocks[0]\n", tokens().bfloat16())
    rewritten.module.train()(image().bfloat16()).float().sum().backward()
    grads = [p.grad for p in rewritten.module.blocks[0].parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


DROPS = """
class FirstHalf(nn.Module):
    inserted_by = "NAME"
    changes = (0, None)

    def __init__(self, prefix: int, traced: bool = False) -> None:
        super().__init__()
        self.prefix, self.traced = prefix, traced

    def forward(self, x: torch.Tensor, size: torch.Tensor | None = None) -> object:
        size = x.new_ones(x.shape[:2]) if size is None else size
        left = self.prefix + (x.shape[1] - self.prefix) // 2
        number = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        into = number.masked_fill(number >= left, -1)
        made = x[:, :left], size[:, :left]
        return (*made, into, number[:, :left]) if self.traced else made


@dataclass(frozen=True)
class Dropping(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")

    def rewrite(self, attn: Any) -> None:
        point = attn.block.mid
        left = (point.tokens.patches or 0) // 2
        point.regroup(FirstHalf(point.tokens.prefix), patches=left)
"""


@torch.no_grad()
def test_patches_that_were_dropped_are_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a merge follows too: what it moves is not what was dropped."""
    install(monkeypatch, tmp_path, dropping=DROPS.replace("NAME", "dropping"))
    spec = "insert dropping() after blocks[0].attn\n" + SPEC.replace("[0:2]", "[1:3]")
    rewritten = vr.apply(spec, tokens())
    assert rewritten.report["tokens"] == [65, 33, 25, 65, 65]
    seen: list[torch.Tensor] = []
    rewritten.module.blocks[3].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rewritten.module.eval()(image())
    dropped = (seen[0] == 0).all(-1)
    assert dropped.sum(1).tolist() == [32, 32]
    assert bool(dropped[:, 33:].all())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("insert unmerge() after blocks[2]\n", "VR452 unmerge: no clause in front of it makes"),
        (SPEC + "insert unmerge() after blocks[3]\n", "VR452 unmerge: no clause in front of it"),
        (SPEC.replace("blocks[2]", "blocks[0]"), r"VR452|VR410"),
        (SPEC + "insert unmerge() after blocks[2]\n", "VR401 two clauses put unmerge"),
    ],
)
def test_what_is_refused(spec: str, message: str) -> None:
    if "blocks[0]\n" in spec:  # tokens of one block are given back, and the next merges again
        assert vr.plan(spec, vit()).measures.tokens == (65, 65, 57, 57, 57)
        return
    with pytest.raises(vr.VitrewriteError, match=message):
        vr.plan(spec, vit())
