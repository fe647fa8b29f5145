"""Deltas with matrices of few bits: their size, and that they come back bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

import vitrewrite as vr
from tests.emission.emitted import loaded
from tests.lowering.models import equal, fill, state, vit
from vitrewrite.cli.commands import cli
from vitrewrite.folder.packed import encoded, quantised, write_plain
from vitrewrite.rewrite.rewritten import Rewritten

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SPEC = (
    "insert bi.lora(rank=3, bits={0}) at blocks[*].attn.{{q, v}}\n"
    "insert bi.adaptformer(hidden=3, bits={0}) at blocks[*].mlp_branch\n"
    "insert merge.bdm() after blocks[1].attn\n"
)
HEADS = ("train head\n", "replace head with bi.head(bits=2)\n")


def trained(spec: str) -> Rewritten:
    rewritten = fill(vr.apply(spec, vit()))
    rewritten.module.eval()
    return rewritten


@pytest.mark.parametrize(
    ("bits", "head", "suffix"),
    [
        (1, HEADS[0], ".safetensors"), (1, HEADS[1], ".bin"), (2, HEADS[0], ".bin"),
        (4, HEADS[1], ".safetensors"), (8, HEADS[0], ".bin"),
    ],
)  # fmt: skip
@torch.no_grad()
def test_it_comes_back_bit_by_bit(bits: int, head: str, suffix: str, tmp_path: Path) -> None:
    spec, path = SPEC.format(bits) + head, tmp_path / f"task{suffix}"
    rewritten = trained(spec)
    if suffix == ".bin":
        write_plain(rewritten, path)
    else:
        vr.save(rewritten, path, packed=True)
    other = vr.apply(spec, vit())
    other.module.eval()
    vr.load(other, path)
    assert torch.equal(other.module(IMAGES), rewritten.module(IMAGES))
    lowered, expected = vr.lower(other), vr.lower(rewritten)
    assert equal(state(lowered), state(expected))
    again = tmp_path / f"again{suffix}"
    if suffix == ".bin":
        write_plain(other, again)
    else:
        vr.save(other, again)  # what was read from bits is written as bits
    assert again.read_bytes() == path.read_bytes()


@torch.no_grad()
def test_latent_numbers_are_kept_unless_it_is_packed(tmp_path: Path) -> None:
    rewritten = trained(SPEC.format(1))
    vr.save(rewritten, tmp_path / "latent.safetensors")
    vr.save(rewritten, tmp_path / "packed.safetensors", packed=True)
    other = vr.apply(SPEC.format(1), vit())
    vr.load(other, tmp_path / "packed.safetensors")
    hard = {k: v.clone() for k, v in other.delta().items()}
    vr.load(other, tmp_path / "latent.safetensors")  # soft again
    assert all(torch.equal(v, other.delta()[k]) for k, v in rewritten.delta().items())
    assert torch.equal(other.module.eval()(IMAGES), rewritten.module(IMAGES))
    assert not any(torch.equal(v, hard[k]) for k, v in other.delta().items())


@torch.no_grad()
def test_a_folder_of_what_was_read_from_bits(tmp_path: Path) -> None:
    rewritten = trained(SPEC.format(2) + HEADS[1])
    vr.save(rewritten, tmp_path / "task.safetensors", packed=True)
    vr.load(other := vr.apply(SPEC.format(2) + HEADS[1], vit()), tmp_path / "task.safetensors")
    other.module.eval()
    vr.emit(other, tmp_path / "out")
    assert any(k.endswith(".codes") for k in load_file(tmp_path / "out" / "delta.safetensors"))
    expected = rewritten.module(IMAGES)
    assert torch.equal(loaded(tmp_path / "out").eval()(IMAGES), expected)
    vr.verify(other, graphs=False)


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


MODEL = ("model=vit_tiny_patch16_224", "img_size=32", "embed_dim=48", "num_classes=5", "depth=2")


@torch.no_grad()
def test_the_command(tmp_path: Path) -> None:
    spec = tmp_path / "task.peft"
    spec.write_text(SPEC.format(1) + "train head\n")
    command("apply", spec, *MODEL, "--out", tmp_path / "out")
    for name in ("task.safetensors", "task.bin"):
        told = command("pack", tmp_path / "out", "--out", tmp_path / name)
        # 2 blocks of 6 matrices of 3x48 and the adapter of the merge, 2 of 32x16; a bit each
        assert "14 matrices, 456 bytes in place of 11,008" in told
        low = tmp_path / f"low{name}"
        command("lower", tmp_path / "out", "--delta", tmp_path / name, "--out", low)
    assert (tmp_path / "task.bin").stat().st_size == 456 + 4 * (48 * 5 + 5)
    command("lower", tmp_path / "out", "--out", tmp_path / "low")
    weights = [
        load_file(tmp_path / n / "weights.safetensors")
        for n in ("low", "lowtask.safetensors", "lowtask.bin")
    ]
    assert equal(weights[0], weights[1])
    assert equal(weights[0], weights[2])


def as_wide_as_vit_base() -> Any:
    """As deep too, with little else."""
    small = {"embed_dim": 768, "num_heads": 12, "depth": 12, "mlp_ratio": 0.01, "num_classes": 10}
    return vit(**small)


LORA = "insert bi.lora(rank={}) at blocks[*].attn.{{q, v}}\n"
ADAPTER = "insert bi.adaptformer(hidden=32) at blocks[*].mlp_branch\n"
SIZES = [
    (LORA.format(32) + "train head\n", 147_456, 48, 4 * (768 * 10 + 10)),
    (LORA.format(32) + "replace head with bi.head()\n", 147_456 + 960, 49, 0),
    (LORA.format(1), 4_608, 48, 0),
    (ADAPTER, 73_728, 24, 0),
    ("insert merge.bdm() after blocks[6].attn\n", 512, 2, 0),
]


@pytest.mark.parametrize(
    ("spec", "codes", "matrices", "other"),
    [SIZES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in SIZES[1:])],
)
def test_sizes_of_the_card(
    spec: str, codes: int, matrices: int, other: int, tmp_path: Path
) -> None:
    """The bytes of section 7: 147,456 and 8 for each of 48 matrices, and what the head adds."""
    rewritten = vr.apply(spec, as_wide_as_vit_base())
    tensors = encoded(rewritten, bits=True)
    size = sum(t.nbytes for t in tensors.values())
    assert (len(quantised(rewritten)), size) == (matrices, codes + 8 * matrices + other)
    write_plain(rewritten, tmp_path / "task.bin")
    assert (tmp_path / "task.bin").stat().st_size == size
    vr.save(rewritten, tmp_path / "task.safetensors", packed=True)
    header = (tmp_path / "task.safetensors").stat().st_size - size
    assert header < 700 + 150 * len(load_file(tmp_path / "task.safetensors"))


@pytest.mark.parametrize(
    ("clauses", "head", "parameters"),
    [
        (LORA.format(32), "train head\n", 147_840 / 4 + 7690),
        (LORA.format(32), "replace head with bi.head()\n", (147_840 + 960 + 8) / 4),
        (LORA.format(32).replace("=32", "=32, bits=32"), "train head\n", 1_179_648 + 7690),
        (LORA.format(32) + ADAPTER, "", (147_840 + 73_920) / 4),
    ],
)
def test_the_claim_about_storage_counts_bits(clauses: str, head: str, parameters: float) -> None:
    heads = "head=10" if head else ""
    wanted = 1 + 19 * parameters / 85_798_656
    claim = f"require storage(tasks=19, {heads}) within 0.0001% of {wanted:.9f}\n"
    spec = f"model vit_base_patch16_224(num_classes=10)\n{clauses}{head}{claim}"
    assert all(verdict.holds for verdict in vr.plan(spec).claims)


def test_plain_bytes_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    rewritten = trained(SPEC.format(1) + "train head\n")
    write_plain(rewritten, tmp_path / "task.bin")
    raw = (tmp_path / "task.bin").read_bytes()
    head = rewritten.delta()["head.weight"], rewritten.delta()["head.bias"]
    assert raw.endswith(b"".join(t.numpy().tobytes() for t in head))
    tensors = encoded(rewritten, bits=True)
    first = [f"blocks.0.attn.{s}.bi.lora.{m}" for s in "qv" for m in ("down", "up")]
    first += [f"blocks.0.bi.adaptformer.{m}" for m in ("down", "up")]
    wanted = [tensors[n + kind].numpy().tobytes() for n in first for kind in (".codes", ".scale")]
    assert raw.startswith(b"".join(wanted))


# -- what is refused ------------------------------------------------------------------------------


def error(action: Any) -> vr.VitrewriteError:
    with pytest.raises(vr.VitrewriteError) as caught:
        action()
    return caught.value


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "task.safetensors"
    plain = trained("insert lora(rank=2) at blocks[*].attn.q\n")
    assert error(lambda: vr.save(plain, path, packed=True)).code == "VR448"
    assert error(lambda: write_plain(plain, tmp_path / "task.bin")).code == "VR448"
    rewritten = trained(SPEC.format(1))
    assert error(lambda: vr.save(vr.lower(rewritten), path, packed=True)).code == "VR448"
    vr.save(rewritten, path, packed=True)
    vr.load(rewritten, path)
    name = "blocks.0.attn.q.bi.lora.down"
    rewritten.delta()[name][0, 0] += 1e-3
    found = error(lambda: vr.save(rewritten, path))
    assert found.code == "VR446"
    assert f"'{name}'" in str(found)
    rewritten.delta()[name].fill_(0.25)
    assert error(lambda: vr.save(rewritten, path)).code == "VR445"


def test_what_does_not_fit(tmp_path: Path) -> None:
    rewritten = trained(SPEC.format(1))
    write_plain(rewritten, tmp_path / "task.bin")
    raw = (tmp_path / "task.bin").read_bytes()
    (tmp_path / "task.bin").write_bytes(raw[:-1])
    found = error(lambda: vr.load(rewritten, tmp_path / "task.bin"))
    assert (found.code, str(len(raw)) in str(found)) == ("VR447", True)
    assert error(lambda: vr.load(rewritten, tmp_path / "none.bin")).code == "VR711"
    flat = {k: torch.ones_like(v) for k, v in rewritten.delta().items()}
    vr.save(rewritten, tmp_path / "task.safetensors")
    before = state(rewritten)
    assert error(lambda: vr.load(rewritten, write(tmp_path, flat, "task"))).code == "VR445"
    vr.save(rewritten, tmp_path / "bits.safetensors", packed=True)
    key = "blocks.0.attn.q.bi.lora.down"
    for change in (
        {f"{key}.codes": torch.zeros(5, dtype=torch.uint8)},
        {f"{key}.scale": torch.tensor([0.0, -1.0])},
        {f"{key}.scale": torch.tensor([0.0, float("nan")])},
        {f"{key}.codes": None},
    ):
        odd: dict[str, Any] = {**encoded(rewritten, bits=True), **change}
        path = write(tmp_path, {k: v for k, v in odd.items() if v is not None}, "bits")
        assert error(lambda path=path: vr.load(rewritten, path)).code == "VR722"
    assert equal(state(rewritten), before)


def write(folder: Path, tensors: dict[str, torch.Tensor], like: str) -> Path:
    """A delta with the origin of another, and a hash of its own."""
    from vitrewrite.storage.tensors import write_tensors

    with safe_open(folder / f"{like}.safetensors", "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "digest"}
    write_tensors(folder / "odd.safetensors", tensors, metadata, seal=True)
    return folder / "odd.safetensors"


def test_initial_values_that_are_equal_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitrewrite.layers.quantised import Quantised

    monkeypatch.setattr(
        Quantised, "reset_parameters", lambda self, generator=None: self.weight.data.fill_(1.0)
    )
    found = error(lambda: vr.apply("insert bi.lora(rank=2) at blocks[1].attn.q\n", vit()))
    assert found.code == "VR445"
    assert "'down.0' of bi.lora at 'blocks[1].attn.q'" in str(found)
    vr.apply("insert bi.lora(rank=2, bits=32) at blocks[1].attn.q\n", vit())
