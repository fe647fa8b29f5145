"""Small pieces of forwards, found in libraries: each maps [B, N, C] to [B, N, C].

`m` is the module, with a layer `proj`, parameters `scale` [C] and `table` [1, 1, C], a buffer
`mean` [C] and a setting `heads`. `ENDS` reduce, and come last. The comment of a piece says in which
file of timm or transformers it was found.
"""

# ruff: noqa: N806, RUF005 - as people write them
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 8
Piece = Callable[[Any, Tensor], Any]
PIECES: dict[str, Piece] = {}
ENDS: dict[str, Piece] = {}


class Forward(nn.Module):
    """One piece after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.heads = 2
        self.proj = nn.Linear(C, C)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, C))
        self.table = nn.Parameter(torch.linspace(-1, 1, C).view(1, 1, C))
        self.register_buffer("mean", torch.linspace(0, 0.1, C))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = (PIECES.get(name) or ENDS[name])(self, x)
        return x


def piece(function: Piece) -> Piece:
    PIECES[function.__name__] = function
    return function


def end(function: Piece) -> Piece:
    ENDS[function.__name__] = function
    return function


# -- found in timm --------------------------------------------------------------------------------


@piece
def drop_path(m: Any, x: Tensor) -> Any:  # timm/layers/drop.py
    if not m.training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(0.8)
    random_tensor.div_(0.8)
    return x * random_tensor


@piece
def rot(m: Any, x: Tensor) -> Any:  # timm/layers/pos_embed_sincos.py
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


@piece
def grn(m: Any, x: Tensor) -> Any:  # timm/layers/grn.py
    x_g = x.norm(p=2, dim=1, keepdim=True)
    x_n = x_g / (x_g.mean(dim=-1, keepdim=True) + 1e-6)
    return x + torch.addcmul(m.mean.view(1, 1, -1), m.scale.view(1, 1, -1), x * x_n)


@piece
def eca(m: Any, x: Tensor) -> Any:  # timm/layers/eca.py
    y = x.mean(1).view(x.shape[0], 1, -1)
    return x * y.sigmoid().view(x.shape[0], 1, -1).expand_as(x)


@piece
def instance_std(m: Any, x: Tensor) -> Any:  # timm/layers/evo_norm.py
    std = x.float().var(dim=1, unbiased=False, keepdim=True).add(1e-5).sqrt().to(x.dtype)
    return x / std


@piece
def rms_norm_half(m: Any, x: Tensor) -> Any:  # timm/layers/evo_norm.py
    x_dtype = x.dtype
    rms = x.float().square().mean(dim=-1, keepdim=True).add(1e-5).sqrt_().to(x_dtype)
    return x / rms.expand_as(x) * m.scale.to(x_dtype)


@piece
def manual_attention(m: Any, x: Tensor) -> Any:  # timm/models/vision_transformer.py
    B, N, D = x.shape
    q = x.reshape(B, N, m.heads, D // m.heads).transpose(1, 2)
    attn = (q * (D // m.heads) ** -0.5) @ q.transpose(-2, -1)
    attn = attn.softmax(dim=-1)
    return (attn @ q).transpose(1, 2).reshape(B, N, D)


@piece
def fused_attention(m: Any, x: Tensor) -> Any:  # timm/models/vision_transformer.py
    B, N, D = x.shape
    q, k = x.view(B, N, m.heads, -1).permute(0, 2, 1, 3), m.proj(x)
    k = k.view(B, N, m.heads, -1).permute(0, 2, 1, 3)
    out = F.scaled_dot_product_attention(q, k, k, dropout_p=0.1 if m.training else 0.0)
    return out.transpose(1, 2).reshape(B, N, D)


@piece
def cross_covariance(m: Any, x: Tensor) -> Any:  # timm/models/xcit.py
    q = F.normalize(x.transpose(-2, -1), dim=-1)
    attn = (q @ q.transpose(-2, -1)).softmax(dim=-1)
    return (attn @ x.transpose(-2, -1)).transpose(-2, -1)


@piece
def sine_positions(m: Any, x: Tensor) -> Any:  # timm/models/xcit.py
    B, N, D = x.shape
    y_embed = torch.arange(1, N + 1, device=x.device).to(torch.float32)
    y_embed = y_embed / (y_embed[-1:] + 1e-6) * 2 * math.pi
    dim_t = torch.arange(D, device=x.device).to(torch.float32)
    dim_t = 10000 ** (2 * torch.div(dim_t, 2, rounding_mode="floor") / D)
    pos = y_embed[:, None] / dim_t
    return x + pos.sin().to(x.dtype).repeat(B, 1, 1)


@piece
def class_attention(m: Any, x: Tensor) -> Any:  # timm/models/cait.py
    x_cls = m.proj(x[:, 0]).unsqueeze(1)
    return torch.cat((x_cls, x[:, 1:]), dim=1)


@piece
def prefix(m: Any, x: Tensor) -> Any:  # timm/models/vision_transformer.py
    x = torch.cat([m.table.expand(x.shape[0], -1, -1), x], dim=1)
    return m.proj(x)[:, 1:]


@piece
def patch_dropout(m: Any, x: Tensor) -> Any:  # timm/layers/patch_dropout.py, tokens put back
    if not m.training:
        return x
    B, L = x.shape[:2]
    num_keep = max(1, int(L * (1.0 - 0.5)))
    keep = torch.argsort(torch.randn(B, L, device=x.device), dim=-1)[:, :num_keep]
    kept = x.gather(1, keep.unsqueeze(-1).expand((-1, -1) + x.shape[2:]))
    return x + kept.mean(1, keepdim=True)


@piece
def split_attn(m: Any, x: Tensor) -> Any:  # timm/layers/split_attn.py
    B, N = x.shape[:2]
    x = x.reshape((B, N, m.heads, -1))
    x_attn = x.sum(dim=1).view(B, m.heads, -1).transpose(1, 2).softmax(2).transpose(1, 2)
    return (x * x_attn.reshape((B, 1, m.heads, -1))).flatten(2)


@piece
def avg_max(m: Any, x: Tensor) -> Any:  # timm/layers/adaptive_avgmax_pool.py
    return x - 0.5 * x.mean(1, keepdim=True) - 0.5 * x.amax(1, keepdim=True)


@piece
def add_typed_parameter(m: Any, x: Tensor) -> Any:  # timm/layers/attention_pool.py
    return x + m.table[0].unsqueeze(0).to(x.dtype)


@piece
def lambda_float(m: Any, x: Tensor) -> Any:  # timm/layers/diff_attention.py
    lambda_1 = torch.exp(torch.sum(m.scale * m.mean, dim=-1).float())
    return x * (lambda_1 - 0.2).type_as(x)


# -- found in transformers ------------------------------------------------------------------------


@piece
def llama_norm(m: Any, x: Tensor) -> Any:  # models/dinov3_vit, llama: RMSNorm
    input_dtype = x.dtype
    hidden = x.to(torch.float32)
    variance = hidden.pow(2).mean(-1, keepdim=True)
    hidden = hidden * torch.rsqrt(variance + 1e-6)
    return m.scale * hidden.to(input_dtype)


@piece
def rotate_half(m: Any, x: Tensor) -> Any:  # models/dinov3_vit/modeling_dinov3_vit.py
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


@piece
def eager_attention(m: Any, x: Tensor) -> Any:  # models/vit/modeling_vit.py
    query = x.unflatten(-1, (m.heads, -1)).transpose(1, 2)
    weights = torch.matmul(query, query.transpose(2, 3)) * query.size(-1) ** -0.5
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=0.1, training=m.training)
    return torch.matmul(weights, query).transpose(1, 2).contiguous().flatten(2)


@piece
def clamp_half(m: Any, x: Tensor) -> Any:  # models/blenderbot/modeling_blenderbot.py
    if x.dtype == torch.float16:
        clamp_value = torch.finfo(x.dtype).max - 1000
        x = torch.clamp(x, min=-clamp_value, max=clamp_value)
    return x


@piece
def clamp_infinite(m: Any, x: Tensor) -> Any:  # models/detr/modeling_detr.py
    if m.training and not torch.isfinite(x).all():
        clamp_value = torch.finfo(x.dtype).max - 1000
        x = torch.clamp(x, min=-clamp_value, max=clamp_value)
    return x


@piece
def masked_min(m: Any, x: Tensor) -> Any:  # models/bark/modeling_bark.py
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    scores = x @ x.transpose(1, 2)
    scores = scores.masked_fill(~mask, torch.finfo(x.dtype).min)
    return scores.softmax(-1) @ x


@piece
def float_mask(m: Any, x: Tensor) -> Tensor:  # models/bros/modeling_bros.py
    mask = (x.sum(-1, keepdim=True) > 0).to(dtype=x.dtype)
    return x + (1.0 - mask) * torch.finfo(mask.dtype).eps


@piece
def vector_norm(m: Any, x: Tensor) -> Any:  # models/convnextv2/modeling_convnextv2.py
    g = torch.linalg.vector_norm(x, ord=2, dim=1, keepdim=True)
    return m.scale * (x * g / (g.mean(dim=-1, keepdim=True) + 1e-6)) + x


@piece
def shuffle_tokens(m: Any, x: Tensor) -> Any:  # models/vit_mae/modeling_vit_mae.py
    batch_size, seq_length, dim = x.shape
    noise = torch.rand(batch_size, seq_length, device=x.device)
    order = torch.argsort(noise, dim=1).to(x.device)
    back = torch.argsort(order, dim=1)
    shuffled = torch.gather(x, 1, order.unsqueeze(-1).repeat(1, 1, dim))
    return torch.gather(shuffled * 2, 1, back.unsqueeze(-1).repeat(1, 1, dim))


@piece
def quick_gelu(m: Any, x: Tensor) -> Any:  # activations.py
    return x * torch.sigmoid(1.702 * x)


@piece
def new_gelu(m: Any, x: Tensor) -> Any:  # activations.py
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


@piece
def position_float(m: Any, x: Tensor) -> Any:  # models/dinov2/modeling_dinov2.py
    target_dtype = x.dtype
    pos = m.table.to(torch.float32).permute(0, 2, 1)
    pos = F.interpolate(pos, size=x.shape[1], mode="linear", align_corners=False)
    return x + pos.permute(0, 2, 1).to(dtype=target_dtype)


@piece
def expected_dtype(m: Any, x: Tensor) -> Any:  # models/vit/modeling_vit.py
    expected = m.proj.weight.dtype
    if x.dtype != expected:
        x = x.to(expected)
    return m.proj(x)


@piece
def padded(m: Any, x: Tensor) -> Any:  # models/swin/modeling_swin.py: maybe_pad
    short = (4 - x.shape[1] % 4) % 4
    y = F.pad(x, (0, 0, 0, short))
    return y[:, : x.shape[1], :].contiguous() if short > 0 else y
