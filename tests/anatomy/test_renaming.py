"""The roles do not depend on what classes, modules and parameters are called."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitrewrite.anatomy import Anatomy, analyse
from vitrewrite.tracing import trace

_TORCH = "torch.nn.modules."


class _Words:
    """Random words, each once."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.used: set[str] = set()

    def new(self) -> str:
        word = "".join(self.random.choices(string.ascii_lowercase, k=7))
        if word in self.used or hasattr(nn.Module, word):
            return self.new()
        self.used.add(word)
        return word


def _renamed(model: nn.Module, words: _Words) -> dict[str, str]:
    """Renames all of `model` in place.

    Each module gets a class of its own name whose attribute look-up knows the old names, so the
    forwards still run; its children, parameters and buffers are stored under random words.

    Returns:
        new path -> old path, of modules and of their state.
    """
    paths = {"": ""}
    classes: dict[tuple[Any, ...], type] = {}
    for new, old, module in _walk(model, "", "", words, {}):
        paths[new] = old
        if isinstance(module, nn.Module) and not type(module).__module__.startswith(_TORCH):
            names = module.__dict__.pop("_old_names", {})
            key = type(module), tuple(names.items())
            if key not in classes:
                classes[key] = _class(type(module), names, words)
            module.__class__ = classes[key]
    return paths


def _walk(
    module: nn.Module, new: str, old: str, words: _Words, known: dict[tuple[type, str], str]
) -> list[tuple[str, str, Any]]:
    """Renames below `module`; equal classes use equal words, else no two blocks were alike."""
    found: list[tuple[str, str, Any]] = [(new, old, module)]
    # Containers and layers of torch itself read their own attributes by name.
    fixed = type(module).__module__.startswith(_TORCH) or isinstance(
        module, (nn.Sequential, nn.ModuleList)
    )
    names: dict[str, str] = {}
    stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
    for store in stores:
        for name, value in list(store.items()):
            word = name if fixed else known.setdefault((type(module), name), words.new())
            names[name] = word
            if not fixed:
                store[word] = store.pop(name)
            ours, theirs = (f"{p}.{n}" if p else n for p, n in ((new, word), (old, name)))
            if isinstance(value, nn.Module):
                found += _walk(value, ours, theirs, words, known)
            else:
                found.append((ours, theirs, value))
    if not fixed:
        hidden = module._non_persistent_buffers_set
        module._non_persistent_buffers_set = {names[n] for n in hidden}
        module.__dict__["_old_names"] = names
    return found


def _class(base: Any, names: dict[str, str], words: _Words) -> type:
    def look_up(self: nn.Module, name: str) -> Any:
        for store in ("_parameters", "_buffers", "_modules"):
            if names.get(name) in self.__dict__[store]:
                return self.__dict__[store][names[name]]
        return base.__getattr__(self, name)

    return type(words.new().title(), (base,), {"__getattr__": look_up})


def _translated(value: Any, paths: dict[str, str]) -> Any:
    """Everything but the names of nodes, in the old names."""
    pairs = ((n.split("."), o.split(".")) for n, o in paths.items())
    words = {new: old for n, o in pairs for new, old in zip(n, o, strict=True)}

    def translated(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: translated(v) for k, v in value.items() if k not in ("node", "model")}
        if isinstance(value, (tuple, list)):
            return [translated(v) for v in value]
        if not isinstance(value, str):
            return value
        return ".".join(words.get(part, part) for part in value.split("."))

    return translated(value)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "deit_base_distilled_patch16_224",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
        "cait_xxs24_224",
        "pvt_v2_b0",
        "xcit_nano_12_p16_224",
        "hiera_tiny_224",
        "convnext_tiny",
    ],
)
def test_random_words_for_names(name: str, anatomy: Callable[[str], Anatomy]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    before = asdict(replace(anatomy(name), calls={}))
    paths = _renamed(model, _Words(seed=len(name)))
    after = asdict(replace(analyse(trace(model)), calls={}))
    assert not {"blocks", "norm", "attn", "mlp", "head", "qkv"} & set(".".join(paths).split("."))
    for old, new in zip(before["linears"], after["linears"], strict=True):
        assert old["weight"] != new["weight"]
    notes = before.pop("notes"), after.pop("notes")
    assert len(notes[0]) == len(notes[1])
    assert _translated(after, paths) == _translated(before, {})
