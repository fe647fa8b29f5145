"""Gates of structure: whether a part of a model is there, which a search decides.

He et al., "Pruning Self-attentions into Convolutional Layers in Single Path", TPAMI 2024,
equations 8 to 12; the relaxation is that of Maddison et al. and Jang et al., ICLR 2017.
"""

import torch
from torch import nn


class StructureGates(nn.Module):
    """One gate per part, 1 where it is there and 0 where not, shared by images and tokens.

    In training they are drawn anew at each call, with the gradient of the relaxed draw; in
    evaluation those with a positive logit are open. Where a search sets `drawn` to False, training
    has those of evaluation, with the gradient of the logits themselves.
    """

    drawn = True

    def __init__(self, count: int, start: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.count, self.start, self.temperature = count, start, temperature
        self.logits = nn.Parameter(torch.empty(count))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All are as likely to be open: sigmoid(start)."""
        nn.init.constant_(self.logits, self.start)

    def forward(self, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """The gates, [count], in float32; by `uniforms` [count] in training, if they are given."""
        logits = self.logits.float()
        if not self.training:
            return (logits > 0).float()
        if not self.drawn:
            return (logits > 0).float() + (logits - logits.detach())
        if uniforms is None:
            uniforms = torch.rand_like(logits)
        # So near to 0 and 1 that the logit is finite.
        score = uniforms.clamp(1e-6, 1 - 1e-6).logit() + logits
        soft = (score / self.temperature).sigmoid()
        return (score > 0).float() + (soft - soft.detach())

    def opened(self) -> list[bool]:
        """Which are open in evaluation; as they start, where logits on meta do not say it."""
        if self.logits.is_meta:
            return [self.start > 0] * self.count
        found: list[bool] = (self.logits > 0).tolist()
        return found

    def priced(self) -> torch.Tensor:
        """Which are open in evaluation, [count], with the gradient of sigmoid(p - 1/2).

        p = sigmoid(logit). What costs are counted with: the value is exact, and of no draw.
        """
        chance = (self.logits.float().sigmoid() - 0.5).sigmoid()
        return (self.logits > 0).float() + (chance - chance.detach())
