"""Key/value prompts: learned rows that every query attends to besides the tokens.

What it does
    Puts n learned rows per head before (or behind) the keys and values of an attention. Queries
    are untouched, so the number of tokens is.

Source
    Han et al., "E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning", ICCV 2023,
    section 3.2. With `prompt` it is E2VPT's forward.

Attaches to
    Any attention over tokens, windowed ones included (every window gets the same rows).

Parameters
    kv [heads, n, width]: one tensor for both, or k and v apart with `shared=false`. He-uniform with
    fan-in n * width, that is U(-b, b) with b = sqrt(6 / (n * width)), of each its own. Trained.

Forward
    softmax(q [kv; k]^T / sqrt(width)) [kv; v] per head. The rows have no projection, norm, bias or
    position; biases and masks of the scores are zero on them.

Exactness
    Changes the output from the start. Before and behind are the same function up to rounding.
    There is nothing to lower: n = 5 costs 17.58 GMAC on ViT-B/16 instead of 17.56.

Example
    prepend kv_prompt(n=5) to blocks[*].attn
    adds 9,216 n parameters to ViT-B/16.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, Pass, option


class KeyValuePrompt(nn.Module):
    """Puts n learned rows beside keys and values, [batch, heads, tokens, width]."""

    inserted_by = "kv_prompt"
    changes = (0, 1)
    takes_rows = True  # of other clauses, so that keys are copied once

    def __init__(
        self,
        heads: int,
        n: int,
        width: int,
        bounds: tuple[float, float],
        v_width: int | None = None,
        before: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.n, self.width, self.v_width = heads, n, width, v_width
        self.bounds, self.before = bounds, before
        if v_width is None:  # one tensor for both
            self.kv = nn.Parameter(torch.empty(heads, n, width))
        else:
            self.k = nn.Parameter(torch.empty(heads, n, width))
            self.v = nn.Parameter(torch.empty(heads, n, v_width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws keys and values from U(-bound, bound), or with bound 0 from a narrow normal."""
        for rows, bound in zip(self.parameters(), self.bounds, strict=False):
            if bound:
                nn.init.uniform_(rows, -bound, bound, generator=generator)
            else:
                nn.init.trunc_normal_(rows, std=0.02, generator=generator)

    def forward(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        more_k: torch.Tensor | None = None,
        more_v: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with the rows; more rows, [heads, count, width], stand in front."""
        rows = (self.kv, self.kv) if self.v_width is None else (self.k, self.v)
        return self.join(k, rows[0], more_k), self.join(v, rows[1], more_v)

    def join(
        self, tokens: torch.Tensor, rows: torch.Tensor, more: torch.Tensor | None
    ) -> torch.Tensor:
        """The rows on their side of the tokens, in every image."""
        parts = [rows, tokens] if self.before else [tokens, rows]
        parts = parts if more is None else [more, *parts]
        whole = (tokens.shape[0], -1, -1, -1)
        return torch.cat([p if p is tokens else p.to(tokens.dtype).expand(whole) for p in parts], 2)


@dataclass(frozen=True)
class KvPrompt(Pass):
    """Learned rows beside keys and values."""

    verbs: ClassVar[tuple[str, ...]] = ("prepend",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "Han et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ()

    n: int = option(5, minimum=1, help="rows per head")
    shared: bool = option(True, help="one tensor for keys and values")
    side: str = option("front", choices=("front", "back"), help="of the tokens")
    init: str = option(
        "he", choices=("he", "normal", "patch"), help="how the rows are drawn at first"
    )

    def rewrite(self, attn: AttentionSite) -> None:
        """k, v = [kv; k], [kv; v]."""
        if not attn.over_tokens:
            raise attn.unfit("its heads do not attend over tokens")
        width, v_width = attn.head_dim
        if self.shared and width != v_width:
            raise attn.reject("shared", f"keys are {width} wide, values {v_width}")
        before, bounds = self.side == "front", (self.bound(attn, width), self.bound(attn, v_width))
        apart = None if self.shared else v_width
        rows = KeyValuePrompt(attn.heads, self.n, width, bounds, apart, before)
        attn.extend_kv(rows, self.n, before=before)

    def bound(self, attn: AttentionSite, width: int) -> float:
        """Of the uniform distribution; 0 for the normal one."""
        if self.init == "normal":
            return 0.0
        fan = self.n * width if self.init == "he" else attn.patch_features + 16
        return math.sqrt(6 / fan)
