"""What nobody reads any more: nodes, inputs of units on the way up, and modules nobody calls."""

from __future__ import annotations

from torch import fx

from ..tracing.notes import WIRED
from ..tracing.unit import Unit
from .clause import ClauseRef
from .editor import Editor, Insertion, join
from .slices import erase_unread
from .wiring import caller, release


def forget(editor: Editor, unit: str, node: fx.Node, clause: ClauseRef) -> Insertion | None:
    """Takes out a value that nobody reads, what only it was made of, and the modules that made it.

    Args:
        editor: of the tree.
        unit: path of the unit whose graph has the value.
        node: the value.
        clause: what it is done for.

    Returns:
        What another clause put where nobody reads it now; the tree is half done then.
    """
    before = _called(editor)
    _erase(editor, unit, node)
    now = _called(editor)
    for path in sorted(before - now):
        if editor.taken(path) or any(p.startswith(f"{path}.") for p in now):
            continue
        inside = (i for i in editor.insertions if f"{i.path}.".startswith(f"{path}."))
        if (found := next(inside, None)) is not None:
            return found
        editor.take_out(path, clause)
    return None


def _called(editor: Editor) -> set[str]:
    """Paths of all modules that run when the model does."""
    found, waiting = set[str](), [""]
    while waiting:
        path = waiting.pop()
        unit = editor.root.get_submodule(path)
        template = unit.template if isinstance(unit, Unit) and path not in found else None
        found.add(path)
        for graph in () if template is None else template.graphs:
            calls = (n for n in graph.nodes if n.op == "call_module")
            waiting += [join(path, str(n.target)) for n in calls]
    return found


def _erase(editor: Editor, unit: str, node: fx.Node) -> None:
    """Erases a value, and what its unit was given for it alone."""
    erase_unread(node)
    nodes: list[fx.Node] = list(editor.graph(unit).nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    dead = [i for i, n in enumerate(inputs) if not n.users]
    if not unit or not dead:
        return
    above, _ = caller(editor, unit)
    editor.graph(above)
    given = [call.args[i] for call in caller(editor, unit)[1] for i in dead]
    for i in dead:
        WIRED.put(inputs[i], True)
    release(editor, unit)
    for source in dict.fromkeys(n for n in given if isinstance(n, fx.Node)):
        if source in set(editor.graph(above).nodes) and not source.users:
            _erase(editor, above, source)
