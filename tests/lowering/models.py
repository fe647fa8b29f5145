"""What the tests of lowering share: a tiny model, specs of every pass, and a delta of noise."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch

import vitrewrite as vr
from tests.models import spread
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.rewrite.unlowering import same_bits
from vitrewrite.sensitivity.profile import Profile

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"
ANY = "insert lora(rank=2, convention=library, alpha=3.0) at every linear in blocks[0:2]"
SPT = "insert lora(rank=2, convention=spt) at blocks[0].mlp.fc1 + blocks[2].attn.{k, proj}"
SPARSE = "insert sparse() at sensitive(budget=2K, scale=4K)"
ADAPTER = "insert adapter(hidden=2) at blocks[*].mlp.fc1"
KV = "prepend kv_prompt(n=2) to blocks[*].attn"
SHALLOW = "prepend prompt(count=3) to blocks[0]"
DEEP = "prepend prompt(count=3) to blocks[*]"
MASKED = "prepend prompt(count=3, masks=true, segments=4) to blocks[*]"
MERGE = "insert merge.bdm() after blocks[0].attn"

SPECS = {
    "lora": (LORA,),
    "lora, library": (ANY,),
    "lora, spt": (SPT,),
    "sparse and lora": (LORA, SPARSE),
    "adapter": (ADAPTER,),
    "key and value prompts": (KV,),
    "shallow prompts": (SHALLOW,),
    "deep prompts": (DEEP,),
    "masked prompts": (MASKED,),
    "merge": (MERGE,),
    "head only": (),
    "all": (ADAPTER, LORA, SPARSE, KV, MASKED, MERGE),
}


TINY = {
    "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return spread(timm.models.vision_transformer.VisionTransformer(**{**TINY, **options}))


def profile() -> Profile:
    """Sensitivities as random as can be."""
    generator = torch.Generator().manual_seed(0)
    named = vit().named_parameters()
    return Profile({f"sensitivity.{n}": torch.rand(p.shape, generator=generator) for n, p in named})


def fill(rewritten: Rewritten) -> Rewritten:
    """Every floating-point tensor of the delta drawn by its name, as if it had been trained."""
    for name, tensor in rewritten.delta().items():
        if tensor.is_floating_point():
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise / math.sqrt(tensor.shape[-1] if tensor.dim() else 1))
            if name.endswith(".running_var"):
                tensor.abs_().add_(0.5)
    return rewritten


def applied(*clauses: str) -> Rewritten:
    """A tuned model; its head is trained too."""
    return fill(vr.apply("\n".join((*clauses, "train head")) + "\n", vit(), profile=profile()))


def state(rewritten: Rewritten) -> dict[str, torch.Tensor]:
    """A copy of its tensors."""
    return {k: v.clone() for k, v in rewritten.module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names and bits."""
    return first.keys() == second.keys() and all(same_bits(v, second[k]) for k, v in first.items())
