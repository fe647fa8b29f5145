"""More pieces of forwards, thought up: what numbers and dtypes may go through; see `idioms`."""

# ruff: noqa: N806 - as people write them
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import math
import statistics
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.properties.idioms import C, Forward, end, piece


class Model(Forward):
    """With pieces of both files."""


# -- thought up: sizes ----------------------------------------------------------------------------


@piece
def over_len(m: Any, x: Tensor) -> Any:
    return x / len(x)


@piece
def sqrt_scores(m: Any, x: Tensor) -> Any:
    scores = torch.matmul(x, x.transpose(-1, -2)) / math.sqrt(x.shape[-1])
    return nn.functional.softmax(scores, dim=-1) @ x


@piece
def over_numel(m: Any, x: Tensor) -> Any:
    return x / x.numel()


@piece
def over_shape_numel(m: Any, x: Tensor) -> Any:
    return x / x.shape.numel()


@piece
def prod_of_shape(m: Any, x: Tensor) -> Any:
    return x / math.prod(x.shape[1:])


@piece
def sqrt_tokens(m: Any, x: Tensor) -> Any:
    return x / math.sqrt(x.shape[1]) + sqrt(x.size(1))


@piece
def log_tokens(m: Any, x: Tensor) -> Any:
    return x * math.log(x.shape[1]) / math.log2(x.shape[1] + 1)


@piece
def ceil_half(m: Any, x: Tensor) -> Any:
    return x[:, : math.ceil(x.shape[1] / 2)].mean(1, keepdim=True) + x


@piece
def int_of_root(m: Any, x: Tensor) -> Any:
    return x * int(x.shape[1] ** 0.5)


@piece
def rounded(m: Any, x: Tensor) -> Any:
    return x * round(x.shape[1] / 4)


@piece
def min_of_tokens(m: Any, x: Tensor) -> Any:
    return x * min(x.shape[1], 4) / max(3, x.shape[1])


@piece
def by_length(m: Any, x: Tensor) -> Any:
    return x * 2 if x.shape[1] > 5 else x * 3


@piece
def sum_of_range(m: Any, x: Tensor) -> Any:
    return x + sum(range(x.shape[1]))


@piece
def sum_of_batch(m: Any, x: Tensor) -> Any:
    return x + sum(range(x.shape[0]))


@piece
def text_of_batch(m: Any, x: Tensor) -> Any:
    return x * int(str(x.shape[0]))


@piece
def text_of_tokens(m: Any, x: Tensor) -> Any:
    return x * float(f"{x.shape[1]:d}")


@piece
def hashed(m: Any, x: Tensor) -> Any:
    return x * {x.shape[1]: 2.0}.get(6, 3.0)


@piece
def numpy_prod(m: Any, x: Tensor) -> Any:
    return x / float(np.prod(x.shape[:2]))


@piece
def numpy_root(m: Any, x: Tensor) -> Any:
    return x / np.sqrt(x.shape[1])


@piece
def numpy_array(m: Any, x: Tensor) -> Any:
    return x + torch.from_numpy(np.arange(x.shape[1], dtype=np.float32)).to(x)[:, None]


@piece
def each_sample(m: Any, x: Tensor) -> Any:
    return torch.stack([row - row.mean() for row in x])


@piece
def each_token(m: Any, x: Tensor) -> Any:
    return torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], dim=1)


@piece
def listed(m: Any, x: Tensor) -> Any:
    return x * len([0] * x.shape[0])


@piece
def averaged(m: Any, x: Tensor) -> Any:
    return x * statistics.mean([x.shape[0], 2])


@piece
def bytes_of_size(m: Any, x: Tensor) -> Any:
    return x * int.from_bytes(bytes([x.shape[1]]), "little")


@piece
def through_json(m: Any, x: Tensor) -> Any:
    return x * json.loads(json.dumps({"n": x.shape[1]}))["n"]


@piece
def bits(m: Any, x: Tensor) -> Any:
    return x * x.shape[1].bit_length()


@piece
def parity(m: Any, x: Tensor) -> Any:
    return x * (x.shape[1] % 2 + 1) + (x.shape[0] & 1)


@piece
def tensor_of_size(m: Any, x: Tensor) -> Any:
    return x + torch.tensor([x.shape[1]], dtype=x.dtype, device=x.device)


@piece
def full_of_size(m: Any, x: Tensor) -> Any:
    return x + torch.full((x.shape[1], 1), float(C), dtype=x.dtype, device=x.device) / x.size(1)


@piece
def flat_batch(m: Any, x: Tensor) -> Any:
    B, N, D = x.size()
    return (x.reshape(B * N, D) @ m.proj.weight).view(B, N, D)


# -- thought up: dtypes ---------------------------------------------------------------------------


@piece
def if_single(m: Any, x: Tensor) -> Any:
    return x * 2 if x.dtype == torch.float32 else x * 3


@piece
def table_of_dtypes(m: Any, x: Tensor) -> Any:
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(x.dtype, x.dtype)
    return x.to(wide).cumsum(1).to(x.dtype)


@piece
def power_in_single(m: Any, x: Tensor) -> Any:
    return (x.float() ** 2).type(x.dtype)


@piece
def two_readings(m: Any, x: Tensor) -> Any:
    y = x.float()
    return (x.to(y.dtype) / 3).to(x.dtype) + m.mean.to(x.dtype)


@piece
def constant_limits(m: Any, x: Tensor) -> Any:
    return x / torch.finfo(torch.float32).eps * torch.finfo(torch.float32).tiny


@piece
def double_inside(m: Any, x: Tensor) -> Any:
    return x.to(torch.float64).logcumsumexp(1).to(x.dtype)


@piece
def by_element_size(m: Any, x: Tensor) -> Any:
    return x * x.element_size()


@piece
def by_type_name(m: Any, x: Tensor) -> Any:
    return x + ("Half" in x.type())


@piece
def long_and_back(m: Any, x: Tensor) -> Any:
    index = (x.sum(-1) > 0).to(torch.int64)
    return x + index.to(torch.long)[..., None].to(x.dtype)


@piece
def promoted(m: Any, x: Tensor) -> Any:
    kind = torch.promote_types(x.dtype, torch.float32)
    return x.to(kind).exp().to(x.dtype)


# -- ends -----------------------------------------------------------------------------------------


@end
def pooled(m: Any, x: Tensor) -> Any:
    return x.mean(dim=1)


@end
def first_token(m: Any, x: Tensor) -> Any:
    return m.proj(x[:, 0])


@end
def summed_by_loop(m: Any, x: Tensor) -> Any:
    total: Any = 0
    for token in x.unbind(1):
        total = total + token
    return total


@end
def in_single(m: Any, x: Tensor) -> Any:
    return x.mean(1).float()


@end
def loss(m: Any, x: Tensor) -> Any:
    return x.pow(2).sum() / x.shape[0] if m.training else x.sum((1, 2))
