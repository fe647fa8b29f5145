"""What is said of several models at once: stages, other clauses at a base, and what is refused."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import vitrewrite as vr
from tests.passes.test_snnet import SMALL, STITCH, by_hand, stitched

SWIN = "img_size=64, window_size=4, embed_dim={}, depths=[2, 2, {}, 2], num_heads=[2, 2, 2, 2]"
CONVNEXT = "depths=[2, 2, {1}, 2], dims=[{0}, {0}, {0}, {0}]"
STAGED = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "convnext": ("convnext_tiny", CONVNEXT),
}


def staged(name: str, width: int, depth: int) -> str:
    model, arguments = STAGED[name]
    return f"{model}({arguments.format(width, depth)}, num_classes=5)"


def in_stages(made: Any, models: Any, x: torch.Tensor, number: int) -> torch.Tensor:
    """A stitch of a model with stages: `downsample` of each counts as a piece in front of it."""
    front, stop, layer, end, start = made.STITCHES[number]
    one, other = getattr(models, front), getattr(models, end)

    def pieces(model: Any) -> list[Any]:
        stages = model.layers if hasattr(model, "layers") else model.stages
        return [piece for stage in stages for piece in (stage.downsample, *stage.blocks)]

    x = (one.patch_embed if hasattr(one, "patch_embed") else one.stem)(x)
    for piece in pieces(one)[:stop]:
        x = piece(x)
    x = x if layer is None else made.stitches[layer](x)
    for piece in pieces(other)[start:]:
        x = piece(x)
    return other.forward_head(other.norm(x) if hasattr(other, "norm") else other.norm_pre(x))


@pytest.mark.parametrize(("depth", "pairs"), [(3, [1, 1, 2]), (6, [1, 1, 5])])
@pytest.mark.parametrize("name", STAGED)
def test_models_with_stages(name: str, depth: int, pairs: list[int]) -> None:
    small, large = staged(name, 16, 3), staged(name, 24, depth)
    x = torch.randn(2, 3, 64, 64)
    made = vr.apply(f"stitch {small}, {large} with snnet()\n", calibration=[x])
    module, models = made.module.eval(), made.original
    assert models is not None
    models.eval()
    space: Any = made.measures.stitches
    assert len(space.stitches) == 2 + sum(pairs)  # none in the last stage
    for number in range(2 + sum(pairs)):
        wanted = in_stages(module, models, x, number)
        torch.testing.assert_close(module.stitch(x, number), wanted)  # type: ignore[operator]
    one = vr.lower(made, stitch=3)
    torch.testing.assert_close(one.module(x), module.stitch(x, 3))  # type: ignore[operator]
    assert one.measures.macs == space.stitches[3].macs
    shape = module.get_submodule("stitches.0").weight.shape  # type: ignore[union-attr]
    assert shape == ((24, 16, 1, 1) if name == "convnext" else (24, 16))


MORE = [
    "insert lora(rank=[1, 2, 3, 4]) at front.blocks[*].attn.q",
    "insert adaptformer(hidden=4) at every base.blocks[*].mlp_branch",
    "insert ssf() at every norm",
    "prepend kv_prompt(n=2) to every base.blocks[*].attn",
    "replace every base.head with mlp_head(layers=2)",
    "prepend prompt(count=3) to front.blocks[0]",
    "insert lora(rank=2) at module('end.blocks.*.attn.qkv')\ntrain every bias in front",
    "train every base.{head, norm}\nrequire tokens at end.blocks[2] == 65",
]


@pytest.mark.parametrize("more", MORE)
def test_other_clauses_at_one_base_or_every_base(more: str) -> None:
    made = stitched(more)
    with torch.no_grad():
        for tensor in (t for t in made.delta().values() if t.is_floating_point()):
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    module: Any = made.module.eval()
    x = torch.randn(2, 3, 32, 32)
    one = vr.lower(made, stitch=6)
    torch.testing.assert_close(one.module(x), module.stitch(x, 6), rtol=1e-4, atol=1e-4)
    for number, output in enumerate(module(x)):
        torch.testing.assert_close(module.stitch(x, number), output)


def test_what_holds_of_any_model_holds_of_several() -> None:
    spec = f"{STITCH})\n".replace("depth=4", "depth=4, drop_path_rate=0.3")
    made = vr.apply(spec)
    module, original, x = made.module.eval(), made.original, torch.randn(2, 3, 32, 32)
    run: Any = module.stitch
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other.stitch(x, 5), run(x, 5))
    half: Any = copy.deepcopy(module).bfloat16()
    torch.testing.assert_close(half.stitch(x.bfloat16(), 5).float(), run(x, 5), rtol=0, atol=3e-2)
    for each in (module, original):
        assert each is not None
        each.train()
    found, wanted = (seeded(call, x, 5) for call in (run, partial(by_hand, module, original)))
    assert torch.equal(found, wanted)  # drop paths of both models are drawn as in their own forward


def seeded(call: Any, *args: Any) -> Any:
    torch.manual_seed(0)
    return call(*args)


def test_weights_of_each_base(tmp_path: Any) -> None:
    first = vr.apply(f"{STITCH})\n")
    assert first.original is not None
    for name, model in first.original.named_children():
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    where = ",".join(f"{name}={tmp_path / name}.safetensors" for name in ("front", "end"))
    second = vr.apply(f"{STITCH})\n", weights=where, seed=3)
    x = torch.randn(1, 3, 32, 32)
    for one, other in zip(first.module.eval()(x), second.module.eval()(x), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(vr.VitrewriteError, match="VR508 weights=front=random does not say"):
        vr.apply(f"{STITCH})\n", weights="front=random")


def test_a_role_starts_at_its_base() -> None:
    plan = vr.plan(f"{STITCH})\ntrain every base.blocks[0].attn.proj + front.cls_token\n")
    assert plan.steps[-1].sites == (
        "front.blocks[0].attn.proj",
        "end.blocks[0].attn.proj",
        "front.cls_token",
    )
    assert list(plan.base_anatomies) == ["front", "end"]
    assert plan.base_anatomies["end"].blocks[3].role == "end.blocks[3]"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (f"{STITCH}kernel=2, stride=3)", "VR511 snnet: stride 3 leaves out blocks"),
        (f"{STITCH})".replace("embed_dim=32", "embed_dim=64"), "VR511 snnet: 'front' is wider"),
        (f"{STITCH})".replace("depth=4", "depth=5", 1), "VR511 snnet: the front has 5 blocks"),
        (f"{STITCH})".replace("patch_size=4", "patch_size=8", 1), "VR508 snnet cannot stitch"),
        (f"{STITCH})".replace("num_classes=10", "num_classes=9", 1), "tells 9 classes apart"),
        (f"{STITCH})".replace("img_size=32", "img_size=64", 1), "VR508 the bases take different"),
        (f"{STITCH})".replace("classes=10", "classes=10, reg_tokens=2", 1), "1 prefix tokens"),
        (f"{STITCH}kernel=0)", "VR203 snnet.kernel"),
        (f"{STITCH}ends=outer)", "VR2"),
        (f"{STITCH})\ndrop front.blocks[0]", "VR513"),
        (f"{STITCH})\ninsert merge.bdm() after end.blocks[1].attn",
         "VR509 snnet: the blocks of 'end' cannot be cut"),
        (f"{STITCH})\ninsert merge.bdm() after front.blocks[3].attn",
         "VR509 merge.bdm changes the tokens of 'front', which is stitched: sizes"),
        (f"{STITCH})\nprepend prompt(count=3) to front.blocks[*]",
         "VR509 prompt changes the tokens of 'front', which is stitched: its prompts"),
        (f"{STITCH})\nprepend prompt(count=3) to end.blocks[0]", "VR509 prompt changes the tokens"),
        (f"{STITCH})\ninsert dispatch(hidden=4) at front.blocks[*].mlp_branch", "VR509 snnet"),
        (f"{STITCH})\ninsert lora(rank=2) at front.blocks[7].attn.q", "VR304"),
    ],
)  # fmt: skip
def test_bad_input(spec: str, told: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(f"{spec}\n")
    assert told in str(caught.value)


def test_models_that_are_given_have_the_names_of_the_clause() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(vr.VitrewriteError, match="VR507 the models that are given are a, b"):
        vr.plan(f"{STITCH})\n", {"a": model, "b": model})
    with pytest.raises(vr.VitrewriteError, match="VR507 2 models are given by name"):
        vr.plan("train head", {"a": model, "b": model})


def test_numbers_that_are_none() -> None:
    made = stitched()
    for number in (-1, 12):
        with pytest.raises(vr.VitrewriteError, match=f"VR510 there is no stitch {number}"):
            vr.lower(made, stitch=number)
    plain = vr.apply(f"model vit_tiny_patch16_224({SMALL})\ntrain head")
    with pytest.raises(vr.VitrewriteError, match="VR510 'spec' stitches no models"):
        vr.lower(plain, stitch=0)
