"""vit_base rewritten by lora_qv, written by vitrewrite.

    insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
    train head

Takes images 3x224x224, RGB; the shorter side resized to 248 (bicubic), the middle cropped;
values from 0 to 1, mean 0.5, std 0.5. Returns scores of 1000 classes.
"""

from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import nn


class LowRank(nn.Module):
    """A low-rank update of rows of a linear layer: y + scale * up(down(x))."""

    def __init__(self, in_features, rows, rank, scale, dropout=0.0):
        super().__init__()
        self.in_features, self.rows, self.rank, self.scale = in_features, rows, rank, scale
        self.dropout = dropout
        self.down = nn.Parameter(torch.zeros(len(rows) * rank, in_features))
        self.up = nn.Parameter(torch.zeros(sum(b - a for a, b in rows), rank))

    def forward(self, x, y):
        code = F.dropout(F.linear(x, self.down), self.dropout, self.training)
        code, out = code.flatten(0, -2), y.flatten(0, -2)
        if torch.is_grad_enabled():  # all rows in one product
            wide = self.up.new_zeros(y.shape[-1], len(self.down))
            for (a, b), columns, up in self.parts():
                wide[a:b, columns] = up
            out = torch.addmm(out, code, wide.T, alpha=self.scale)
        else:
            out = out.clone()  # y is not ours: whoever called the linear layer may have kept it
            for (a, b), columns, up in self.parts():
                out[:, a:b].addmm_(code[:, columns], up.T.to(code.dtype), alpha=self.scale)
        return out.view(y.shape)

    def parts(self):
        ups = torch.split(self.up, [b - a for a, b in self.rows])
        columns = (slice(i * self.rank, (i + 1) * self.rank) for i in range(len(self.rows)))
        return list(zip(self.rows, columns, ups, strict=True))


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 768, 16, stride=16)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention of blocks[*], 12 heads."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(768, 2304)
        self.proj = nn.Linear(768, 768)
        self.qkv_lora = LowRank(768, ((0, 768), (1536, 2304)), 8, 1.0, dropout=0.1)

    def forward(self, x):
        B, N, _ = x.shape
        # lora_qv.peft:7: insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
        qkv = self.qkv_lora(x, self.qkv(x))
        qkv = qkv.reshape(B, N, 3, 12, 64).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, 768))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(768, 3072)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3072, 768)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """blocks[*], 768 wide."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(768, eps=1e-06)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(768, eps=1e-06)
        self.mlp = Mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, 768))
        self.patch_embed = PatchEmbed()
        self.blocks = nn.Sequential(*(Block() for _ in range(12)))
        self.norm = nn.LayerNorm(768, eps=1e-06)
        self.head = nn.Linear(768, 1000)

    def forward_features(self, x):
        if x.shape[2:] != (224, 224):
            raise ValueError(f"captured for 224x224, got {x.shape[2]}x{x.shape[3]}")
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.blocks(x + self.pos_embed))

    def forward_head(self, x, pre_logits=False):
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


# What passes put in, for vitrewrite to know it again.
LowRank.inserted_by, LowRank.changes = "lora", (1,)
INPUT = "1x3x224x224"
TRAINABLE = ("*.qkv_lora.*", "head.*")


def build():
    """The model without its weights: many are zero until `load` brings them."""
    model = VisionTransformer()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in TRAINABLE))
    return model


def load(path):
    """The model with the weights of a safetensors file, in eval mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()
