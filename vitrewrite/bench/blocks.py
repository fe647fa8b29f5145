"""Memory of training against the index of the one block that a spec changes.

Figure 1 of Zhang et al., ECCV 2024 (SynQT): what is trained near the input of a model keeps the
activations of everything behind it for its gradient, whatever it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..anatomy.sites import Block
from ..errors import UsageError
from ..language.model import Clause, Spec
from ..language.parse import parse_text
from ..language.source import SpecSource
from ..models.request import Request
from ..rewrite.compilation import Compilation
from ..rewrite.rewritten import Rewritten
from ..rewrite.weights import weighted
from .contenders import Contender, twin
from .memory import peak_bytes, saved_bytes
from .steps import Tensors, training_steps

ALL, NONE = "all", "none"


@dataclass(frozen=True)
class BlockMemory:
    """Takes a spec apart by block.

    Attributes:
        rewritten: the model with all of the spec.
        device: where training steps run, in
        dtype: this, with
        inputs: these.
        tick: told what is measured next.
    """

    rewritten: Rewritten
    device: torch.device
    dtype: torch.dtype
    inputs: Tensors
    tick: Callable[[str], None]

    def measured(self) -> dict[str, Any]:
        """By block, and with all of the spec, and without what is about blocks: bytes of training.

        Raises:
            UsageError: VR574 if no clause is about single blocks.
        """
        rows = {name: self._row(name, spec) for name, spec in self._specs()}
        return {name: row for name, row in rows.items() if row}

    @property
    def count(self) -> int:
        """How many models are measured."""
        return len(self._blocks()) + 2

    def _specs(self) -> Iterator[tuple[str, Spec]]:
        for name, role in self._blocks().items():
            yield name, self._only(role)
        yield ALL, replace(self.rewritten.spec, requires=())
        yield NONE, self._only("")

    def _blocks(self) -> dict[str, str]:
        """The roles of the blocks that clauses are about, by number."""
        result = self.rewritten.result
        named = [site for step in result.steps for site in step.sites]
        found = {
            str(block.index): block.role
            for block in result.anatomy.blocks
            if any(_in(site, block) for site in named)
        }
        if not found:
            raise UsageError(
                "VR574",
                f"no clause of '{self.rewritten.spec.name}' is about blocks",
                suggestion="give a spec with a clause such as: insert lora() at blocks[*].attn.q",
            )
        return found

    def _only(self, role: str) -> Spec:
        """The spec with what it does in one block, and where there is none."""
        spec, kept = self.rewritten.spec, []
        others = [b for b in self.rewritten.result.anatomy.blocks if b.role != role]
        defaults = [*spec.defaults] or [{}] * len(spec.clauses)
        steps = zip(spec.clauses, self.rewritten.result.steps, defaults, strict=True)
        for clause, step, default in steps:
            sites = [s for s in step.sites if not any(_in(s, each) for each in others)]
            if len(sites) == len(step.sites):
                kept.append((clause, default))
            elif sites:
                kept.append((self._at(clause, sites), default))
        clauses, left = tuple(c for c, _ in kept), tuple(d for _, d in kept)
        return replace(spec, clauses=clauses, defaults=left if spec.defaults else (), requires=())

    def _at(self, clause: Clause, sites: Sequence[str]) -> Clause:
        """A clause at some of its sites, which are roles or names of parameters."""
        known = {name for name, _ in self.rewritten.base.named_parameters(remove_duplicate=False)}
        said = " + ".join(f'module("{site}")' if site in known else site for site in sites)
        made: Clause = parse_text(SpecSource("<block>", f"freeze {said}"), "statement")
        return replace(clause, sites=made.sites)

    def _row(self, name: str, spec: Spec) -> dict[str, int | None]:
        """Bytes of a training step; nothing if nothing is trained."""
        self.tick(f"memory: {name if name in (ALL, NONE) else f'block {name}'}")
        made = self._carried_out(spec)
        trained = {n for n, p in made.module.named_parameters() if p.requires_grad}
        module = twin(made.module, trained, self.device, self.dtype).train()
        steps = training_steps([Contender(name, module, module, 0)], self.inputs)
        if name not in steps:
            return {}
        step = steps[name]
        step()  # what is done once, as the choice of kernels, is no part of it
        return {
            "trained": sum(p.numel() for p in step.contender.trained),
            "saved_bytes": saved_bytes(step.loss, step.living),
            "peak_bytes": peak_bytes(step, self.device),
        }

    def _carried_out(self, spec: Spec) -> Rewritten:
        known = self.rewritten
        request = Request(
            spec, known.model_name, known.weights_request, known.seed, known.model_options
        )
        made = Compilation.of(
            request, known.base, original=known.cost, allocations=known.result.known
        )
        return weighted(made)


def _in(site: str, block: Block) -> bool:
    """Whether a site, or a parameter, is a block or in it."""
    return site == block.role or site.startswith((f"{block.role}.", f"{block.path}."))
