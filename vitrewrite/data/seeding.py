"""Randomness as a function of what it is for, not of what was drawn before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..tracing.undisturbed import seed as seed_torch


def mixed(*parts: int | str) -> int:
    """A seed of 63 bits that differs for different parts."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order of their own."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def seed_all(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    seed_torch(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the CPU's global generators in the body and restores them after it."""
    with restored():
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Restores the CPU's global generators after the body."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])
