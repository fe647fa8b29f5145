"""What LoRA, FacT, RepAdapter, SSF and sparse deltas do, written into the user's own model.

Deltas go into the weights by the formulas of the papers, the rest into hooks: nothing of a rewrite
is used but its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Delta = Mapping[str, torch.Tensor]
ROWS = {"q": (0, 1), "k": (1, 2), "v": (2, 3)}


def weight_of(model: nn.Module, owner: str) -> torch.Tensor:
    """The rows of a weight that a name such as `blocks.0.attn.q` stands for."""
    path, _, name = owner.rpartition(".")
    if name not in ROWS or hasattr(model.get_submodule(path), name):
        return model.get_submodule(owner).get_parameter("weight").data
    whole = model.get_submodule(path).qkv.weight.data
    first, last = ROWS[name]
    return whole[first * whole.shape[1] : last * whole.shape[1]]


def tucker_cores(c: torch.Tensor, p: torch.Tensor, block: int, m: int) -> dict[str, torch.Tensor]:
    """S by matrix of one block of FacT-TK."""
    count = 4 + 2 * m
    t = torch.einsum("ajk,kn->ajn", c, p[:, count * block : count * (block + 1)])
    cores = {f"S_{n}": t[:, :, i].T for i, n in enumerate(("q", "k", "v", "proj"))}
    r = c.shape[0]
    first, second = torch.empty(r, m * r), torch.empty(r, m * r)
    for j in range(r):
        for i in range(m):
            first[:, m * j + i] = t[:, j, 4 + i]
            second[:, m * j + i] = t[:, j, 4 + m + i]
    return {**cores, "S_fc1": first.T, "S_fc2": second}


def add_fact(model: Any, delta: Delta, scale: float, m: int) -> None:
    """W += s V S U, for each d x d piece."""
    u, v, r = delta["fact.U"], delta["fact.V"], len(delta["fact.U"])
    d = u.shape[1]
    for index, block in enumerate(model.blocks):
        if "fact.C" in delta:
            cores = tucker_cores(delta["fact.C"], delta["fact.P"], index, m)
        else:
            own = {k: t for k, t in delta.items() if k.startswith(f"blocks.{index}.")}
            cores = {k.rpartition(".")[2]: t for k, t in own.items() if ".fact." in k}
        for i, name in enumerate(("S_q", "S_k", "S_v")):
            block.attn.qkv.weight.data[i * d : (i + 1) * d] += scale * v @ cores[name] @ u
        block.attn.proj.weight.data += scale * v @ cores["S_proj"] @ u
        for i in range(m):
            piece, rows = slice(i * d, (i + 1) * d), slice(i * r, (i + 1) * r)
            block.mlp.fc1.weight.data[piece] += scale * v @ cores["S_fc1"][rows] @ u
            block.mlp.fc2.weight.data[:, piece] += scale * v @ cores["S_fc2"][:, rows] @ u


def add_lora(model: nn.Module, delta: Delta) -> None:
    """W += up down."""
    for key in [k for k in delta if k.endswith(".lora.up")]:
        owner = key.removesuffix(".lora.up")
        weight_of(model, owner).add_(delta[key] @ delta[f"{owner}.lora.down"])


def add_sparse(model: nn.Module, delta: Delta) -> None:
    """Single entries."""
    for key in [k for k in delta if k.endswith(".sparse.values")]:
        owner = key.removesuffix(".sparse.values")
        parameter = model.get_parameter(re.sub(r"\.[qkv]\.(?=\w+$)", ".qkv.", owner))
        parameter.data.flatten()[delta[f"{owner}.sparse.index"]] += delta[key]


def adapted(z: torch.Tensor, tensors: Delta, scale: float) -> torch.Tensor:
    """R(z) of RepAdapter, by groups."""
    up = tensors["up.weight"]
    code = z @ tensors["down.weight"].T + tensors["down.bias"]
    groups = code.shape[-1] // up.shape[1]
    made = []
    for j in range(groups):
        rows = slice(j * len(up) // groups, (j + 1) * len(up) // groups)
        made.append(code[..., j * up.shape[1] : (j + 1) * up.shape[1]] @ up[rows].T)
    return z + scale * (torch.cat(made, -1) + tensors["up.bias"])


def put_repadapter(model: nn.Module, delta: Delta, scale: float) -> None:
    """Layers read R(z)."""

    def hook(tensors: Delta) -> Any:
        return lambda _, args: (adapted(args[0], tensors, scale),)

    for owner in {k.partition(".repadapter.")[0] for k in delta if ".repadapter." in k}:
        start = f"{owner}.repadapter."
        own = {k.removeprefix(start): t.clone() for k, t in delta.items() if k.startswith(start)}
        model.get_submodule(owner).register_forward_pre_hook(hook(own))


def put_ssf(model: nn.Module, delta: Delta) -> None:
    """Layers yield scale * y + shift."""

    def hook(scale: torch.Tensor, shift: torch.Tensor) -> Any:
        return lambda _, x, y: scale * y + shift

    for owner in {k.partition(".ssf.")[0] for k in delta if ".ssf." in k}:
        pair = (delta[f"{owner}.ssf.{name}"].clone() for name in ("scale", "shift"))
        model.get_submodule(owner).register_forward_hook(hook(*pair))


def by_formula(model: Any, delta: Delta, scale: float, m: int = 4) -> nn.Module:
    """All of it; `scale` is that of FacT and RepAdapter."""
    add_lora(model, delta)
    add_sparse(model, delta)
    if "fact.U" in delta:
        add_fact(model, delta, scale, m)
    put_repadapter(model, delta, scale)
    put_ssf(model, delta)
    made: nn.Module = model.eval()
    return made
