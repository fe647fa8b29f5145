"""`show embeddings`: what is drawn is what the head reads."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.lowering.models import vit
from vitrewrite.data import Batch
from vitrewrite.errors import DataError, MatchError
from vitrewrite.report.embeddings import Embeddings, EmbeddingsPicture

from .invoke import invoke

TINY = "vit_tiny_patch16_224(img_size=32, depth=1, embed_dim=24, num_heads=3, num_classes=10)"


def batch(count: int = 12) -> Batch:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(count) % 3)


@pytest.mark.parametrize(
    "clause",
    ["train head", "insert lora(rank=2) at head", "prepend vqt() to blocks[*]",
     "insert lst(reduction=2, init=random) at blocks[*]", "replace head with mlp_head(layers=2)"],
)  # fmt: skip
def test_the_head_is_made_of_what_is_drawn(clause: str) -> None:
    """The last linear layer gives the classes of it, whatever pass put it there."""
    made = vr.apply(f"{clause}\n", vit())
    found = Embeddings.of(made, [batch()], "abc")
    assert len(found.vectors) == 12
    with torch.no_grad():
        logits = made.module.eval()(batch().images)
    matrices = [
        p
        for n, p in made.module.named_parameters()
        if p.dim() == 2
        and p.shape == (logits.shape[1], found.vectors.shape[1])
        and n in made.result.head
    ]
    assert any(
        torch.allclose((found.vectors @ m.T - logits).std(0), torch.zeros(()), atol=1e-4)
        for m in matrices
    )


def test_principal_components() -> None:
    """They have the distances of the vectors where these lie in a plane; signs are settled."""
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3, 1])
    plane = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0][:2]
    found = Embeddings("a", points @ plane + 5, torch.arange(20) % 2, ("x", "y"))
    made, shares = found.components()
    torch.testing.assert_close(torch.cdist(made, made), torch.cdist(points, points))
    assert sum(shares) == pytest.approx(1)
    twin = Embeddings("a", -found.vectors, found.labels, found.classes)
    torch.testing.assert_close(twin.components()[0].abs(), made.abs())


def test_few_images() -> None:
    made = vr.apply("train head\n", vit())
    with pytest.raises(DataError, match=r"VR573 .* 5 images, and there are 4"):
        Embeddings.of(made, [batch(4)], "abc")
    found = Embeddings.of(made, [batch(5)], "abc")
    with pytest.raises(DataError, match="perplexity of 2") as caught:
        found.neighbours(0, 2.0)
    assert "valid: 1 to 1.333" in caught.value.render()


def test_groups_stay_groups() -> None:
    """t-SNE of two far groups keeps them apart, and is the same again at the same seed."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    vectors = torch.randn(16, 4, generator=generator) + 40 * labels[:, None]
    found = Embeddings("a", vectors, labels, ("x", "y"))
    assert found.alike == 1
    picture = EmbeddingsPicture.by_neighbours(found, seed=3)
    assert Embeddings("b", picture.points, labels, ()).alike == 1
    assert torch.equal(picture.points, EmbeddingsPicture.by_neighbours(found, seed=3).points)
    assert "t-SNE, perplexity 5, seed 3" in picture.picture()


def test_other_models_are_refused() -> None:
    twins = "model deit_tiny_distilled_patch16_224(img_size=16, depth=1, embed_dim=24, num_heads=3)"
    with pytest.raises(MatchError, match=r"VR572 .* is 2 layers"):
        Embeddings.of(vr.apply(f"{twins}\ntrain head\n"), [batch()], ())


def test_the_command(tmp_path: Path) -> None:
    spec = tmp_path / "probe.peft"
    spec.write_text(f"model {TINY}\ntrain head\n")
    svg = tmp_path / "a.svg"
    done = invoke("show", "embeddings", spec, "data=digits:0-2", "--images", "20", "--svg", svg)
    assert "embeddings  20 images, 24 numbers each" in done.out
    marks = [each for each in ET.parse(svg).getroot().iter() if each.tag.endswith("circle")]
    assert len(marks) == 20 + 3
    done = invoke("show", "embeddings", spec)
    assert done.codes == ["VR907"]
    done = invoke("show", "embeddings", spec, "data=digits", "--perplexity", "4")
    assert "--perplexity is of t-SNE" in done.err
    assert "add --tsne" in done.err
