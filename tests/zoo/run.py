"""Looks at models in processes of their own."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from tests.zoo.check import Found, check, limited
from tests.zoo.clean import Clean
from tests.zoo.lists import subject

LIMIT = 240  # seconds for one model
_CLEAN = Clean()  # one for all models of a process; it ends with it


def looked_at(keys: list[str], jobs: int) -> Iterator[dict[str, Any]]:
    """What was found of each, in processes that end now and then, to give memory back."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=25) as pool:
        yield from pool.imap_unordered(_one, keys)


def _one(key: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        with limited(LIMIT):
            return check(subject(key), _CLEAN).to_dict()
    except Exception as error:  # one that takes too long, or whose library refuses it
        return Found(key, "does not run", f"{type(error).__name__}: {error}"[:300]).to_dict()
