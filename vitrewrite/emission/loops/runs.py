"""Runs of equal calls over a container, to be printed as a loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ...tracing.notes import ARITY
from ..access import access, child_of
from ..alike import numbered_call, operands, shape


@dataclass(frozen=True)
class Loop:
    """`for layer in self.<container>[start:stop]: x = layer(x, ...)`."""

    container: str
    start: int
    nodes: tuple[fx.Node, ...]

    @property
    def variable(self) -> str:
        """The name of the loop variable: the container's in the singular."""
        name = self.container.rpartition(".")[2]
        return name[:-1] if name.endswith("s") and len(name) > 3 else "layer"

    def slice(self, module: nn.Module) -> str:
        """The container, a child of `module`, or the part of it that the loop runs over."""
        stop, length = self.start + len(self.nodes), len(child_of(module, self.container)._modules)
        owner = access(module, self.container)
        if self.start == 0 and stop == length:
            return owner
        return f"{owner}[{self.start or ''}:{'' if stop == length else stop}]"


def find_loops(graph: fx.Graph) -> list[Loop]:
    """Maximal runs of two or more calls `container.i`, each fed by the one before."""
    loops: list[Loop] = []
    run: list[fx.Node] = []
    for node in graph.nodes:
        if run and _continues(run[-1], node):
            run.append(node)
            continue
        if len(run) > 1:
            loops.append(_loop(run))
        run = [node] if _plain_call(node) is not None else []
    if len(run) > 1:
        loops.append(_loop(run))
    return loops


def _loop(run: list[fx.Node]) -> Loop:
    container, index = _plain_call(run[0]) or ("", 0)
    return Loop(container, index, tuple(run))


def _plain_call(node: fx.Node) -> tuple[str, int] | None:
    """The same, if the call gives one value."""
    return None if ARITY.on(node) else numbered_call(node)


def _continues(last: fx.Node, node: fx.Node) -> bool:
    before, here = _plain_call(last), _plain_call(node)
    if before is None or here is None or here != (before[0], before[1] + 1):
        return False
    rest = operands(node)[1:] == operands(last)[1:] and shape(node) == shape(last)
    return node.args[0] is last and len(last.users) == 1 and rest
