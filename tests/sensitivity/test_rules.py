"""The rules of SPT one by one: thresholds, counts, budgets, ties, and what is never chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.anatomy import analyse
from vitrewrite.errors import ProfileError
from vitrewrite.profiling.gradients import squared_gradients
from vitrewrite.sensitivity import Allocation, AllocationRule, Candidate, allocate, candidates
from vitrewrite.tracing import trace

WITHOUT_HEAD = 85_798_656


def cost_of(name: str, **options: int) -> Callable[[int, int], int]:
    """What a pass says it costs at a matrix."""
    found: Callable[[int, int], int] = catalog.load(name)(**options).cost  # type: ignore[attr-defined]
    return found


COSTS = {"lora": cost_of("lora", rank=8), "adapter": cost_of("adapter", hidden=8)}


# -- ViT-B/16 -------------------------------------------------------------------------------------


@functools.cache
def one_block() -> tuple[Candidate, ...]:
    """The candidates of a ViT-B/16 of one block."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", depth=1)
    root = trace(model)
    return candidates(root, analyse(root))


def with_sensitive(name: str, count: int) -> dict[str, torch.Tensor]:
    """Sensitivities that are zero but for `count` entries of one candidate."""
    found: dict[str, torch.Tensor] = {}
    for each in one_block():
        rows = max(each.rows[1] if each.rows else each.shape[0], 0)
        kept = found.get(each.parameter)
        if kept is None or len(kept) < rows:
            found[each.parameter] = torch.zeros(rows, *each.shape[1:])
    (chosen,) = (c for c in one_block() if c.name == name)
    first = 0 if chosen.rows is None else chosen.rows[0]
    width = found[chosen.parameter][0].numel()
    found[chosen.parameter].view(-1)[first * width :][:count] = 1.0
    return found


@pytest.mark.parametrize(
    ("structured", "part", "threshold"),
    [
        *(("lora", f"attn.qkv.weight[{p}]", 1228.8) for p in "qkv"),
        ("lora", "attn.proj.weight", 1228.8),
        ("lora", "mlp.fc1.weight", 3072),
        ("lora", "mlp.fc2.weight", 3072),
        *(("adapter", f"attn.qkv.weight[{p}]", 1306.4) for p in "qkv"),
        ("adapter", "attn.proj.weight", 1306.4),
        ("adapter", "mlp.fc1.weight", 5223.2),
        ("adapter", "mlp.fc2.weight", 1306.4),
    ],
)
def test_thresholds_of_vit_b(structured: str, part: str, threshold: float) -> None:
    """A matrix gets its module from cost / 10 sensitive entries on, and not from one less."""
    name, enough = f"blocks.0.{part}", -int(-threshold // 1)
    cost = round(threshold * 10)
    for count, kind, parameters in (
        (enough, "structured", cost),
        (enough - 1, "entries", enough - 1),
    ):
        rule = AllocationRule(COSTS[structured], scale=50 * count)
        found = allocate(one_block(), with_sensitive(name, count), parameters, rule)
        (decision,) = (d for d in found.decisions if d.count)
        assert (found.tau, found.total) == (count, parameters)
        assert (decision.candidate.name, decision.kind) == (name, kind)


def test_a_vector_is_trained_whole_from_a_fifth_on() -> None:
    for count, kind, parameters in ((154, "vector", 768), (153, "entries", 153)):
        rule = AllocationRule(COSTS["lora"], scale=50 * count)
        sensitivities = with_sensitive("blocks.0.norm1.bias", count)
        (decision,) = (
            d for d in allocate(one_block(), sensitivities, parameters, rule).decisions if d.count
        )
        assert (decision.kind, decision.parameters) == (kind, parameters)


@pytest.mark.parametrize(
    ("spec", "trained"),
    [
        ("insert adapter(hidden=8) at blocks[*].mlp.fc2", 156_768),  # Adapter-8, 0.23 % with head
        ("insert lora(rank=16) at blocks[*].attn.{q, v}", 589_824),  # LoRA-16, 0.69 % without
        ("insert lora(rank=8) at blocks[*].attn.{q, v}", 294_912),  # 0.344 %: not the table's 0.23
        ("train head", 0),  # linear
    ],
)
def test_baselines_of_the_table(spec: str, trained: int) -> None:
    params = vr.plan(spec, "vit_base").measures.params
    head = 1000 * 769
    added = trained if spec.startswith("insert") else 0
    assert params.total == WITHOUT_HEAD + head + added
    assert params.trainable_without_head == trained
    assert params.trainable == trained + (head if spec == "train head" else 0)


# -- budgets --------------------------------------------------------------------------------------


def vector(length: int, name: str = "v") -> Candidate:
    return Candidate(name, (length,))


def singles(budget: int, length: int = 20_000) -> Allocation:
    """An allocation of single entries alone, so that each tau costs tau; steps of 200."""
    rule = AllocationRule(None, vectors=False, scale=10_000)
    return allocate([vector(length)], {"v": torch.arange(length).float()}, budget, rule)


def test_tau_is_the_ceiling_of_a_product_of_floats() -> None:
    assert 0.02 * 28 * 10_000 > 5600  # by rounding
    assert (singles(5600).tau, singles(5600).total) == (5601, 5601)
    assert singles(5800).tau == 5800
    assert singles(10**9, 30_000).tau == 15_800  # 79 steps
    assert singles(4_000, 900).tau == 800  # no more than there are entries


def test_of_equally_near_totals_the_larger_tau_is_taken() -> None:
    assert singles(300).tau == 400
    assert singles(299).tau == 200


def test_a_total_may_be_as_far_off_as_the_budget_is_large() -> None:
    assert singles(100).tau == 200
    with pytest.raises(ProfileError, match="VR761") as caught:
        singles(99)
    assert caught.value.notes == ("the nearest totals are 200, 400, 600",)
    with pytest.raises(ProfileError, match="VR761") as caught:
        singles(100, 199)
    assert caught.value.notes == ("there are 199 entries, and at least 200 are tried",)
    assert caught.value.suggestion == "give a smaller scale, such as scale=9950"


@st.composite
def measured(draw: Any) -> tuple[Sequence[Candidate], dict[str, torch.Tensor]]:
    """Random candidates with random sensitivities, some of them equal."""
    shapes = draw(
        st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=2), min_size=1, max_size=8)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    levels = draw(st.sampled_from([2, 5, 10**6]))
    found, sensitivities = [], {}
    for number, shape in enumerate(shapes):
        weight = 10.0 ** draw(st.integers(-3, 3))
        values = torch.randint(0, levels, shape, generator=generator) * weight
        found.append(Candidate(str(number), tuple(shape)))
        sensitivities[str(number)] = values.float()
    return found, sensitivities


@settings(deadline=None)
@given(
    data=measured(),
    rank=st.integers(1, 3),
    budget=st.integers(1, 400),
    extra=st.integers(0, 9),
    vectors=st.booleans(),
)
def test_the_published_rule_keeps_to_tau(
    data: Any, rank: int, budget: int, extra: int, vectors: bool
) -> None:
    found, sensitivities = data
    cost = {"cost": lambda a, b: rank * (a + b)}
    rule = AllocationRule(**cost, alpha=1, beta=1, vectors=vectors, scale=50, extra=extra)
    try:
        allocation = allocate(found, sensitivities, budget, rule)
    except ProfileError:
        assume(False)  # a budget out of reach, or no matrix that is large enough
    assert allocation.total <= allocation.tau + extra
    assert sum(d.count for d in allocation.decisions) == allocation.tau
    check(allocation, sensitivities)


def check(allocation: Allocation, sensitivities: Mapping[str, torch.Tensor]) -> None:
    """Whatever is not sensitive is at most as large as what is."""
    least = min(
        float(sensitivities[d.candidate.name].flatten().sort(descending=True).values[d.count - 1])
        for d in allocation.decisions
        if d.count
    )
    for decision in allocation.decisions:
        values = sensitivities[decision.candidate.name].flatten()
        assert int((values > least).sum()) <= decision.count
        if decision.kind == "entries":
            assert len(decision.entries) == decision.count == decision.parameters
            assert bool((values[decision.entries] >= least).all())


def test_ties_go_to_what_comes_first_in_the_model() -> None:
    found = [vector(3, "a"), vector(3, "b")]
    sensitivities = {n: torch.tensor([1.0, 2.0, 1.0]) for n in "ab"}
    allocation = allocate(found, sensitivities, 3, AllocationRule(None, vectors=False, scale=150))
    assert [d.entries.tolist() for d in allocation.decisions] == [[0, 1], [1]]


# -- what is never chosen -------------------------------------------------------------------------


def tiny(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, **options
    )


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_a_key_bias_is_chosen_only_if_it_has_a_gradient(options: dict[str, bool]) -> None:
    """It cancels in the softmax, unless keys are normalised behind it."""
    model = tiny(**options)
    root = trace(model.eval())
    found = candidates(root, analyse(root))
    names = list(dict.fromkeys(c.parameter for c in found))
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5)]
    sensitivities = squared_gradients(root, batches, per_sample=False, names=names)

    rule = AllocationRule(None, vectors=False, scale=10**4)
    allocation = allocate(found, sensitivities, 10**6, rule)  # as much as can be
    keys = [d.count for d in allocation.decisions if d.candidate.name.endswith("bias[k]")]
    assert len(keys) == 2
    assert any(keys) == bool(options)


def test_a_module_is_put_only_where_it_is_smaller_than_the_matrix() -> None:
    found = [Candidate("wide", (8, 8)), Candidate("narrow", (2, 64))]
    sensitivities = {"wide": torch.ones(8, 8), "narrow": torch.ones(2, 64)}
    rule = AllocationRule(COSTS_OF_TWO, scale=192 * 50 // 79)
    allocation = allocate(found, sensitivities, 150, rule)
    assert [d.kind for d in allocation.decisions] == ["structured", "entries"]
    for rank in (4, 8):
        with pytest.raises(ProfileError, match="VR766") as caught:
            allocate(found, sensitivities, 100, AllocationRule(cost_of("lora", rank=rank)))
        assert "the largest matrix, which is 2x64" in caught.value.render()


COSTS_OF_TWO = cost_of("lora", rank=2)


def test_a_model_without_blocks() -> None:
    with pytest.raises(ProfileError, match="VR766"):
        allocate([], {}, 100, AllocationRule(None))


class Grouped(torch.nn.Module):
    """Attention whose four heads share one key and one value: rows 16, 4 and 4 of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(16, 24), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        q, k, v = self.qkv(x).split([16, 4, 4], -1)
        q = q.unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = (t.unsqueeze(1).expand(-1, 4, -1, -1) for t in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def test_a_fused_weight_is_cut_where_its_parts_are() -> None:
    model = tiny()
    for block in model.blocks:
        block.attn = Grouped()
    root = trace(model.eval())
    found = {c.name: c for c in candidates(root, analyse(root)) if "blocks.0.attn.qkv" in c.name}
    rows = {name: c.rows for name, c in found.items() if c.is_matrix}
    assert rows == {
        f"blocks.0.attn.qkv.weight[{part}]": span
        for part, span in (("q", (0, 16)), ("k", (16, 20)), ("v", (20, 24)))
    }
    assert [c.shape for c in found.values() if not c.is_matrix] == [(16,), (4,), (4,)]
