"""Which tokens are to stay, decided by a small network, and attention that leaves out the others.

Rao et al., "DynamicViT", NeurIPS 2021: equations 3 to 11.
"""

import torch
import torch.nn.functional as F
from torch import nn


class TokenScores(nn.Module):
    """Log-probabilities that patches stay or go, from each and the mean of those that are there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim // 2)
        self.fc3 = nn.Linear(dim // 2, dim // 4)
        self.fc4 = nn.Linear(dim // 4, 2)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Matrices from a truncated normal distribution of deviation 0.02, biases zero."""
        self.norm.reset_parameters()
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        """[B, N, 2] of patches [B, N, C], of which some are `there` [B, N]; all by default."""
        own, other = F.gelu(self.fc1(self.norm(patches))).chunk(2, dim=-1)
        if there is None:
            mean = other.mean(dim=1, keepdim=True)
        else:
            weight = there[..., None].to(other.dtype)
            mean = (other * weight).sum(1, True) / weight.sum(1, True).clamp_min(1e-6)
        both = torch.cat([own, mean.expand_as(own)], dim=-1)
        code = F.gelu(self.fc3(F.gelu(self.fc2(both))))
        made: torch.Tensor = self.fc4(code).log_softmax(dim=-1)
        return made

    def stay(self, patches: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Draws which patches stay of those that did `before` [B, N]: 1 or 0, straight through."""
        there = patches.new_ones(patches.shape[:2]) if before is None else before
        return there * self.decide(self.forward(patches, there))

    def noise(self, scores: torch.Tensor) -> torch.Tensor:
        """Standard Gumbel noise of their shape."""
        return -torch.empty_like(scores).exponential_().log()

    def decide(self, scores: torch.Tensor) -> torch.Tensor:
        """1 where a patch is drawn to stay, 0 where not, [B, N], with the gradient of softmax."""
        soft = (scores + self.noise(scores)).softmax(dim=-1)
        best = soft.argmax(dim=-1, keepdim=True)
        hard = torch.zeros_like(soft).scatter(-1, best, 1.0)
        return (hard - soft.detach() + soft)[..., 0]


class MaskedSoftmax(nn.Module):
    """softmax over the keys that are there: (e + eps / K) / (sum e + eps), e = there exp(scores).

    With `own` each query sees its own key whatever is there.
    """

    def __init__(self, eps: float, own: bool) -> None:
        super().__init__()
        self.eps, self.own = eps, own

    def forward(self, scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Weights [B, heads, Q, K] of scores of that shape; `there` is [B, tokens].

        Keys in front of those of the tokens, of prompts and rows that passes put there, are there.
        """
        queries, keys = scores.shape[-2:]
        there = F.pad(there, (keys - there.shape[1], 0), value=1.0)[:, None, None].float()
        if self.own:
            eye = torch.eye(queries, keys, device=scores.device)
            eye = eye.roll(keys - queries, dims=1)
            there = there + (1 - there) * eye
        wide = scores.float() if scores.element_size() < 4 else scores
        weights = (wide - wide.amax(dim=-1, keepdim=True)).exp() * there.to(wide.dtype)
        total = weights.sum(dim=-1, keepdim=True)
        return ((weights + self.eps / keys) / (total + self.eps)).to(scores.dtype)
