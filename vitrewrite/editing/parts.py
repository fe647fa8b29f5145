"""Which of the parts of a layer, such as heads, each number of a value belongs to.

Numbers of parts are sent through the graph of a unit in place of its values: views move them, what
works on each number by itself keeps them, and a product has those of its factors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import activation, dropout

from ..anatomy.values import concrete
from ..tracing.leaves import changed_by
from ..tracing.unit import Unit, on_meta, run_graph
from . import attended
from .slices import ahead

NONE = -1
"""The number of what belongs to no part."""
_VIEWS = frozenset({
    "reshape", "view", "permute", "transpose", "contiguous", "flatten", "unflatten", "unsqueeze",
    "squeeze", "unbind", "chunk", "split", "expand", "movedim", "swapaxes", "roll", "clone",
})  # fmt: skip
_JOINS = frozenset({"cat", "concat", "stack"})
_ALONE = frozenset({
    "neg", "exp", "clamp", "sigmoid", "tanh", "dropout", "relu",
    "add", "sub", "mul", "div", "truediv", "add_", "mul_", "iadd", "imul", "masked_fill", "where",
})  # fmt: skip
_PASSES = frozenset({"to", "type_as", "type", "float", "detach"})
"""What reads another tensor for its type alone, if it does."""
_PRODUCTS = frozenset({"matmul", "bmm"})
_TOLD = frozenset({"size", "getattr", "dim", "numel", "new_zeros", "new_ones"})
_WITHIN = frozenset({"softmax", "normalize", "layer_norm", "rms_norm", "log_softmax", "norm"})


class MixedError(Exception):
    """PartNumbers cannot be told apart; the message says where."""


@dataclass
class PartNumbers:
    """The numbers of parts in the graph of a unit.

    Attributes:
        module: the unit.
        values: what each of its nodes yields on meta.
        count: how many parts there are.
        known: by node the number of each number of its value; a tuple for several values.
        held: by node that reads a tensor of the unit, or a layer of it, along which axis of that
            tensor its parts lie: they turned out to be wanted.
        passing: calls of modules that leave parts where they are in what they change.
    """

    module: Unit
    values: Mapping[fx.Node, Any]
    count: int
    known: dict[fx.Node, Any]
    held: dict[fx.Node, int] = field(default_factory=dict)
    passing: Collection[fx.Node] = ()

    def follow(self, nodes: Iterable[fx.Node]) -> None:
        """Goes through nodes in order.

        Raises:
            MixedError: at the first that mixes parts, or has numbers for each that are not known.
        """
        for node in nodes:
            if node not in self.known and any(n in self.known for n in node.all_input_nodes):
                try:
                    found = self._step(node)
                except (RuntimeError, IndexError, TypeError, ValueError) as error:
                    raise MixedError(f"'{node.name}' does something else to them") from error
                if found is not None:
                    self.known[node] = found

    def along(self, node: fx.Node) -> int | None:
        """The axis of a value along which parts lie, counted from the front; None without any."""
        numbers = self.known.get(node)
        return axis_of(numbers) if isinstance(numbers, torch.Tensor) else None

    def plain(self, argument: Any) -> Any:
        """An argument of a node as a value."""
        return concrete(argument, self.values.get)

    # -- one node -------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> Any:
        name = name_of(node)
        if node.op == "call_module":
            return self._module(node)
        if name in _TOLD:
            return None
        if name in _PASSES:
            return self.known.get(node.args[0])  # type: ignore[arg-type]
        if name in _WITHIN:
            return self._within(node, int(_option(node, "dim", -1)))
        if name in _ALONE:
            return self._together(node, [n for n in node.all_input_nodes if self._is_tensor(n)])
        kinds = (
            ({"getitem"}, self._item), (_VIEWS, self._viewed), (_JOINS, self._joined),
            (_PRODUCTS, self._product), ({"scaled_dot_product_attention"}, self._attended),
        )  # fmt: skip
        found = next((step for names, step in kinds if name in names), None)
        if found is None:
            raise MixedError(f"'{name}' may mix them")
        return found(node)

    def _module(self, node: fx.Node) -> Any:
        module = self.module.get_submodule(str(node.target))
        (given,) = node.all_input_nodes[:1]
        if node in self.passing:
            (changed,) = changed_by(module)
            return self.known.get(node.args[changed or 0])  # type: ignore[arg-type]
        if isinstance(module, (nn.Identity, dropout.Dropout)):
            return self.known[given]
        if isinstance(module, nn.Softmax):
            return self._within(node, int(module.dim or 0))
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return self._within(node, -1)
        if type(module).__module__ == activation.__name__:
            return self.known[given]
        if isinstance(module, Unit) and module.template is not None:
            return self._inside(node, module)
        raise MixedError(f"'{node.target}' may mix them")

    def _inside(self, node: fx.Node, unit: Unit) -> Any:
        """What a unit without numbers for each part makes of them."""
        assert unit.template is not None
        nodes = list(unit.template.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        known = {
            inner: self.known[given]
            for inner, given in zip(inputs, node.args, strict=False)
            if isinstance(given, fx.Node) and given in self.known
        }
        given = [self.values[a] if isinstance(a, fx.Node) else a for a in node.args]
        below = PartNumbers(unit, run_values(unit, given), self.count, known)
        below.follow(n for n in nodes if n.op not in ("placeholder", "output"))
        result = nodes[-1].args[0]
        if below.held or not isinstance(result, fx.Node) or any(map(is_shaped, below.known)):
            raise MixedError(f"'{node.target}' is made for as many as there are")
        return below.known.get(result)

    def _item(self, node: fx.Node) -> Any:
        source, index = node.args
        numbers = self.known.get(source)  # type: ignore[arg-type]
        if isinstance(numbers, (tuple, list)):
            return numbers[index]  # type: ignore[index]
        if numbers is None:
            raise MixedError("they are an index")
        stated = self.plain(index)
        axis, cut = axis_of(numbers), stated if isinstance(stated, tuple) else (stated,)
        if any(isinstance(i, torch.Tensor) for i in cut):
            if cut != (cut[0],) or axis == 0:
                raise MixedError("an index picks some of them")
            shape = (*cut[0].shape, *numbers.shape[1:])
            return numbers[:1].reshape(*[1] * cut[0].dim(), *numbers.shape[1:]).expand(shape)
        found = numbers[stated]
        lengths = _lengths(found)
        if axis is not None and lengths != _lengths(numbers):
            raise MixedError("some of them are taken out")
        return found

    def _viewed(self, node: fx.Node) -> Any:
        numbers = self.known.get(node.args[0])  # type: ignore[arg-type]
        if numbers is None:
            raise MixedError("they make a shape")
        args = [numbers, *(self.plain(a) for a in node.args[1:])]
        kwargs = self.plain(dict(node.kwargs))
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _joined(self, node: fx.Node) -> Any:
        items: Any = node.args[0]
        pieces = [self._filled(n, node) for n in items]
        dim = self.plain(_option(node, "dim", 0))
        known = [axis_of(piece) for piece in pieces]
        if None in known:  # what is put to them would have to be made for fewer, too
            raise MixedError(f"'{node.name}' puts other values to them")
        make = torch.stack if name_of(node) == "stack" else torch.cat
        return make(pieces, dim)

    def _product(self, node: fx.Node) -> torch.Tensor:
        a, b = (self._filled(n, node) for n in node.all_input_nodes)
        left, right = a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)
        if not (_constant(a, -1) and _constant(b, -2)):
            raise MixedError(f"'{node.name}' sums over them")
        return _merged([left, right], self.values[node].shape, node)

    def _attended(self, node: fx.Node) -> torch.Tensor:
        given = attended.given(node)
        q, k, v = (self._filled(given[name], node) for name in ("query", "key", "value"))
        if {axis_of(x) for x in (q, k, v)} != {1} or q.shape[1] != k.shape[1]:
            raise MixedError("they share keys or values")
        shape = self.values[node].shape
        bias = given.get("attn_mask")
        if isinstance(bias, fx.Node) and self._is_tensor(bias):
            self._meets(bias, q[..., :1], node)
        return _merged([q[..., :1], v[..., :1, :1]], shape, node)

    def _within(self, node: fx.Node, dim: int) -> torch.Tensor:
        """What is normalised along an axis."""
        numbers: torch.Tensor = self.known[node.all_input_nodes[0]]
        if not _constant(numbers, dim):
            raise MixedError(f"'{node.name}' is over all of them")
        return numbers

    def _together(self, node: fx.Node, given: list[fx.Node]) -> torch.Tensor:
        shape = self.values[node].shape if node in self.values else self.known[given[0]].shape
        first = next(n for n in given if n in self.known)
        for other in given:
            if other not in self.known:
                self._meets(other, self.known[first], node)
        return _merged([self._filled(n, node) for n in given], shape, node)

    def _is_tensor(self, node: fx.Node) -> bool:
        return isinstance(self.values.get(node), torch.Tensor)

    def _filled(self, node: fx.Node, user: fx.Node) -> torch.Tensor:
        """The numbers of a value, which are none where it has no parts."""
        if node in self.known:
            found: torch.Tensor = self.known[node]
            return found
        value = self.values.get(node)
        if not isinstance(value, torch.Tensor):
            raise MixedError(f"'{user.name}' reads what is not known")
        return torch.full((), NONE, dtype=torch.int16, device="cpu").expand(value.shape)

    # -- values with numbers for each part ------------------------------------------------------

    def _meets(self, other: fx.Node, numbers: torch.Tensor, user: fx.Node) -> None:
        """A value meets one with parts: it has nothing for each, or it is known where from."""
        axis, value = axis_of(numbers), self.values.get(other)
        if axis is None or not isinstance(value, torch.Tensor):
            return
        own = axis - numbers.dim() + value.dim()
        if own < 0 or value.shape[own] == 1:
            return
        if not self._traced(other, own):
            raise MixedError(f"'{user.name}' has values for each that come from elsewhere")

    def _traced(self, other: fx.Node, axis: int) -> bool:
        """Looks for the tensor that holds what a value has for each part."""
        order = [n for n in other.graph.nodes if n in ahead([other])]
        for node in order:
            for held, numbers in self._seeds(node):
                trial = PartNumbers(self.module, self.values, self.count, {node: numbers})
                try:
                    trial.follow(order)
                except MixedError:
                    continue
                found = trial.known.get(other)
                if isinstance(found, torch.Tensor) and self._in_order(found, axis):
                    self.known |= trial.known
                    self.held |= {node: held, **trial.held}
                    return True
        return False

    def _in_order(self, numbers: torch.Tensor, axis: int) -> bool:
        """Whether an axis has one number for each part."""
        wanted = torch.arange(self.count, device="cpu")
        return axis_of(numbers) == axis and torch.equal(_line(numbers, axis).long(), wanted)

    def _seeds(self, node: fx.Node) -> list[tuple[int, torch.Tensor]]:
        """Numbers of a tensor, or of what a layer yields, by the axis along which parts may be."""
        value = self.values.get(node)
        if not isinstance(value, torch.Tensor):
            return []
        axes = list(range(value.dim())) if node.op == "get_attr" else []
        if node.op == "call_module" and last_layer(self.module, node) is not None:
            axes = [value.dim() - 1]
        return [
            (a, numbered(value.shape, a, torch.arange(self.count, device="cpu")))
            for a in axes
            if value.shape[a] == self.count
        ]


def last_layer(module: nn.Module, node: fx.Node) -> str | None:
    """The path of the linear layer that a called module is, or ends in."""
    path = str(node.target)
    found = module.get_submodule(path)
    while found._modules and not isinstance(found, nn.Linear):
        name, last = list(found._modules.items())[-1]
        if last is None:
            return None
        path, found = f"{path}.{name}", last
    return path if isinstance(found, nn.Linear) else None


def is_shaped(node: fx.Node) -> bool:
    """Whether a node states a shape in numbers."""
    return name_of(node) in ("reshape", "view", "unflatten", "expand", "split")


def name_of(node: fx.Node) -> str:
    """What a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def run_values(module: Unit, given: Sequence[Any]) -> dict[fx.Node, Any]:
    """What each node of a unit yields on meta."""
    assert module.template is not None
    found: dict[fx.Node, Any] = {}

    def note(node: fx.Node, values: dict[fx.Node, Any]) -> None:
        found[node] = values[node]

    with torch.no_grad():
        run_graph(module.template.graph, on_meta(module), given, note=note)
    inputs = [n for n in module.template.graph.nodes if n.op == "placeholder"]
    return dict(zip(inputs, given, strict=True)) | found


def numbered(shape: Iterable[int], axis: int, numbers: torch.Tensor) -> torch.Tensor:
    """A value of a shape with given numbers along an axis."""
    lengths = list(shape)
    line = numbers.to(torch.int16).view([-1 if i == axis else 1 for i in range(len(lengths))])
    return line.expand(lengths)


def axis_of(numbers: Any) -> int | None:
    """The axis along which numbers differ.

    Raises:
        MixedError: if they do along several.
    """
    if not isinstance(numbers, torch.Tensor):
        return None
    found = [i for i in range(numbers.dim()) if not _constant(numbers, i)]
    if len(found) > 1:
        raise MixedError("they lie along several axes")
    return found[0] if found else None


def line(numbers: torch.Tensor) -> torch.Tensor:
    """The numbers along the axis on which they differ."""
    axis = axis_of(numbers)
    return _line(numbers, -1 if axis is None else axis)


def _line(numbers: torch.Tensor, axis: int) -> torch.Tensor:
    axes, axis = range(numbers.dim()), axis % numbers.dim()
    return numbers[tuple(slice(None) if i == axis else 0 for i in axes)]


def _constant(numbers: torch.Tensor, axis: int) -> bool:
    if numbers.shape[axis] < 2 or numbers.stride(axis) == 0:
        return True
    small = _once(numbers)
    return bool((small == small.narrow(axis, 0, 1)).all())


def _once(numbers: torch.Tensor) -> torch.Tensor:
    """The same with one number wherever it is told that all along an axis are one."""
    for axis, (length, stride) in enumerate(zip(numbers.shape, numbers.stride(), strict=True)):
        if stride == 0 and length > 1:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def _merged(pieces: list[torch.Tensor], shape: Any, node: fx.Node) -> torch.Tensor:
    """The numbers of what is made of several values, number by number."""
    result = torch.full((), NONE, dtype=torch.int16, device="cpu")
    for piece in pieces:
        other = _once(piece)
        if axis_of(other) is None and bool((other == NONE).all()):
            continue
        if bool(((result != NONE) & (other != NONE) & (result != other)).any()):
            raise MixedError(f"'{node.name}' mixes them")
        result = torch.maximum(result, other)
    return result.expand(shape)


def _lengths(numbers: torch.Tensor) -> int:
    axis = axis_of(numbers)
    return 0 if axis is None else numbers.shape[axis]


def _option(node: fx.Node, name: str, default: Any) -> Any:
    position = 2 if name == "dim" and name_of(node) == "softmax" else 1
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default
