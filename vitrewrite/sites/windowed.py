"""Verbs of an attention within windows about the whole map that the windows are cut from."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing import stripping, wiring
from ..editing.editor import join, relative
from ..editing.elementwise import between
from ..editing.slices import erase_unread
from ..editing.value import Value, shape_of
from ..tracing.leaves import is_inserted
from ..tracing.nodes import is_size
from ..tracing.notes import HINT, VALUE, copied
from ..tracing.template import eliminate_dead_code
from ..tracing.unit import Unit
from .rows import Gated

if TYPE_CHECKING:
    from .replaced import ReplacedAttention

MOVES = frozenset({
    "view", "reshape", "contiguous", "flatten", "unflatten", "permute", "transpose", "clone",
    torch.roll, F.pad, operator.getitem,
})  # fmt: skip
"""What puts numbers elsewhere, or leaves some out, and changes none."""


def beside(
    site: ReplacedAttention,
    layers: Sequence[Linear | None],
    module: nn.Module,
    values: Sequence[Value],
) -> None:
    """`y = module(x, y, *tensors, *values)`: maps x, what the attention is made of, and y.

    y is what the attention yields once its windows are a map again. The attention gives the
    tensors of its layers out beside its result.
    """
    unit, x, y = around(site)
    given: list[fx.Node | None] = [x, y]
    for layer in layers:
        for node, what in zip(site._tensors(layer), ("weight", "bias"), strict=True):
            given.append(node and _outside(site, node, unit, f"{_last(layer)}_{what}"))
    given += [value.read(site.editor, unit) for value in values]
    hint, owner = str(HINT.get(y) or "y"), site.path.rpartition(".")[2]
    (made,) = site.put(
        module,
        unit,
        given,
        (hint,),
        owner=unit,
        owners=(site.path,),
        changed=(1,),
        around=True,
        name=f"{owner}_{site._stem}",
    )
    y.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def around(site: ReplacedAttention) -> tuple[str, fx.Node, fx.Node]:
    """The unit that cuts the windows, the map that it cuts, and what the attention makes of it.

    Raises:
        RewriteError: VR410 if there is more between the windows and the sum than moving numbers.
    """
    branch = site.branch
    reads = "norm" if branch.branch.first_norm is not None else "stream"
    x, y = branch._read(reads), _whole(site, branch.path)
    if shape_of(x) != shape_of(y):
        raise site.unfit("its windows are not cut from the map of its block, and put back there")
    return branch.path, x, y


def given_whole(site: ReplacedAttention) -> None:
    """`windows = attention(cut(x))` and what puts them back become `attention(x)`.

    What the attention does is done to the map by now.
    """
    editor, (unit, x, y) = site.editor, around(site)
    call = _call(site, unit)
    inputs = [n for n in editor.graph(site._own_unit).nodes if n.op == "placeholder"]
    index = next(i for i, n in enumerate(inputs) if n.users and len(shape_of(n)) == 3)
    before = stripping.read(call.graph)
    call.args = tuple(x if i == index else a for i, a in enumerate(call.args))
    y.replace_all_uses_with(call)
    copied(y, call)
    copied(x, inputs[index], VALUE)
    eliminate_dead_code(call.graph)
    wiring.release(editor, unit)
    stripping.forget(editor, unit, before, site.clause)


def passed(site: ReplacedAttention) -> None:
    """What an attention reads passes as it is."""
    unit, x, y = around(site)
    before = stripping.read(x.graph)
    y.replace_all_uses_with(x)
    HINT.put(x, HINT.get(x) or HINT.get(y))
    erase_unread(y)
    stripping.forget(site.editor, unit, before, site.clause)
    wiring.release(site.editor, unit)


def bare(site: ReplacedAttention) -> bool:
    """Whether the branch of an attention adds nothing where the attention yields zeros."""
    unit, own = site.branch.path, site.context.insertion
    inner = site.editor.graph(site._own_unit)
    returned: Any = inner.output_node().args[0]
    made = returned[0] if isinstance(returned, (tuple, list)) else returned
    ours = own is not None and _path(site._own_unit, made) == own.path
    if not ours and _is_called(site, site._own_unit, made):
        return False
    call, end = _call(site, unit), site.branch._sum.args[site.branch.branch.index]
    assert isinstance(end, fx.Node)
    nodes = between([call], end) - {call}
    return all(_keeps_zero(site, unit, node) for node in nodes)


def _is_called(site: ReplacedAttention, unit: str, node: fx.Node) -> bool:
    """Whether a node calls what a pass put in."""
    if node.op != "call_module":
        return False
    return is_inserted(site.editor.unit(unit).get_submodule(str(node.target)))


def _path(unit: str, node: fx.Node) -> str:
    return join(unit, str(node.target))


def _keeps_zero(site: ReplacedAttention, unit: str, node: fx.Node) -> bool:
    """Whether a node of a branch makes zeros of zeros."""
    if node.op == "call_module":
        path, own = _path(unit, node), site.context.insertion
        if own is not None and path == own.path:
            return True
        module = site.editor.root.get_submodule(path)
        return not is_inserted(module) and _scales(module)
    name = getattr(node.target, "__name__", str(node.target))
    return node.target in MOVES or is_size(node) or name in _SCALING


def _scales(module: nn.Module) -> bool:
    """Whether a module only multiplies what it is given, as layer scale and drop path do."""
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return True
    if not isinstance(module, Unit) or module.template is None or any(module.children()):
        return False
    calls = (n for n in module.template.graph.nodes if n.op.startswith("call_"))
    names = {getattr(n.target, "__name__", str(n.target)) for n in calls}
    return not names & _SHIFTING


_SCALING = frozenset({"mul", "truediv", "div", "to", "type_as", "dropout", "float"})
_SHIFTING = frozenset({
    "add", "add_", "iadd", "sub", "layer_norm", "linear", "exp", "sigmoid", "softmax", "cos",
})  # fmt: skip
"""What makes other numbers than zeros of zeros, of what modules of branches do."""


def expect_ungated(site: ReplacedAttention) -> None:
    """Raises VR410 if a gate lets some tokens skip the branch or the block of an attention."""
    branch = site.branch
    end = branch._sum.args[branch.branch.index]
    assert isinstance(end, fx.Node)
    nodes = [(branch.path, n) for n in between([_call(site, branch.path)], end)]
    unit = site.editor.where(site.block.leaving.place).unit
    gates = ((unit, n) for n in site.editor.graph(unit).nodes if _is_gate(site, unit, n))
    nodes += [(unit, n) for unit, n in gates if len(n.args) > 2]
    if any(_is_gate(site, unit, node) for unit, node in nodes):
        raise site.unfit("tokens skip it, and those that are left are no grid")


def _is_gate(site: ReplacedAttention, unit: str, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return isinstance(site.editor.unit(unit).get_submodule(str(node.target)), Gated)


def size(site: ReplacedAttention) -> tuple[int, int] | None:
    """Height and width of the windows that the block of an attention cuts from a map.

    None where it attends over what its block does; a map as a whole may be one window.

    Raises:
        RewriteError: VR410 if they are no squares and nothing else is known of them.
    """
    stream = shape_of(site.branch._stream)
    given = shape_of(site._source(site._layers))
    if len(given) != 3:
        raise site.unfit("what it reads is no sequence of tokens")
    if len(stream) != 4:
        return site.attention.windows
    if site.attention.windows is not None:
        return site.attention.windows
    side = math.isqrt(given[1])
    if side * side != given[1]:
        raise site.unfit(f"it attends to {given[1]} tokens of a map, which are no square")
    return side, side


def _last(layer: Linear | None) -> str:
    return "" if layer is None else layer.role.rpartition(".")[2]


def _outside(site: ReplacedAttention, node: fx.Node, unit: str, hint: str) -> fx.Node:
    """A tensor of the attention in the unit that cuts the windows."""
    HINT.put(node, hint)
    return Value(Place(site._own_unit, node.name)).read(site.editor, unit)


def _whole(site: ReplacedAttention, unit: str) -> fx.Node:
    """What the attention yields, moved about as long as nothing else is done to it."""
    node = _call(site, unit)
    while True:
        users = [user for user in node.users if not is_size(user)]
        if len(users) != 1 or users[0].target not in MOVES:
            return node
        node = users[0]


def _call(site: ReplacedAttention, unit: str) -> fx.Node:
    """The call of the attention."""
    inner = site._own_unit
    above, calls = wiring.caller(site.editor, inner)
    if above != unit or len(calls) > 1:
        raise site.unfit("the module that adds its branch does not call it itself, once")
    return wiring.calls_of(site.editor.graph(above), relative(inner, above))[0]
