"""vit_base rewritten by fpet_lora, written by vitrewrite.

    insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
    insert merge.bdm() after blocks[6].attn
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


class BipartiteMerge(nn.Module):
    """Merges one half of the patches into the other: x [B, T, C] and sizes [B, T] shrink."""

    def __init__(self, grid, dim, hidden=32, scale=1.0, dropout=0.1):
        super().__init__()
        self.grid, self.dim, self.hidden = grid, dim, hidden
        self.scale, self.dropout = scale, dropout
        self.down = Quantised(hidden, dim)
        self.up = Quantised(dim, hidden)
        number = torch.arange(grid[0] * grid[1]).view(grid)
        a, b = [number[::2, ::2], number[1::2, 1::2]], [number[1::2, ::2], number[::2, 1::2]]
        self.register_buffer("a", torch.cat([part.flatten() for part in a]), persistent=False)
        self.register_buffer("b", torch.cat([part.flatten() for part in b]), persistent=False)

    def forward(self, x, k):
        prefix = x.shape[1] - self.grid[0] * self.grid[1]
        size = self.wide(x.new_ones(x.shape[:2]))
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            scores = self.match(k[:, :, prefix:])
            weight = self.wide(size[:, prefix:, None])
            both = torch.cat([weight * self.wide(x[:, prefix:]), weight], dim=2)
            both = self.merge_soft(scores, both[:, self.a], both[:, self.b])
            patches, count = both[..., :-1] / both[..., -1:], both[..., -1]
        x = torch.cat([x[:, :prefix], patches.to(x.dtype)], dim=1)
        return x, torch.cat([size[:, :prefix], count.to(size.dtype)], dim=1)

    def match(self, k):
        m = self.wide(k.detach()).mean(dim=1)
        code = F.relu(F.linear(m, self.down().to(m.dtype)))
        code = F.dropout(code, self.dropout, self.training)
        m = m + self.scale * F.linear(code, self.up().to(m.dtype))
        m = F.normalize(m, dim=-1, eps=1e-30)
        return torch.bmm(m[:, self.a], m[:, self.b].transpose(1, 2))

    def merge_soft(self, scores, a, b):
        gate = torch.sigmoid(scores - scores.topk(2, dim=-1).values.mean(dim=-1, keepdim=True))
        best = torch.zeros_like(gate).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        chosen = gate + (best - gate).detach()
        return b + chosen.transpose(1, 2) @ a

    def wide(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))


class Quantised(nn.Module):
    """A matrix [rows, columns] that is used on 2^bits levels around its mean; 32 bits: as it is."""

    def __init__(self, rows, columns):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.float32))
        self.register_buffer("levels", torch.tensor([-0.67448974, 0.67448974]), persistent=False)
        # Mean and deviation of a matrix that was read from bits; zeros while it is trained.
        self.register_buffer("scale", torch.zeros(2, dtype=torch.float32))

    def forward(self):
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        mean, std = weight.mean(), weight.std()
        n = (weight - mean) / (std + 1e-05)
        levels = self.levels.to(n.dtype)
        edges = (levels[1:] + levels[:-1]) / 2  # what lies between two levels stays there
        below, above = (levels[torch.bucketize(n.detach(), edges, right=r)] for r in (False, True))
        made = ((below + above) / 2 + (n - n.detach())) * std + mean
        return torch.where(self.scale[1] > 0, weight, made)  # what was read from bits is on levels

    def _apply(self, fn, recurse=True):
        return super()._apply(lambda t: m if (m := fn(t)).itemsize > 2 else t.to(m.device), recurse)


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 768, 16, stride=16)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(768, 3072)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3072, 768)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Attention of blocks[*], 12 heads."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(768, 2304)
        self.proj = nn.Linear(768, 768)
        self.qkv_lora = LowRank(768, ((0, 768), (1536, 2304)), 8, 1.0, dropout=0.1)

    def forward(self, x, log_size=None):
        B, N, _ = x.shape
        # fpet_lora.peft:8: insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
        qkv = self.qkv_lora(x, self.qkv(x))
        qkv = qkv.reshape(B, N, 3, 12, 64).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        # fpet_lora.peft:9: insert merge.bdm() after blocks[6].attn
        attn_mask = log_size[:, None, None].type_as(q) if log_size is not None else None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(x.transpose(1, 2).reshape(B, N, 768)), k


class Block(nn.Module):
    """blocks[:6, 7:], 768 wide."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(768, eps=1e-06)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(768, eps=1e-06)
        self.mlp = Mlp()

    def forward(self, x, log_size=None):
        y, _ = self.attn(self.norm1(x), log_size)
        x = x + y
        return x + self.mlp(self.norm2(x))


class BlockWithMerge(Block):
    """blocks[6], 768 wide."""

    def __init__(self):
        super().__init__()
        self.merge = BipartiteMerge((14, 14), 64)

    def forward(self, x):
        y, k = self.attn(self.norm1(x))
        x = x + y
        # fpet_lora.peft:9: insert merge.bdm() after blocks[6].attn
        x, size = self.merge(x, k)
        return x + self.mlp(self.norm2(x)), size.log()


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, 768))
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(BlockWithMerge() if i == 6 else Block() for i in range(12))
        self.norm = nn.LayerNorm(768, eps=1e-06)
        self.head = nn.Linear(768, 1000)

    def forward_features(self, x):
        if x.shape[2:] != (224, 224):
            raise ValueError(f"captured for 224x224, got {x.shape[2]}x{x.shape[3]}")
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        for block in self.blocks[:6]:
            x = block(x)
        x, log_size = self.blocks[6](x)
        for block in self.blocks[7:]:
            x = block(x, log_size)
        return self.norm(x)

    def forward_head(self, x, pre_logits=False):
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


# What passes put in, for vitrewrite to know it again.
LowRank.inserted_by, LowRank.changes = "lora", (1,)
BipartiteMerge.inserted_by, BipartiteMerge.changes = "merge.bdm", (0, None)
INPUT = "1x3x224x224"
TRAINABLE = ("*.qkv_lora.*", "*.merge.*", "head.*")


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
