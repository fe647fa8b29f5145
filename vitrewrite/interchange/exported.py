"""A model as a file for other runtimes, ONNX or torch.export's own, checked where it is written.

The batch is dynamic, and so is the size of images where the model takes several. What was written
is read again and compared with the model, on another batch and on another size.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import FileError, VerifyError
from ..text import first_line, shown
from ..tracing import tree
from .instead import FOR_ALL, FOR_ONNX, Replaced
from .translations import translations
from .untranslated import untranslated

FORMS = ("onnx", "pt2")
OPSET = 18
"""Of ONNX: what torch's exporter writes without converting it."""
TOLERANCE = 1e-4
"""Largest difference of any output, over the largest value in it."""
_STEPS = (14, 16, 32, 64)  # pixels that an image may grow by, where the model does not say
_MOST = 2_000_000_000  # bytes in one file of protocol buffers
_MANY = 1_000  # nodes that are more than onnxscript's rules rewrite in a minute

Size = tuple[int, int]
Run = Callable[[torch.Tensor], list[torch.Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        form: `onnx` or `pt2`.
        content: of the file.
        sizes: whether images may have any size that the model takes.
        reason: why they may not.
        checked: batch, height and width of what it was compared on.
        apart: the largest difference, over the largest value.
    """

    form: str
    content: bytes
    sizes: bool
    reason: str
    checked: tuple[tuple[int, int, int], ...]
    apart: float

    def __str__(self) -> str:
        opset = f", opset {OPSET}" if self.form == "onnx" else ""
        size = "images of other sizes too" if self.sizes else "images of one size"
        lines = [f"exported  {self.form}{opset}: any batch, {size}"]
        lines += [f"fixed     {self.reason}"] if self.reason else []
        places = ", ".join(f"{batch}x{height}x{width}" for batch, height, width in self.checked)
        allowed = f"{TOLERANCE:g} is allowed"
        return "\n".join([*lines, f"checked   {places}: {self.apart:.1e} apart, {allowed}"])

    def to_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {
            "form": self.form,
            **({"opset": OPSET} if self.form == "onnx" else {}),
            "dynamic": ["batch", *(["height", "width"] if self.sizes else [])],
            **({"reason": self.reason} if self.reason else {}),
            "checked": [list(each) for each in self.checked],
            "max_error": self.apart,
            "bytes": len(self.content),
        }


def export(
    module: nn.Module,
    form: str,
    size: tuple[int, int, int],
    *,
    fixed: bool,
    multiple: Size = (1, 1),
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, str],
) -> Exported:
    """Exports a model of images.

    Args:
        module: in eval mode.
        form: `onnx` or `pt2`.
        size: channels, height and width that the model was made for.
        fixed: whether it takes that size only.
        multiple: what other sizes are multiples of.
        dtype: of the images.
        about: texts that are put into the file, by name.

    Raises:
        FileError: VR597 without what ONNX needs.
        VerifyError: VR598 if it cannot be exported, VR599 if the file computes something else.
    """
    check_packages(form)
    maker = _Maker(module.eval(), form, size, dtype, dict(about))
    others = None if fixed else maker.others(multiple)
    reason = f"the model takes images of {size[1]}x{size[2]} only"
    if others is not None:
        try:
            return maker.made(others)
        except VerifyError as error:
            reason = error.message
    return maker.made(None, reason)


@dataclass(frozen=True)
class _Maker:
    module: nn.Module
    form: str
    size: tuple[int, int, int]
    dtype: torch.dtype
    about: dict[str, str]

    def others(self, multiple: Size) -> tuple[Size, Size] | None:
        """Two other sizes that the model takes, if there are some."""
        _, height, width = self.size
        own = [(max(multiple), max(multiple))] if max(multiple) > 1 else []
        for down, across in [*own, *((step, step) for step in _STEPS)]:
            sizes = (height + down, width + 2 * across), (height + 2 * down, width + across)
            try:
                for each in sizes:
                    self.expected(self.images(1, each))
            except Exception:  # what a model says of sizes that it does not take
                continue
            return sizes
        return None

    def made(self, others: tuple[Size, Size] | None, reason: str = "") -> Exported:
        """The file, compared with the model."""
        native = self.size[1], self.size[2]
        program = self.program(others[0] if others else native, sizes=others is not None)
        content, run = (self._onnx if self.form == "onnx" else self._pt2)(program)
        checked = [(1, native), (3, native), *([(2, others[1])] if others else [])]
        apart = max(self.apart(run, batch, size) for batch, size in checked)
        done = tuple((batch, *size) for batch, size in checked)
        return Exported(self.form, content, others is not None, reason, done, apart)

    def program(self, size: Size, *, sizes: bool) -> torch.export.ExportedProgram:
        """The exported program.

        Raises:
            VerifyError: VR598.
        """
        dims: dict[int, Any] = {0: torch.export.Dim("batch")}
        dims |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if sizes else {}
        instead = Replaced(FOR_ONNX if self.form == "onnx" else FOR_ALL)
        try:
            with _quiet(), torch.no_grad(), instead:
                made = torch.export.export(
                    self.module, (self.images(2, size),), dynamic_shapes=(dims,), strict=False
                )
        except Exception as error:  # export has many ways to say that it cannot
            raise self._failed("torch.export", error) from error
        # A branch for the size that the model was made for excludes that size from the other one,
        # which gives the same there: what is written is compared at that size.
        guards = getattr(made, "_guards_code", None)
        if sizes and guards:
            made._guards_code = [guard for guard in guards if "!=" not in guard]
        return made

    def _onnx(self, program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
        import onnxruntime
        from onnxscript import optimizer

        few = len(program.graph.nodes) <= _MANY
        names = list(_names(self.module(self.images(1, (self.size[1], self.size[2])))))
        try:
            with _quiet():
                made: Any = torch.onnx.export(
                    program,
                    (),
                    opset_version=OPSET,
                    input_names=["image"],
                    output_names=names,
                    dynamo=True,
                    verbose=False,
                    optimize=few,
                    custom_translation_table=translations(),
                )
                if not few:  # the rules are tried at each node, and each looks at all nodes
                    optimizer.fold_constants(made.model)
                    optimizer.remove_unused_nodes(made.model)
                made.model.metadata_props.update(self.about)
                content = self._serialised(made.model_proto)
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4  # what it refuses is told once, by us
                session = onnxruntime.InferenceSession(
                    content, options, providers=["CPUExecutionProvider"]
                )
        except VerifyError:
            raise
        except Exception as error:
            raise self._failed("torch.onnx.export", error) from error

        def run(images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.from_numpy(v) for v in session.run(None, {"image": images.numpy()})]

        return content, run

    def _serialised(self, proto: Any) -> bytes:
        if (size := proto.ByteSize()) > _MOST:
            raise VerifyError(
                "VR598",
                f"the model takes {size:,} bytes, and a file of ONNX holds 2 GB",
                suggestion="export it --to pt2",
            )
        content: bytes = proto.SerializeToString()
        return content

    def _pt2(self, program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
        buffer = io.BytesIO()
        try:
            with _quiet():
                torch.export.save(program, buffer, extra_files=self.about)
                content = buffer.getvalue()
                again = torch.export.load(io.BytesIO(content)).module()
        except Exception as error:
            raise self._failed("torch.export.save", error) from error

        def run(images: torch.Tensor) -> list[torch.Tensor]:
            return list(tree.leaves(again(images)))

        return content, run

    def _failed(self, who: str, error: Exception) -> VerifyError:
        operator, line = untranslated(error) if self.form == "onnx" else ("", "")
        while error.__cause__ is not None:  # what exporters wrap says what is missing
            error = error.__cause__  # type: ignore[assignment]
        what = f"{operator} of the model" if operator else "the model"
        return VerifyError(
            "VR598",
            f"{who} cannot write {what}: {first_line(error)}",
            notes=[line] if line else (),
            suggestion="export it --to pt2" if self.form == "onnx" else None,
        )

    # -- comparing --------------------------------------------------------------------------------

    def images(self, batch: int, size: Size) -> torch.Tensor:
        """Images drawn at random, the same every time."""
        generator = torch.Generator().manual_seed(batch)
        drawn = torch.randn(batch, self.size[0], *size, generator=generator)
        return drawn.to(self.dtype)

    def expected(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What the model itself gives."""
        with torch.no_grad():
            return list(tree.leaves(self.module(images)))

    def apart(self, run: Run, batch: int, size: Size) -> float:
        """How far what was written is from the model.

        Raises:
            VerifyError: VR599 if it does not run there, or is too far.
        """
        images = self.images(batch, size)
        where = f"{batch}x{self.size[0]}x{size[0]}x{size[1]}"
        try:
            with torch.no_grad():
                found = run(images)
        except Exception as error:
            message = f"what was exported does not run on {where}: {first_line(error)}"
            raise VerifyError("VR599", message) from error
        expected = self.expected(images)
        if [v.shape for v in found] != [v.shape for v in expected]:
            raise VerifyError("VR599", f"what was exported returns other shapes on {where}")
        gap = max((_apart(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
        if not gap <= TOLERANCE:
            raise VerifyError(
                "VR599",
                f"what was exported is {gap:.1e} apart from the model on {where}",
                notes=[f"valid: at most {TOLERANCE:g} of the largest value"],
            )
        return gap


def _apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    gap = (expected.double() - found.double()).abs().max()
    return float(gap / expected.double().abs().max().clamp_min(1e-12))


def _names(output: Any, prefix: str = "") -> Iterator[str]:
    """A name for each tensor in an output: its keys, `scores` if it is one alone."""
    if isinstance(output, torch.Tensor):
        yield prefix or "scores"
        return
    items = output.items() if isinstance(output, Mapping) else enumerate(output or ())
    for key, value in items:
        yield from _names(value, f"{prefix}.{key}" if prefix else str(key))


def check_packages(form: str) -> None:
    """Raises VR597 unless what a form needs is there."""
    import importlib

    for name in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise FileError(
                "VR597",
                f"exporting to ONNX needs {shown(name)}, which is not installed",
                suggestion="pip install 'vitrewrite[onnx]'",
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Remarks of exporters about models that are fine are for nobody."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
