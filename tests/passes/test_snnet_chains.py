"""SN-Net without nearest stitching: all pairs of three models, and chains through all of them."""

from __future__ import annotations

from typing import Any

import torch
from vitrewrite.passes.snnet.space import window_pairs

import vitrewrite as vr
from tests.passes.test_snnet import SMALL
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tracing.about import about


def three(options: str) -> Rewritten:
    tiny = SMALL.replace("depth=4", "depth=2").replace("patch_size=4", "patch_size=16")
    models = ", ".join(
        f"{name}=vit_tiny_patch16_224({tiny.replace('embed_dim=32', f'embed_dim={width}')})"
        for name, width in (("a", 16), ("b", 32), ("c", 48))
    )
    return vr.apply(f"stitch {models} with snnet({options})\n")


def test_chains_of_three_models() -> None:
    made = three("nearest=false, biases=true")
    space: Any = made.measures.stitches
    pairs = [s for s in space.stitches if s.path.layer is not None and s.path.between is None]
    chains = [s for s in space.stitches if s.path.between is not None]
    assert [s.path.front + s.path.end for s in pairs] == ["ab"] * 4 + ["bc"] * 4 + ["ac"] * 4
    # Of the four pairs (j, k) of two blocks each: two with k = 0, which four go on from, and two
    # with k = 1, which those with j = 1 do.
    assert len(chains) == 2 * 4 + 2 * 2
    assert all(s.name == "a-b-c" for s in chains)
    module: Any = made.module.eval()
    with torch.no_grad():
        for tensor in made.delta().values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 3, 32, 32)
    chain = chains[-1]
    mid = chain.path.between
    y = module.a.run(module.a.begin(x), 0, chain.path.stop)
    for layer, model, start, stop in (
        (mid.layer, module.b, mid.start, mid.stop),
        (chain.path.layer, module.c, chain.path.start, None),
    ):
        one = module.stitches[layer]
        one.running = chain.number
        y = model.run(one(y), start, stop)
        one.running = None
    assert torch.equal(module.stitch(x, chain.number), module.c.finish(y))
    for stitch in (pairs[-1], chain, chains[0]):
        alone = vr.lower(made, stitch=stitch.number)
        wanted = module.stitch(x, stitch.number)
        torch.testing.assert_close(alone.module.eval()(x), wanted, rtol=1e-4, atol=1e-5)
        assert alone.measures.macs == stitch.macs_lowered == stitch.macs
        assert alone.measures.params.total == stitch.params - (
            sum(m.outputs for m in module.stitches if stitch.number in m.stitches)
        )
    assert "if between:" in model_text(made)
    vr.verify(made, graphs=False)
    assert about(alone.base).notes[-1].endswith("layer 0, b 0..1, layer 1, then c from 0")


def test_configurations_of_three_models_of_twelve_blocks() -> None:
    pairs = window_pairs(12, 2, 1)
    chains = sum(two.front >= one.end for one in pairs for two in pairs)
    assert (3 + 2 * len(pairs), 3 + 3 * len(pairs) + chains) == (71, 732)
