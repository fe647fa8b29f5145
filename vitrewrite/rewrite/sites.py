"""Site verbs: what a pass may do where its clause attaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Linear
from ..errors import RewriteError, Span
from .editor import Editor, Insertion


@dataclass(frozen=True)
class Clause:
    """The clause that is being carried out, for messages and comments.

    Attributes:
        number: position in the spec.
        text: as the user wrote it.
        span: where.
        options: where each option stands.
    """

    number: int
    pass_name: str
    text: str
    span: Span | None
    options: dict[str, Span]

    @property
    def origin(self) -> str:
        """The comment above a rewritten place: file, line and clause."""
        place = f"{self.span.file.rpartition('/')[2]}:{self.span.line}: " if self.span else ""
        return f"{place}{self.text}"

    def error(
        self, code: str, message: str, option: str | None = None, **extra: Any
    ) -> RewriteError:
        """An error that points at an option of the clause, or at the clause."""
        span = self.options.get(option or "", self.span)
        return RewriteError(code, message, span=span, **extra)


@dataclass(frozen=True)
class LinearSite:
    """A linear layer, or some row ranges of a fused one, that a clause adapts at once.

    Attributes:
        parts: the selected matrices, all rows of one weight, in row order.
    """

    editor: Editor
    clause: Clause
    parts: tuple[Linear, ...]

    @property
    def role(self) -> str:
        """The sites in words."""
        return ", ".join(p.role for p in self.parts)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.parts[0].in_features

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The half-open range of each part, in the rows that the call applies."""
        ranges = [(p.offset, p.rows or (0, p.out_features)) for p in self.parts]
        return tuple((first - offset, last - offset) for offset, (first, last) in ranges)

    @property
    def weight(self) -> nn.Parameter:
        """The weight of the whole layer, [out_features, in_features]."""
        return self.editor.root.get_parameter(self.parts[0].weight)

    @property
    def out_features(self) -> int:
        """Number of rows of the whole layer."""
        return int(self.weight.shape[0])

    def reject(self, option: str, message: str, **extra: Any) -> RewriteError:
        """An error about an option that this site does not allow."""
        return self.clause.error("VR403", f"{message} at '{self.role}'", option, **extra)

    def warn(self, message: str) -> None:
        """Notes what is odd but not wrong, once per clause."""
        text = f"{self.clause.origin.partition(': ')[0]}: {message}"
        if text not in self.editor.warnings:
            self.editor.warnings.append(text)

    def parallel(self, branch: nn.Module) -> None:
        """`y = linear(x)` becomes `y = branch(x, linear(x))`.

        Raises:
            RewriteError: VR402 if the pass is there already.
        """
        place = self.parts[0].call
        node = self.editor.node(place)
        self._refuse_twice(node)
        layer = self.parts[0].weight.removesuffix(".weight")
        if layer == self.parts[0].weight:  # a matrix that is no layer's, such as `in_proj_weight`
            layer = self.parts[0].path
        near = layer[len(place.unit) + 1 :] if place.unit else layer
        suffix = self.clause.pass_name.replace(".", "_")
        last = near.rpartition(".")[2]
        name = f"linear{last}_{suffix}" if last.isdigit() else f"{last}_{suffix}"
        relative, path = self.editor.adopt(place.unit, near, name, branch)
        with node.graph.inserting_after(node):
            new = node.graph.call_module(relative, (node.args[0], node))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        hint = node.meta.pop("hint", None) or near.rpartition(".")[2]
        new.meta = {"val": node.meta.get("val"), "hint": hint}
        new.meta["origin"] = self.clause.origin
        clause = self.clause
        self.editor.insertions.append(
            Insertion(clause.pass_name, clause.number, path, self.parts, branch)
        )

    def _refuse_twice(self, node: fx.Node) -> None:
        for user in list(node.users):
            if user.op != "call_module" or user.args[1:2] != (node,):
                continue
            branch = self.editor.own(self.parts[0].call.unit).get_submodule(str(user.target))
            if getattr(branch, "inserted_by", None) != self.clause.pass_name:
                continue
            taken = set(getattr(branch, "rows", ()) or [(0, self.out_features)])
            if any(start < b and a < stop for start, stop in self.rows for a, b in taken):
                raise self.clause.error(
                    "VR402",
                    f"'{self.role}' has {self.clause.pass_name} already",
                    suggestion="apply it to a model that was not rewritten, or lower that first",
                )


@dataclass(frozen=True)
class Folding:
    """A rewritten linear at lowering time: its branch can become part of the weight."""

    editor: Editor
    insertion: Insertion

    def fold(self, updates: Sequence[torch.Tensor]) -> None:
        """Adds each part's update to its rows of the weight, in float32, and drops the branch."""
        root, parts = self.editor.root, self.insertion.sites
        owner, _, name = parts[0].weight.rpartition(".")
        layer = root.get_submodule(owner)
        weight = layer._parameters[name]
        assert weight is not None
        folded = weight.detach().to(torch.float32, copy=True)
        for part, update in zip(parts, updates, strict=True):
            start, stop = part.rows or (0, part.out_features)
            folded[start:stop] += update.detach().to(torch.float32)
        setattr(layer, name, nn.Parameter(folded.to(weight.dtype), requires_grad=False))
        self._drop()

    def _drop(self) -> None:
        place, path = self.insertion.sites[0].call, self.insertion.path
        graph = self.editor.graph(place.unit)
        relative = path[len(place.unit) + 1 :] if place.unit else path
        for node in list(graph.nodes):
            if node.op == "call_module" and node.target == relative:
                value = node.args[1]
                assert isinstance(value, fx.Node)
                value.meta["hint"] = value.meta.get("hint") or node.meta.get("hint")
                node.replace_all_uses_with(value)
                graph.erase_node(node)
        owner, _, name = path.rpartition(".")
        del self.editor.root.get_submodule(owner)._modules[name]
