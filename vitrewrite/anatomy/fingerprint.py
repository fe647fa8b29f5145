"""What identifies tensors: their names, shapes, dtypes and bits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import nn

from ..storage.tensors import bits_of
from .sites import Anatomy


def fingerprint_of(tensors: Mapping[str, torch.Tensor], without: Collection[str] = ()) -> str:
    """A digest of tensors by name; of those in `without` only name, shape and dtype count."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if name not in without:
            digest.update(bits_of(tensor))
    return digest.hexdigest()


def trunk_fingerprint(root: nn.Module, anatomy: Anatomy) -> str:
    """A digest of all weights but the head's, which a task brings."""
    head = tuple(f"{site.weight.rpartition('.')[0]}." for site in anatomy.head)
    return fingerprint_of({k: v for k, v in root.state_dict().items() if not k.startswith(head)})
