"""`show features`: the numbers are those of the modules, and what has none is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.lowering.models import vit
from vitrewrite.errors import DataError, MatchError
from vitrewrite.report.features import FeaturesPicture, FeatureWeights

from .invoke import invoke

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TINY = "model vit_tiny_patch16_224(img_size=64, depth=2, embed_dim=48, num_heads=3)\n"


def shown(spec: str, images: torch.Tensor | None = None) -> FeaturesPicture:
    return FeaturesPicture.of(vr.apply(spec, vit()), images)


def only(picture: FeaturesPicture) -> FeatureWeights:
    (found,) = picture.tables
    return found


@pytest.mark.parametrize("lowered", [False, True])
def test_gates_of_a_ladder(lowered: bool) -> None:
    """What a rung reads of its block, by the number of the block, folded or not."""
    made = vr.apply("insert lst(reduction=2, init=random) at blocks[1:]\n", vit())
    rungs = [m for m in made.inserted("lst") if hasattr(m, "gate")]
    for place, rung in enumerate(rungs):
        rung.gate.data.fill_(0.1 * place)  # type: ignore[union-attr, operator]
    picture = FeaturesPicture.of(vr.lower(made) if lowered else made)
    found = only(picture)
    assert found.names == tuple(f"blocks[{i + 1}]" for i in range(len(rungs)))
    expected = torch.sigmoid(-torch.arange(len(rungs)).float())
    torch.testing.assert_close(found.values[0], expected)


def test_features_of_a_selection() -> None:
    """Counts add up to what is kept, and norms are those of the head's columns."""
    made = vr.apply("replace head with head2toe(kept=[0, 1, 40, 17, 100])\n", vit())
    counts, norms = FeaturesPicture.of(made).tables
    assert counts.names == norms.names
    assert "head" in counts.names
    assert all(name.count("blocks[") == 1 for name in set(counts.names) - {"head"})
    assert counts.values.sum() == 5
    (head,) = made.inserted("head2toe")
    total = head.weight.detach().square().sum()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(norms.values.square().sum(), total)


def test_weights_by_image() -> None:
    """Those of SynQT hang on the image; without images they are refused."""
    spec = "insert synqt(hidden=12, narrow=6) at blocks[*]\n"
    with pytest.raises(DataError, match="VR571"):
        shown(spec)
    found = only(shown(spec, IMAGES))
    depth = len(found.names) // 3
    assert list(found.taps) == ["queries", "attention", "mlp"]
    assert [column for column, _ in found.taps["mlp"]] == [str(i) for i in range(depth)]
    assert found.values.shape == (3, 3 * depth)
    assert ((found.values >= 0) & (found.values < 1)).all()
    assert not torch.equal(found.values[0], found.values[1])


@pytest.mark.parametrize("form", ["concat", "pool", "weighted"])
def test_columns_of_summaries(form: str) -> None:
    made = vr.apply(f"prepend vqt(count=2, combine={form}) to blocks[*]\n", vit())
    found = only(FeaturesPicture.of(made))
    head = made.inserted("vqt")[-1]
    total = head.weight.detach().square().sum()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found.values.square().sum(), total)


def test_the_command_draws_a_folder(tmp_path: Path) -> None:
    """A blend of two, which needs no images."""
    spec = tmp_path / "side.peft"
    spec.write_text(f"{TINY}insert side_tuning() before head\n")
    done = invoke("show", "features", spec, "--svg", tmp_path / "a.svg", "--json")
    assert done.json["features"] == {"side_tuning, share": {"model": 0.5, "side network": 0.5}}
    texts = [t.text for t in ET.parse(tmp_path / "a.svg").getroot().iter() if t.text]
    assert {"model", "side network", "0.5"} <= set(texts)
    done = invoke("show", "features", spec)
    assert "model  side network" in done.out


def test_a_model_without_weights_says_what_it_has() -> None:
    with pytest.raises(MatchError, match="VR570") as caught:
        shown("insert lora() at blocks[*].attn.q\n")
    assert "its passes: lora" in caught.value.render()
    with pytest.raises(MatchError, match="no clause of it has a pass"):
        shown("train head\n")
