"""The methods of the matrix: the clauses of each, on whatever has such sites."""

from __future__ import annotations

from collections.abc import Mapping

_ALL = "blocks[*].attn.{q, k, v, proj} + blocks[*].mlp.{fc1, fc2}"

METHODS: Mapping[str, tuple[str, ...]] = {
    "linear probe": ("",),
    "BitFit": ("train every bias\n",),
    "Partial-1": ("train blocks[-1]\n",),
    "MLP-3": ("replace head with mlp_head()\n",),
    "LoRA on q, v": ("insert lora(rank=2) at blocks[*].attn.{q, v}\n",),
    "LoRA on linears": (
        "insert lora(rank=2) at blocks[*].attn.{qkv, proj} + blocks[*].mlp.{fc1, fc2}\n",
        "insert lora(rank=2) at every linear in blocks\n",
    ),
    "Adapter, Pfeiffer": (
        "insert adapter(hidden=2) at blocks[*].mlp_branch\n",
        "insert adapter(hidden=2, norm=behind) at blocks[*].mlp_branch\n",
    ),
    "Adapter, Houlsby": (
        "insert adapter(hidden=2) at every branch\n",
        "insert adapter(hidden=2, norm=behind) at every branch\n",
    ),
    "AdaptFormer": ("insert adaptformer(hidden=2) at blocks[*].mlp_branch\n",),
    "SSF": (
        "insert ssf() at every linear in blocks + every norm + every conv in patch_embed\n",
        "insert ssf() at every linear in blocks + every norm in blocks\n",
        "insert ssf() at every linear in blocks\n",
    ),
    "FacT-TT": (
        f"insert fact(rank=2) at {_ALL}\n",
        "insert fact(rank=2) at blocks[*].mlp.{fc1, fc2}\n",
    ),
    "FacT-TK": (
        f"insert fact(rank=2, form=tk) at {_ALL}\n",
        "insert fact(rank=2, form=tk) at blocks[*].mlp.{fc1, fc2}\n",
    ),
    "RepAdapter": (
        "insert repadapter(hidden=2) at blocks[*].attn.qkv + blocks[*].mlp.fc1\n",
        "insert repadapter(hidden=2) at blocks[*].attn.{q, k, v} + blocks[*].mlp.fc1\n",
        "insert repadapter(hidden=2) at blocks[*].mlp.fc1\n",
    ),
    "ConvPass": ("insert convpass(hidden=2) at every branch\n",),
    "Res-Tuning": (
        "insert res_tuning(hidden=2) at blocks[*].attn + blocks[*].mlp\n",
        "insert res_tuning(hidden=2) at blocks[*].mlp\n",
    ),
    "Res-Tuning-Bypass": ("insert res_tuning(form=bypass, hidden=2) at blocks[*]\n",),
    "UniAdapter": ("insert uniadapter(hidden=2) at blocks[*].mlp_branch\n",),
    "Bi-LoRA": ("insert bi.lora(rank=2) at blocks[*].attn.{q, v}\n",),
    "Bi-AdaptFormer": ("insert bi.adaptformer(hidden=2) at blocks[*].mlp_branch\n",),
    "(IA)3": (
        "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2\n",
        "insert ia3() at blocks[*].mlp.fc2\n",
    ),
    "UFFN": ("replace blocks[*].mlp with uffn()\n", "replace every mlp with uffn()\n"),
    "Heads": (
        "replace blocks[*].attn with heads()\n",
        "replace every attention with heads()\n",
    ),
    "VPT-deep": ("prepend prompt(count=2) to blocks[*]\n",),
    "E2VPT": (
        "prepend prompt(count=2) to blocks[*]\nprepend kv_prompt(n=2) to blocks[*].attn\n",
        "prepend kv_prompt(n=2) to blocks[*].attn\n",
    ),
    "Head2Toe": ("replace head with head2toe()\n",),
    "LST": (
        "insert lst(reduction=2) at blocks[*]\n",
        "insert lst(reduction=2, init=random) at blocks[*]\n",
    ),
    "SynQT": ("insert synqt(count=2, hidden=6, narrow=2) at blocks[*]\n",),
    "VQT": ("prepend vqt(count=2) to blocks[*]\n",),
    "ToMe": ("insert merge.tome(r=2) after blocks[*].attn\n",),
    "FPET": ("insert merge.bdm() after blocks[1].attn\n",),
    "Pooled tokens": (
        "insert merge.pool() after blocks[0].attn\n",
        'insert merge.pool(window="2x1") after blocks[0].attn\n',
    ),
    "ToMe, and back": (
        "insert merge.tome(r=2) after blocks[0].attn\ninsert unmerge() after blocks[0]\n",
    ),
    "EViT": ("insert prune.evit(keep=0.5) after blocks[1].attn\n",),
    "DyT": ("insert dispatch(hidden=2) at blocks[*].mlp_branch\n",),
    "DynamicViT": ("insert prune.dynamicvit(keep=0.5) before blocks[1]\n",),
    "dTPS": ("insert squeeze.tps(keep=0.5) before blocks[1]\n",),
    "eTPS": ("insert squeeze.tps(keep=0.5) after blocks[1].attn\n",),
    "LTMP": ("insert prune.ltmp() after blocks[*].attn\n",),
    "UMSA": (
        "replace every attention with umsa()\n",
        "replace every attention with umsa(kernels=[1])\n",
    ),
    "SLS": ("drop blocks[*] by sls()\n",),
}
"""Clauses in order of preference: the first ones that an architecture has sites for count."""
