"""Names of weights: Hugging Face's models have them as timm's, under other names.

Only names differ, and that timm keeps q, k and v in one matrix. One table serves both ways: it
says for a name of Hugging Face which tensor of timm it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

# What a head or a task puts in front of the names of a backbone.
_ROOTS = ("vit.", "deit.", "beit.", "dinov2.", "dinov2_with_registers.", "swin.", "vision_model.")

# Names of transformers 4, which files keep, as those of transformers 5.
_OLD = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^encoder\.layers\.(\d+)\.(blocks|downsample)\.", r"stages.\1.\2."),
        (r"^encoder\.layers?\.", "layers."),
        (r"\.(?:attention\.attention|attention\.self|self_attn|attention)\.([qkv])"
         r"(?:uery|ey|alue|_proj)\.", r".attention.\1_proj."),
        (r"\.(?:attention\.output\.dense|self_attn\.out_proj)\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.(?:attention\.)?(?:attention\.|self\.)?(?:relative_position_bias\.)?"
         r"relative_position_bias_table$", ".attention.relative_position_bias_table"),
    )
)  # fmt: skip

# `#` stands for a number, `#+` for the next one, `@` for the rest.
_TABLE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embeddings.projection.@", "patch_embed.proj.@"),
    ("embeddings.patch_embedding.@", "patch_embed.proj.@"),
    ("embeddings.norm.@", "patch_embed.norm.@"),
    ("pre_layrnorm.@", "norm_pre.@"),
    ("layernorm.@", "norm.@"),
    ("post_layernorm.@", "norm.@"),
    ("pooler.layernorm.@", "fc_norm.@"),
    ("classifier.@", "head.@"),
    ("cls_classifier.@", "head.@"),
    ("distillation_classifier.@", "head_dist.@"),
    ("visual_projection.@", "head.@"),
    ("layers.#.layernorm_before.@", "blocks.#.norm1.@"),
    ("layers.#.layernorm_after.@", "blocks.#.norm2.@"),
    ("layers.#.layer_norm1.@", "blocks.#.norm1.@"),
    ("layers.#.layer_norm2.@", "blocks.#.norm2.@"),
    ("layers.#.norm1.@", "blocks.#.norm1.@"),
    ("layers.#.norm2.@", "blocks.#.norm2.@"),
    ("layers.#.lambda_1", "blocks.#.gamma_1"),
    ("layers.#.lambda_2", "blocks.#.gamma_2"),
    ("layers.#.layer_scale1.lambda1", "blocks.#.ls1.gamma"),
    ("layers.#.layer_scale2.lambda1", "blocks.#.ls2.gamma"),
    ("layers.#.mlp.weights_in.@", "blocks.#.mlp.fc1.@"),
    ("layers.#.mlp.weights_out.@", "blocks.#.mlp.fc2.@"),
    ("layers.#.mlp.@", "blocks.#.mlp.@"),
    ("layers.#.attention.o_proj.@", "blocks.#.attn.proj.@"),
    ("layers.#.attention.@", "blocks.#.attn.@"),
    ("stages.#.blocks.#.layernorm_before.@", "layers.#.blocks.#.norm1.@"),
    ("stages.#.blocks.#.layernorm_after.@", "layers.#.blocks.#.norm2.@"),
    ("stages.#.blocks.#.mlp.@", "layers.#.blocks.#.mlp.@"),
    ("stages.#.blocks.#.attention.o_proj.@", "layers.#.blocks.#.attn.proj.@"),
    ("stages.#.blocks.#.attention.@", "layers.#.blocks.#.attn.@"),
    ("stages.#.downsample.@", "layers.#+.downsample.@"),
)
_PARTS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


@dataclass(frozen=True)
class Timms:
    """Which tensor of timm a name of Hugging Face stands for.

    Attributes:
        name: timm's name.
        part: which third of it, for q, k and v; None for all of it.
    """

    name: str
    part: int | None = None


def as_timms(name: str, known: Collection[str]) -> Timms | None:
    """What a name of Hugging Face is in a model of timm; None if that has nothing of the kind.

    Args:
        name: of a parameter of a Hugging Face model, as a file has it or as the model has it.
        known: timm's names.
    """
    name = next((name.removeprefix(root) for root in _ROOTS if name.startswith(root)), name)
    for old, new in _OLD:
        name = old.sub(new, name)
    for pattern, timms in _RULES:
        if found := pattern.fullmatch(name):
            return _known(timms(found), known)
    return None


def _known(name: str, known: Collection[str]) -> Timms | None:
    owner, _, kind = name.rpartition(".")
    above, _, layer = owner.rpartition(".")
    if layer in _PARTS:
        alone = f"{above}.{layer[0]}_bias"  # as BEiT has them, of q and v only
        if kind == "bias" and alone in known:
            return Timms(alone)
        name = f"{above}.qkv.{kind}"
        return Timms(name, _PARTS[layer]) if name in known else None
    if name not in known and name.startswith("head."):
        name = name.replace("head.", "head.fc.", 1)
    return Timms(name) if name in known else None


def _rules() -> Iterator[tuple[re.Pattern[str], _Rule]]:
    for theirs, timms in _TABLE:
        pattern = re.escape(theirs).replace(r"\#", r"(\d+)").replace("@", "(.+)")
        yield re.compile(pattern), _Rule(timms)


@dataclass(frozen=True)
class _Rule:
    timms: str

    def __call__(self, found: re.Match[str]) -> str:
        groups = iter(found.groups())

        def filled(mark: re.Match[str]) -> str:
            value = next(groups)
            return str(int(value) + 1) if mark[0] == "#+" else value

        return re.sub(r"#\+|#|@", filled, self.timms)


_RULES = tuple(_rules())


def renamed(
    tensors: Mapping[str, torch.Tensor], known: Collection[str]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Tensors of a Hugging Face model under timm's names.

    Args:
        tensors: by Hugging Face's names.
        known: timm's.

    Returns:
        Those that timm's model has, and the names of the others.
    """
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    left: set[str] = set()
    for name, tensor in tensors.items():
        meant = as_timms(name, known)
        if meant is None:
            left.add(name)
        elif meant.part is None:
            found[meant.name] = tensor
        else:
            parts.setdefault(meant.name, {})[meant.part] = tensor
    for name, three in parts.items():
        if len(three) == len(_PARTS):
            found[name] = torch.cat([three[i] for i in range(len(_PARTS))])
    return found, left


def taken_from_timm(
    tensors: Mapping[str, torch.Tensor], wanted: Collection[str]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Tensors of timm's under the names of a Hugging Face model.

    Args:
        tensors: by timm's names.
        wanted: Hugging Face's.

    Returns:
        Those that were found, and the names of timm's that were not used.
    """
    found: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for name in wanted:
        meant = as_timms(name, tensors.keys())
        if meant is not None:
            tensor = tensors[meant.name]
            found[name] = tensor if meant.part is None else tensor.chunk(len(_PARTS))[meant.part]
            used.add(meant.name)
    return found, set(tensors) - used
