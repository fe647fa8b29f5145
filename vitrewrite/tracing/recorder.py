"""The tracer: runs a model on meta tensors and writes down what its forwards do.

Every torch function is seen by a `TorchFunctionMode`, every module call by a patched
`nn.Module.__call__` (see `calls`). Values are plain meta tensors; the open frame knows which node
each one is. Nothing is evaluated, and no weight is read.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..errors import CaptureError
from . import asked, kernels, places, tree
from .branches import choose, decide
from .decompose import PROGRAMS
from .frame import Frame, getitem
from .guards import require
from .history import History
from .known import Known
from .memo import Entry, Memo
from .nodes import add
from .notes import ARITY, HINT
from .numbers import Tracked, exited
from .operators import canonical, execute, is_inplace, is_repeatable
from .ranges import INDEXING, check_indices
from .sizes import OWN
from .witness import IMAGE, Witnesses

_CONSTANT_ATTRIBUTES = {
    "ndim", "requires_grad", "layout", "is_meta", "is_cuda", "is_sparse", "is_quantized", "is_cpu",
    "is_leaf", "is_mkldnn", "is_nested", "grad", "itemsize", "is_mps", "is_xpu", "is_xla", "names",
}  # fmt: skip
_CONSTANT_METHODS = {
    "dim", "is_floating_point", "is_complex", "is_contiguous", "element_size", "ndimension",
    "get_device", "is_signed", "__hash__", "__repr__", "__format__", "type", "stride",
    "is_inference", "has_names", "is_conj", "is_neg",
}  # fmt: skip
_READS_DATA = {
    "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__contains__",
    "__complex__", "data_ptr", "storage", "untyped_storage",
}  # fmt: skip


class Recorder(TorchFunctionMode):
    """One trace of `model`, in the mode (train or eval) that its modules are in.

    Args:
        model: what is traced.
        other: another trace, to share what does not depend on mode and inputs.
        restore: puts a module, and all below it, back to what it was before the trace.
        values: all values of the trace.
    """

    def __init__(
        self,
        model: nn.Module,
        other: Recorder | None,
        restore: Callable[[nn.Module], None],
        values: Witnesses | None = None,
    ) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.values: Witnesses = values or Witnesses()
        self.history = History()
        inputs = other is None or other.values.count == self.values.count
        self.memo: Memo = Memo(other.memo if other else None, inputs=inputs)
        self.modules: dict[int, list[str]] = other.modules if other else tree.module_paths(model)
        self.owners: dict[int, list[str]] = other.owners if other else tree.tensor_paths(model)
        self.constants: dict[str, torch.Tensor] = {}  # full path -> plain tensor attribute
        self.known: Known = Known(model, self.values, other.known if other else None)
        self.failed_in = ""
        # Answers the calls of a forward that is traced again: what is called, as the how-manieth.
        self.replayed: Callable[[str, int], Entry] | None = None
        self.places: dict[fx.Node, str | None] | None = None  # lines of operations, if wanted
        self.effects = 0  # calls that changed an attribute of their module
        self.anew: set[type] = set()  # classes whose modules are traced each for itself
        self.lost_checkpoints: set[str] = set()  # forwards, parts of which were checkpointed
        self.restore = restore
        self.model = model
        self.tries_sizes = other is None or IMAGE not in other.values.dead

    # -- frames ---------------------------------------------------------------------------------

    @property
    def frame(self) -> Frame:
        """The forward that runs now."""
        return self.frames[-1]

    @property
    def caller(self) -> Frame | None:
        """The forward that called the one that runs now."""
        return self.frames[-2] if len(self.frames) > 1 else None

    @contextmanager
    def open(
        self, module: nn.Module, path: str, decisions: tuple[Any, ...] = ()
    ) -> Iterator[Frame]:
        """A frame for a forward of `module`."""
        self.frames.append(Frame(self, module, path, decisions))
        try:
            yield self.frame
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        finally:
            self.frames.pop()

    def off(self) -> _Off:
        """Torch functions called in here are not part of the program."""
        return _Off(self)

    def owner(self, frame: Frame, tensor: torch.Tensor) -> str:
        """Path, relative to the frame's module, of a parameter, buffer or plain tensor attribute.

        Raises:
            CaptureError: if the tensor belongs to a module that is not below the frame's.
        """
        paths = self.owners.get(id(tensor), [])
        path = tree.find(paths, frame.path)
        if path is not None:
            return str(tree.relative(path, frame.path))
        where = f"'{frame.path or 'the root'}'"
        if paths:
            raise CaptureError(
                "VR603",
                f"{where} reads '{paths[0]}', which it neither owns nor is given, in "
                f"{places.here()}",
            )
        names = [k for k, v in frame.module.__dict__.items() if v is tensor]
        if not names:
            raise CaptureError(
                "VR603",
                f"{where} uses a tensor that was computed elsewhere and is not passed to it, in "
                f"{places.here()}",
            )
        path = f"{frame.path}.{names[0]}" if frame.path else names[0]
        self.owners[id(tensor)] = [path]
        self.constants[path] = tensor
        return names[0]

    # -- operations -----------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.frames:
            return func(*args, **kwargs)
        kind, target, args, kwargs = canonical(func, args, kwargs)
        if kind == "attribute":
            return self._attribute(target, *args)
        if kind == "method":
            special = self._method(target, args, kwargs)
            if special is not NotImplemented:
                return special
        if target is torch._assert and isinstance(args[0], bool):
            return func(*args, **kwargs)  # the comparison has become a guard already
        if target in PROGRAMS:
            with self:
                result = PROGRAMS[target](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if target is F.linear and (layer := self._layer(*args, **kwargs)) is not None:
            with self:
                return layer(args[0] if args else kwargs["input"])
        if target is F.dropout and _never_drops(*args, **kwargs):
            return args[0] if args else kwargs["input"]
        return self._record(kind, target, args, kwargs)

    def _layer(self, input: Any, weight: Any, bias: Any = None) -> nn.Linear | None:
        """The child whose weight and bias a forward uses itself, as torch's attention does."""
        for path in self.owners.get(id(weight), []):
            near = tree.relative(path, self.frame.path) or ""
            if not near.endswith(".weight"):
                continue
            layer = self.frame.module.get_submodule(near.removesuffix(".weight"))
            if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
                own = layer._parameters.get("weight"), layer._parameters.get("bias")
                return layer if own[0] is weight and own[1] is bias else None
        return None

    def _attribute(self, name: str, tensor: torch.Tensor) -> Any:
        if name == "shape":
            return torch.Size([self.frame.size(tensor, d) for d in range(tensor.dim())])
        if name not in _CONSTANT_ATTRIBUTES and name not in ("dtype", "device"):
            return self._record("attribute", name, (tensor,), {})
        with self.off():
            value = getattr(self.values.meta(tensor), name)
        if name in ("dtype", "device"):
            self.frame.reads.append((value, self.frame.arg(tensor), name))
        elif name == "itemsize":
            self._attribute("dtype", tensor)
        return value

    def _method(self, name: str, args: Any, kwargs: Any) -> Any:
        tensor, rest = args[0], args[1:]
        if name in ("__len__", "__iter__"):
            return self._as_sequence(name, tensor)
        if name == "size":
            dim = (*rest, *kwargs.values(), None)[0]
            shape = self._attribute("shape", tensor)
            return shape if dim is None else shape[dim]
        if name in ("numel", "nelement"):
            total: Any = 1
            for length in self._attribute("shape", tensor):
                total = total * length
            return total
        if name in _CONSTANT_METHODS and (name != "type" or not (rest or kwargs)):
            return self._constant(name, *args, **kwargs)
        if name == "__bool__":
            answer = asked.truth(self.frame, tensor)
            return decide(self.frame, tensor) if answer is None else answer
        if name in _READS_DATA:
            found = asked.read(self.frame, name, tensor, rest)
            if found is not NotImplemented:
                return found
            raise CaptureError(
                "VR602",
                f"'{self.frame.path or 'the root'}' decides on the values of a tensor "
                f"(Tensor.{name.strip('_')}), which are not known when it is captured, in "
                f"{places.here()}",
            )
        return NotImplemented

    def _as_sequence(self, name: str, tensor: torch.Tensor) -> Any:
        if name == "__iter__":
            return iter(self._record("method", "unbind", (tensor, 0), {}))
        return exited(self.frame.size(tensor, 0))  # `len` gives a plain number, whatever it gets

    def _constant(self, name: str, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The answer of a method that depends on neither values nor sizes."""
        if name in ("type", "element_size"):
            self._attribute("dtype", tensor)
        with self.off():
            return getattr(self.values.meta(tensor), name)(*args, **kwargs)

    def _record(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        self.harvest()
        frame = self.frame
        with self.off():
            what = f"{getattr(target, '__name__', target)} in '{frame.path or 'the root'}'"
            old_shape = args[0].shape if args and isinstance(args[0], torch.Tensor) else None
            arguments = (tuple(args), dict(kwargs))
            key = (kind, target) if is_repeatable(target) else None
            result, others = self.values.run(
                lambda a: _execute(kind, target, *a), arguments, what, key
            )
            if target in INDEXING:
                check_indices(frame, target, arguments, what)
            node = _node(frame, kind, target, *frame.arg(arguments))
            if self.places is not None:
                self.places[node] = places.here()
            if target is operator.setitem:
                self.known.note(frame, kind, target, arguments, None)
                return None
            if is_inplace(target) and result is args[0]:
                self._rebind(frame, node, result, old_shape)
            else:
                result = self._bind(frame, node, result, others)
            self.known.note(frame, kind, target, arguments, result)
            return result

    def _rebind(self, frame: Frame, node: fx.Node, value: torch.Tensor, old_shape: Any) -> None:
        """After an in-place operation the same tensor is what the new node returns."""
        old = frame.nodes.get(id(value))
        if old is not None and HINT.get(old):
            frame.former[id(value)] = HINT.of(old)
        frame.bind(value, node)
        frame.hinted.discard(id(value))
        if value.shape != old_shape:
            frame.sizes = {k: v for k, v in frame.sizes.items() if k[0] != id(value)}

    def _bind(self, frame: Frame, node: fx.Node, result: Any, others: list[Any]) -> Any:
        if isinstance(result, torch.Tensor):
            if result.device.type != "meta" or id(result) in frame.nodes:
                result = result.detach().to("meta")  # `contiguous()` may return its input
            self.values.add(result, others)
            frame.bind(result, node)
            return result
        if isinstance(result, (tuple, list)):
            ARITY.put(node, len(result))
            for index, other in enumerate(others):
                if other is not None and len(other) != len(result):
                    self.values.kill(
                        index, f"{node.target} in '{frame.path or 'the root'}' gives {len(result)}"
                    )
                    others[index] = None
            items = [
                self._bind(frame, getitem(frame, node, i), r, [o and o[i] for o in others])
                for i, r in enumerate(result)
            ]
            return tree.rebuilt(tuple(result) if isinstance(result, list) else result, items)
        return result

    # -- guards and names -----------------------------------------------------------------------

    def guard(self, op: Callable[..., Any], args: tuple[Any, ...], outcome: bool) -> None:
        """Notes that the trace went on because `op(*args)` was `outcome`."""
        self.frame.trail.append((op, outcome, *(a for a in args if not isinstance(a, Tracked))))
        deps: set[int] = set()
        for arg in args:
            deps |= arg.deps if isinstance(arg, Tracked) else set()
        if IMAGE in self.values.dead and any(_may_follow(a) for a in args):
            self._doubt()
        for index in deps - set(self.values.dead):
            under = [a.witnesses[index] if isinstance(a, Tracked) else a for a in args]
            if None in under or bool(op(*under)) != outcome:
                self._doubt()
                self.values.kill(index, f"{op.__name__} in '{self.frame.path or 'the root'}'")
        if deps - set(self.values.dead):
            require(self.frame, op, args, outcome, frozenset(deps))

    def _doubt(self) -> None:
        """Something is decided at the sizes of the example alone."""
        for frame in self.frames:
            if OWN in frame.decisions:
                frame.doubted()

    def decide(self, op: Callable[..., Any], args: tuple[Any, ...], outcome: bool) -> bool:
        """How the trace goes on from `op(*args)`, which is `outcome` at the sizes of the example.

        Raises:
            UndecidedError: if it comes out otherwise at another image size, and both ways are to
                be traced.
        """
        way = choose(self.frame, op, args, outcome) if self.tries_sizes else None
        if way is None:
            self.guard(op, args, outcome)
        return outcome if way is None else way

    def harvest(self) -> None:
        """Takes the local variables of the running forward, and helpers it is in, as names."""
        here, frame = sys._getframe(1), self.frame
        while here.f_back is not None and here.f_code.co_name != "trace_forward":
            file = here.f_code.co_filename
            if file != __file__ and "/torch/" not in file:
                frame.hint(here.f_locals)
            here = here.f_back


def _may_follow(value: Any) -> bool:
    """Whether a number may be another one at another image size."""
    if not isinstance(value, Tracked):
        return False
    return IMAGE in value.deps or value.witnesses[IMAGE:][:1] in ((), (None,))


def _never_drops(input: Any, p: float = 0.5, *_: Any, **__: Any) -> bool:
    return type(p) in (int, float) and p == 0


def _execute(kind: str, target: Any, args: Any, kwargs: Any) -> Any:
    known = kernels.of_function(target, args, kwargs)
    return execute(kind, target, args, kwargs) if known is None else known


def _node(frame: Frame, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
    if kind == "attribute":
        return add(frame.graph, "call_function", getattr, (*args, target))
    op = "call_method" if kind == "method" else "call_function"
    return add(frame.graph, op, target, args, kwargs)


class _Off:
    """No frame is open: of what torch does in here, nothing is recorded.

    Nor is anybody told of it, which for a size or dtype takes much longer than to read it.
    """

    __slots__ = ("frames", "recorder", "untold")

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.untold = torch._C.DisableTorchFunction()

    def __enter__(self) -> None:
        self.frames, self.recorder.frames = self.recorder.frames, []
        self.untold.__enter__()

    def __exit__(self, *_: object) -> None:
        self.untold.__exit__(None, None, None)
        self.recorder.frames = self.frames
