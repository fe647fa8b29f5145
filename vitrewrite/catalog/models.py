"""Names of models: short ones, the bases that papers start from, and what is shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrewrite.catalog.timms import is_timms, timm_models
from vitrewrite.errors import MatchError
from vitrewrite.text import did_you_mean, shown

HUGGING_FACE = "hf:"
_CONFIGS = Path(__file__).parent / "configs"

ALIASES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_giant": "vit_giant_patch14_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_base": "vit_base_patch14_dinov2",
    "beit_base": "beit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swinv2_tiny": "swinv2_tiny_window8_256",
}


@dataclass(frozen=True)
class Base:
    """A model as papers start from it.

    Attributes:
        name: timm's, with the tag of weights that timm has.
        options: of its constructor; a spec's own hold over them.
        about: what it was trained on, and the files that `weights=` takes for it.
    """

    name: str
    about: str
    options: Mapping[str, Any] = field(default_factory=lambda: {"num_classes": 1000})


_IN21K = "supervised on ImageNet-21k"
_NPZ = f"{_IN21K}; pretrained, or a checkpoint of it"
_MOCO = (
    "MoCo v3 on ImageNet-1k; weights: vit-b-300ep.pth.tar of its authors, whose names begin with "
    "module.base_encoder."
)
_MAE = "MAE on ImageNet-1k; pretrained, or mae_pretrain_vit_base.pth of its authors"
BASES: Mapping[str, Base] = {
    "vit_tiny_in21k": Base("vit_tiny_patch16_224.augreg_in21k", _NPZ),
    "vit_small_in21k": Base("vit_small_patch16_224.augreg_in21k", _NPZ),
    "vit_base_in21k": Base("vit_base_patch16_224.augreg_in21k", _NPZ),
    "vit_large_in21k": Base("vit_large_patch16_224.augreg_in21k", _NPZ),
    "vit_base_mae": Base(
        "vit_base_patch16_224.mae", _MAE, {"num_classes": 1000, "global_pool": "avg"}
    ),
    "vit_base_moco_v3": Base("vit_base_patch16_224", _MOCO),
    "swin_base_in22k": Base("swin_base_patch4_window7_224.ms_in22k", _NPZ.replace("21k", "22k")),
    "convnext_base_in22k": Base("convnext_base.fb_in22k", _NPZ.replace("21k", "22k")),
}


def full_name(name: str) -> str:
    """The name with aliases resolved."""
    return BASES[name].name if name in BASES else ALIASES.get(name, name)


def with_own(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor, with those that the name stands for."""
    return {**(BASES[name].options if name in BASES else {}), **options}


def shipped() -> list[str]:
    """Models of Hugging Face whose configuration comes with vitrewrite: they need no network."""
    return sorted(f"{HUGGING_FACE}{path.stem}" for path in _CONFIGS.glob("*.json"))


def config_of(name: str) -> Path:
    """The file of a shipped configuration."""
    return _CONFIGS / f"{name.removeprefix(HUGGING_FACE)}.json"


def known_models() -> list[tuple[str, str]]:
    """Names of all models that can be had without a file, with a line about some of them."""
    found = [(name, f"alias of {full}") for name, full in ALIASES.items()]
    found += [(name, f"{base.name}, {base.about}") for name, base in BASES.items()]
    found += [(name, _about(config_of(name))) for name in shipped()]
    return [*found, *((name, "") for name in timm_models())]


def _about(config: Path) -> str:
    values = json.loads(config.read_bytes())
    backbone = values["backbone_config"]["model_type"]
    return f"{values['architectures'][0]} on {backbone}, {values['num_labels']} classes"


def refuse_unknown(name: str) -> None:
    """Refuses a name that nobody knows; what a file or Hugging Face has is found out later.

    Raises:
        MatchError: VR310.
    """
    if ".py:" in name or name.startswith(HUGGING_FACE):
        return
    full = full_name(name)
    # A colon names another source: a repository or a folder.
    if ":" in full or not is_timms(full):
        raise MatchError(
            "VR310",
            f"no model named {shown(name)}",
            suggestion=did_you_mean(name, [*ALIASES, *BASES, *timm_models()])
            or "see 'vitrewrite list models'",
        )
