"""Vision transformers of other libraries: their own classes with small arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from tests.zoo.subject import Subject, images

_VIT = {
    "image_size": 64, "patch_size": 16, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3,
    "mlp_dim": 96,
}  # fmt: skip
_STAGED = {f"s{i}_{k}": v for i in range(1, 4) for k, v in {"depth": 1, "mlp_mult": 2}.items()}


def _vit_pytorch() -> dict[str, Callable[[], nn.Module]]:
    """The plain classifiers: those that are called with an image and return its logits."""

    def of(file: str, name: str, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            made: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{file}"), name)(
                **options
            )
            return made

        return build

    staged = {"num_classes": 7, **_STAGED}
    return {
        "ViT": of("vit", "ViT", **_VIT, dropout=0.1, emb_dropout=0.1),
        "SimpleViT": of("simple_vit", "SimpleViT", **_VIT),
        "DeepViT": of("deepvit", "DeepViT", **_VIT, dropout=0.1),
        "CaiT": of("cait", "CaiT", **_VIT, cls_depth=1, dropout=0.1),
        "T2TViT": of("t2t", "T2TViT", image_size=64, num_classes=7, dim=48, depth=2, heads=3,
                     mlp_dim=96, t2t_layers=((7, 4), (3, 2))),
        "CvT": of("cvt", "CvT", **staged, s1_emb_dim=16, s2_emb_dim=24, s3_emb_dim=32, s1_heads=1,
                  s2_heads=2, s3_heads=2),
        "CrossViT": of("cross_vit", "CrossViT", image_size=64, num_classes=7, depth=1, sm_dim=24,
                       sm_patch_size=16, sm_enc_depth=1, sm_enc_heads=2, sm_enc_mlp_dim=48,
                       lg_dim=32, lg_patch_size=32, lg_enc_depth=1, lg_enc_heads=2,
                       lg_enc_mlp_dim=64, cross_attn_depth=1, cross_attn_heads=2),
        "LeViT": of("levit", "LeViT", image_size=64, num_classes=7, stages=2, dim=(32, 48),
                    depth=1, heads=(2, 3), mlp_mult=2, dropout=0.1),
        "MaxViT": of("max_vit", "MaxViT", num_classes=7, dim_conv_stem=16, dim=16, dim_head=8,
                     depth=(1, 1), window_size=4, dropout=0.1),
        "NesT": of("nest", "NesT", image_size=64, patch_size=4, dim=24, heads=3, num_hierarchies=2,
                   block_repeats=(1, 1), num_classes=7),
        "PiT": of("pit", "PiT", image_size=64, patch_size=16, dim=32, num_classes=7, depth=(1, 1),
                  heads=2, mlp_dim=64, dropout=0.1),
        "RegionViT": of("regionvit", "RegionViT", dim=(16, 24, 32, 40), depth=(1, 1, 1, 1),
                        window_size=2, num_classes=7, tokenize_local_3_conv=False),
        "ScalableViT": of("scalable_vit", "ScalableViT", num_classes=7, dim=16, heads=(1, 2),
                          depth=(1, 1), ssa_dim_key=(8, 8), reduction_factor=(2, 1),
                          window_size=(4, None), dropout=0.1),
        "TwinsSVT": of("twins_svt", "TwinsSVT", num_classes=7, s1_emb_dim=16, s2_emb_dim=24,
                       s3_emb_dim=32, s4_emb_dim=32, s1_depth=1, s2_depth=1, s3_depth=1, s4_depth=1,
                       s1_local_patch_size=4, s2_local_patch_size=4, s3_local_patch_size=2,
                       s1_global_k=2, s2_global_k=2, s3_global_k=2, s4_global_k=2, dropout=0.1),
    }  # fmt: skip


def _torchvision() -> dict[str, Callable[[], nn.Module]]:
    from torchvision.models import maxvit, swin_transformer, vision_transformer

    swin = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4],
            "window_size": [4, 4], "num_classes": 7, "dropout": 0.1}  # fmt: skip
    second = {
        "block": swin_transformer.SwinTransformerBlockV2,
        "downsample_layer": swin_transformer.PatchMergingV2,
    }
    return {
        "VisionTransformer": lambda: vision_transformer.VisionTransformer(
            64, 16, 2, 3, 48, 96, dropout=0.1, num_classes=7
        ),
        "SwinTransformer": lambda: swin_transformer.SwinTransformer(**swin),  # type: ignore[arg-type]
        "SwinTransformerV2": lambda: swin_transformer.SwinTransformer(**swin, **second),  # type: ignore[arg-type]
        "MaxVit": lambda: maxvit.MaxVit((64, 64), 16, 2, [16, 24], [1, 1], 8, 0.1, num_classes=7),
    }


def _open_clip() -> dict[str, Callable[[], nn.Module]]:
    def tower(**more: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            from open_clip.transformer import VisionTransformer

            made: nn.Module = VisionTransformer(
                image_size=64,
                patch_size=16,
                width=48,
                layers=2,
                heads=3,
                mlp_ratio=2.0,
                output_dim=24,
                **more,
            )
            return made

        return build

    return {
        "VisionTransformer": tower(),
        "VisionTransformer, patch dropout": tower(patch_dropout=0.25),
        "VisionTransformer, average": tower(pool_type="avg", no_ln_pre=True, ls_init_value=0.1),
        "VisionTransformer, attentional pool": tower(attentional_pool=True, attn_pooler_heads=3),
    }


def _segment_anything() -> dict[str, Callable[[], nn.Module]]:
    def build() -> nn.Module:
        from segment_anything.modeling import ImageEncoderViT

        made: nn.Module = ImageEncoderViT(
            img_size=64,
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=3,
            out_chans=16,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        )
        return made

    return {"ImageEncoderViT": build}


def _monai() -> dict[str, Callable[[], nn.Module]]:
    def of(name: str, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            nets = importlib.import_module("monai.networks.nets")
            made: nn.Module = getattr(nets, name)(**options)
            return made

        return build

    plain = {"in_channels": 3, "img_size": (64, 64), "patch_size": (16, 16), "hidden_size": 48,
             "mlp_dim": 96, "num_layers": 2, "num_heads": 3, "spatial_dims": 2}  # fmt: skip
    return {
        "ViT": of("ViT", **plain, classification=True, num_classes=7, dropout_rate=0.1),
        "ViTAutoEnc": of("ViTAutoEnc", **plain),
        "SwinUNETR": of("SwinUNETR", in_channels=3, out_channels=3, feature_size=12, spatial_dims=2,
                        depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
        "UNETR": of("UNETR", in_channels=3, out_channels=3, img_size=64, feature_size=8,
                    hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2),
    }  # fmt: skip


LISTS: dict[str, Callable[[], dict[str, Callable[[], nn.Module]]]] = {
    "torchvision": _torchvision,
    "vit-pytorch": _vit_pytorch,
    "open_clip": _open_clip,
    "segment-anything": _segment_anything,
    "MONAI": _monai,
}


def names(library: str) -> list[str]:
    """The models of a library."""
    return list(LISTS[library]())


def subject(library: str, name: str) -> Subject:
    """One of them; all are made for images of 64 x 64."""
    return Subject(library, name, lambda: LISTS[library]()[name](), images(3, 64, 64))
