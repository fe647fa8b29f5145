"""Gives a compilation its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from ..catalog.defaults import constructor
from ..editing.editor import Insertion
from ..emission.realise import realise
from ..tracing.unit import Unit, duplicate
from .compilation import Compilation
from .initial import draw
from .rewritten import Rewritten


def weighted(compilation: Compilation) -> Rewritten:
    """The rewritten model: frozen weights are shared with the base, new ones are drawn."""
    request, base = compilation.request, compilation.base
    tensors = _Tensors(compilation)
    root = duplicate(compilation.result.root, tensors.parameter, tensors.buffer)
    result = replace(compilation.result, root=root, editor=compilation.result.editor.on(root))
    origins = result.editor.origins
    result.editor.origins = {k: origin.given(tensors.known) for k, origin in origins.items()}
    draw(result, request.seed)
    realise(base)
    return Rewritten(
        root,
        base,
        result,
        realise(root),
        request.name,
        request.described,
        compilation.measures,
        claims=compilation.claims,
        model_options=request.options,
        seed=request.seed,
        weights_request=request.weights,
        cost=compilation.original,
    )


class _Tensors:
    """What takes the place of each tensor on meta: one of the base, a piece of one, or a new one.

    Parameters of the base are new objects on the same memory; those that will be trained get
    memory of their own, and so do pieces.
    """

    def __init__(self, compilation: Compilation) -> None:
        result = compilation.result
        named = dict(result.root.named_parameters(remove_duplicate=False))
        self.trained = {id(named[name]) for name in result.base_trained}
        self.known = {id(new): old for new, old in compilation.pairs}
        for new, old in result.editor.copied:
            if id(old) in self.known:
                self.known[id(new)] = self.known[id(old)]
                self.trained.add(id(new))
        self.gathered = {id(each.new): each for each in result.editor.gathered}
        self.made = {k: v for i in result.editor.insertions for k, v in _buffers(i)}
        first = next(iter(compilation.base.parameters()), None)
        self.device = first.device if first is not None else torch.device("cpu")

    def parameter(self, bare: nn.Parameter) -> nn.Parameter:
        """The parameter for one on meta."""
        known = self.known.get(id(bare))
        if id(bare) in self.gathered:
            new = self._value(bare)
        elif known is None:
            new = torch.empty_like(bare, device=self.device)
        else:
            new = known.detach().clone() if id(bare) in self.trained else known.detach()
        return nn.Parameter(new, requires_grad=bare.requires_grad)

    def _value(self, bare: torch.Tensor) -> torch.Tensor:
        """What a tensor on meta holds, of the base or of what the base has."""
        found = self.gathered.get(id(bare))
        return self.known[id(bare)].detach() if found is None else found.made(self._value)

    def buffer(self, bare: torch.Tensor) -> torch.Tensor:
        """The buffer for one on meta."""
        if id(bare) in self.gathered:
            return self._value(bare)
        known = self.known.get(id(bare))
        if known is not None:
            return known.clone()
        return self.made[id(bare)].to(dtype=bare.dtype, device=self.device)


def _buffers(insertion: Insertion) -> Iterator[tuple[int, torch.Tensor]]:
    """The buffers of a module that a pass put in on meta, by id, as its constructor makes them.

    Or as the pass gave them.
    """
    module = insertion.module
    bare = dict(module.named_buffers())
    if isinstance(module, Unit) or not bare:
        return
    made = dict(type(module)(**constructor(module)).named_buffers()) | insertion.buffers
    yield from ((id(buffer), made[name]) for name, buffer in bare.items())
