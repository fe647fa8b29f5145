"""Claims under a convention: what is counted, against counts by hand."""

from __future__ import annotations

import pytest

import vitrewrite as vr
from vitrewrite import catalog
from vitrewrite.errors import VitrewriteError

from . import goldens

DEPTH, WIDTH, TOKENS, CLASSES = 2, 48, 17, 10
MODEL = (
    f"model vit_tiny_patch16_224(img_size=64, depth={DEPTH}, embed_dim={WIDTH}, num_heads=3, "
    f"num_classes={CLASSES})"
)
LINEAR = TOKENS * WIDTH * WIDTH * 12 * DEPTH + WIDTH * CLASSES
PATCHES = (TOKENS - 1) * 16 * 16 * 3 * WIDTH
SCORES = 2 * DEPTH * TOKENS * TOKENS * WIDTH


def measured(*lines: str) -> list[float]:
    text = "\n".join([MODEL, *(f"require {line}" for line in lines if "(" in line or "==" in line)])
    return [verdict.measured for verdict in vr.plan(text + "\ntrain head").claims]


@pytest.fixture(scope="module")
def normed() -> int:
    """Elements of the norms, by hooks on timm's own model."""
    import timm
    import torch
    from torch import nn

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=DEPTH, embed_dim=WIDTH, num_heads=3
    )
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda m, given, made: seen.append(made.numel()))
    model(torch.zeros(1, 3, 64, 64))
    return sum(seen)


def test_conventions(normed: int) -> None:
    plain, norms, linear, linear_norms, twice = measured(
        "macs == 1",
        "macs(convention=norms) == 1",
        "macs(convention=linear) == 1",
        "macs(convention=linear_norms) == 1",
        "flops(convention=linear) == 1",
    )
    assert plain == PATCHES + LINEAR + SCORES
    assert norms == plain + 5 * normed
    assert linear == PATCHES + LINEAR
    assert linear_norms == linear + normed
    assert twice == 2 * linear


def test_patches_are_what_mlps_are_counted_for() -> None:
    """SPViT's formula: 4 (N + 1) C^2 + 2 C (N + 1)^2 and 2 N C hidden, both norms of a block."""
    n, c, hidden = TOKENS - 1, WIDTH, 4 * WIDTH
    attention, mlp = 4 * (n + 1) * c * c + 2 * c * (n + 1) ** 2, 2 * n * c * hidden
    norms = 2 * c * (n + 1)
    patches, without_mlp, without_norm = measured(
        "macs(convention=patches) == 1",
        "macs(convention=patches) == 1 excluding blocks[*].mlp",
        "macs(convention=patches) == 1 excluding blocks[0].norm1",
    )
    assert patches == PATCHES + c * CLASSES + DEPTH * (attention + mlp + norms)
    assert without_mlp == patches - DEPTH * mlp
    assert without_norm == patches - c * (n + 1)


@pytest.mark.parametrize(
    ("model", "known"), [("deit_tiny", 1.251), ("deit_small", 4.587), ("deit_base", 17.511)]
)
def test_dense_models_cost_what_spvit_looks_up(model: str, known: float) -> None:
    """The figures that He et al., TPAMI 2024, start from; adapters that fold change none of it."""
    claim = "require macs_lowered(convention=patches) == 1"
    (plain,) = vr.plan(f"model {model}\n{claim}").claims
    (folded,) = vr.plan(f"model {model}\ninsert lora() at blocks[*].mlp.fc1\n{claim}").claims
    assert plain.measured == folded.measured
    assert round(plain.measured / 1e9, 3) == known


def test_parameters_of_the_lowered_model_are_those_that_are_left() -> None:
    """A low-rank adapter folds into what was there; a norm's scale and shift into a layer."""
    base = measured("params == 1")[0]
    text = f"{MODEL}\ninsert lora(rank=2) at blocks[*].attn.q\ninsert ssf() at blocks[*].norm1\n"
    claims = vr.plan(f"{text}require params == 1\nrequire params_lowered == 1\n").claims
    adapted, lowered = (claim.measured for claim in claims)
    assert adapted == base + DEPTH * (2 * 2 * WIDTH + 2 * WIDTH)
    assert lowered == base


def test_a_net_that_was_found_costs_what_spvit_looks_up() -> None:
    """The golden network of SPViT: one by one, three by three, and attention twice."""
    text = (
        "model vit_tiny_patch16_224(img_size=32, patch_size=4, embed_dim=48, depth=4, "
        'num_heads=4, num_classes=10)\nreplace blocks[*].attn with umsa(state=["1x1", "3x3", '
        '"msa", "msa"])\nreplace blocks[*].mlp with uffn(keep=[92, 115, 99, 89])\n'
    )
    (claim,) = vr.plan(f"{text}require macs_lowered(convention=patches) == 1\n").claims
    assert claim.measured == goldens.case("spvit-model").tensors["cost.total_macs"].item()


def test_what_a_search_saves_of_deit_b_is_what_spvit_prints() -> None:
    """Table 4.6: 52.0 %, of attention 37.7 %, of MLPs 60.7 %."""
    claims = (
        "require macs_lowered(convention=patches) == 1\n"
        "require macs_lowered(convention=patches) == 1 excluding blocks[*].mlp\n"
    )
    dense, dense_rest = (c.measured for c in vr.plan(f"model deit_base\n{claims}").claims)
    text = catalog.spec_path("spvit_deit_base").read_text().partition("require")[0]
    now, rest = (c.measured for c in vr.plan(f"{text}\n{claims}").claims)
    attention = 12 * (4 * 197 * 768**2 + 2 * 768 * 197**2)
    assert round(100 * (1 - now / dense), 2) == 52.08
    assert round(100 * (dense_rest - rest) / attention, 2) == 37.69
    assert round(100 * (1 - (now - rest) / (dense - dense_rest)), 2) == 60.81


def test_windows_have_no_class_token_to_leave_out() -> None:
    first, plain = vr.plan(
        "model swin_tiny\nrequire macs(convention=patches) == 1\nrequire macs == 1"
    ).claims
    widths = ((96, 3136, 2), (192, 784, 2), (384, 196, 6), (768, 49, 2))
    assert first.measured - plain.measured == sum(2 * c * n * d for c, n, d in widths)


def test_modules_are_left_out_once() -> None:
    without_patches, without_block, without_both = measured(
        'macs == 1 excluding module("patch_embed")',
        "macs == 1 excluding blocks[1]",
        'macs == 1 excluding blocks[1] + module("blocks.1.attn") + module("patch_embed")',
    )
    block = (LINEAR - WIDTH * CLASSES + SCORES) // DEPTH
    assert without_patches == LINEAR + SCORES
    assert without_block == PATCHES + LINEAR + SCORES - block
    assert without_both == LINEAR + SCORES - block


def test_the_head_counts_for_as_many_classes_as_tasks_have_on_average() -> None:
    trained, mean, none, total = measured(
        "trainable == 1",
        "trainable(head=940/19) == 1",
        "trainable == 1 excluding head",
        "params(head=1000) == 1",
    )
    assert trained == CLASSES * (WIDTH + 1)
    assert mean == round(940 / 19 * (WIDTH + 1))
    assert none == 0
    assert total == measured("params == 1")[0] + (1000 - CLASSES) * (WIDTH + 1)


def test_shares_and_storage() -> None:
    spec = f"{MODEL}\ninsert lora(rank=2) at blocks[*].attn.{{q, v}}\ntrain head\n"
    claims = (
        "share <= 1", "share(head=5) <= 1", "share(of=base_and_head, head=5) <= 1",
        "share(of=all, head=5) <= 1", "storage(tasks=3, head=5) <= 9", "params >= 0",
    )  # fmt: skip
    plan = vr.plan(spec + "\n".join(f"require {claim}" for claim in claims))
    bare, counted, of_both, of_all, storage, total = (v.measured for v in plan.claims)
    added, head, own = 4 * WIDTH * 2 * DEPTH, 5 * (WIDTH + 1), CLASSES * (WIDTH + 1)
    base = total - added - own
    assert bare == added / base
    assert counted == (added + head) / base
    assert of_both == (added + head) / (base + head)
    assert of_all == (added + head) / (base + added + head)
    assert storage == 1 + 3 * counted


def test_a_base_that_each_task_trains_whole_is_not_kept() -> None:
    text = f"{MODEL}\ntrain every parameter\nrequire storage(tasks=3) == 3"
    (verdict,) = vr.plan(text).claims
    assert verdict.holds


def test_the_cheapest_and_the_dearest_stitch() -> None:
    small = "depth=3, num_heads=2, img_size=32, patch_size=16, num_classes=10, embed_dim="
    text = (
        f"stitch a=vit_tiny_patch16_224({small}16), b=vit_tiny_patch16_224({small}32) "
        "with snnet()\n"
        "insert lora(rank=2) at a.blocks[*].attn.q\n"
    )
    space = vr.plan(text).measures.stitches
    assert space is not None
    norms = [
        f"require {metric}(stitches={which}, convention={how}) == 1\n"
        for which in ("least", "most") for metric, how in (
            ("macs", "plain"), ("macs_lowered", "plain"), ("flops", "plain"), ("macs", "norms"),
        )
    ]  # fmt: skip
    found = [verdict.measured for verdict in vr.plan(f"{text}{''.join(norms)}").claims]
    least, most = space.macs
    lora, normed = 3 * 5 * (16 * 2 + 2 * 16), 5 * 5 * 16 * 7
    assert found[:4] == [least, least - lora, 2 * least, least + normed]
    assert (found[4], found[6]) == (most, 2 * most)
    with pytest.raises(VitrewriteError, match=r"VR502 .* a stitch is counted whole"):
        vr.plan(f"{text}require macs(stitches=most, convention=patches) == 1\n")


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("macs(convention=fvcore) == 1", "linear_norms"),
        ("macs(conventions=norms) == 1", "did you mean 'convention'"),
        ("trainable(head=-1) == 1", "at least 0"),
        ("storage(head=3) == 1", "tasks"),
        ("share == 1 excluding head", "cannot exclude"),
        ("macs == 1 excluding every bias", "no MACs of its own"),
        ("macs(stitches=least) == 1", "no models are stitched"),
        ("macs(convention=norms, convention=plain) == 1", "twice"),
    ],
)
def test_what_is_wrong_is_said(claim: str, told: str) -> None:
    with pytest.raises(VitrewriteError) as caught:
        vr.plan(f"{MODEL}\nrequire {claim}")
    assert told in str(caught.value)


def test_claims_print_as_they_are_read() -> None:
    line = "require macs(convention=norms) within 0.1% of 13.3G excluding blocks[0]"
    spec = vr.parse(f'row "a-1: b"\n{MODEL}\n{line}')
    assert str(vr.parse(str(spec))) == str(spec)
    assert [str(row) for row in spec.rows] == ['row "a-1: b"']


def test_rows_of_what_is_included_are_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "recipe.peft").write_text('row "a-1: b"\ntune { lr = 1.0, batch = 3 }\n')
    (tmp_path / "own.peft").write_text('row "a-1: c"\ninclude "recipe.peft"\ntune { lr = 2.0 }\n')
    spec = vr.parse(tmp_path / "own.peft")
    assert [row.name for row in spec.rows] == ["c"]
    assert spec.tune.values == {"lr": 2.0, "batch": 3}
