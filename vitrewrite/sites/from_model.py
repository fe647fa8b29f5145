"""What the model gives to a site: its images, values that no gradient flows back through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..anatomy.sites import Place
from ..editing.origins import origin_of
from ..editing.value import Value, shape_of
from ..sensitivity.profile import SENSITIVITY
from ..text import Told
from ..tracing import inputs
from ..tracing.about import about
from ..tracing.notes import HINT, VALUE

if TYPE_CHECKING:
    from ..editing.editor import Editor
    from ..errors import RewriteError
    from .context import Context


class FromModel(Told):
    """What a site is given by the model that it lies in."""

    context: Context

    @property
    def editor(self) -> Editor:
        """The tree verbs."""
        return self.context.editor

    def unfit(self, message: str, **extra: Any) -> RewriteError:
        """An error about a site that cannot have the pass, whatever its options."""
        raise NotImplementedError

    # -- values ---------------------------------------------------------------------------------

    @property
    def image(self) -> Value:
        """The images as the model is given them, [batch, channels, height, width]."""
        nodes = self.editor.graph("").nodes
        for node in (n for n in nodes if n.op == "placeholder"):
            known = VALUE.get(node)
            if isinstance(known, torch.Tensor) and known.dim() == 4 and known.is_floating_point():
                return Value(Place("", node.name))
        raise self.unfit("the model is given no image as [batch, channels, height, width]")

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """The shape of a value of the model in the batch and size that it was captured with."""
        return shape_of(self.editor.node(value.place))

    def shape_at(self, place: Place) -> tuple[int, ...]:
        """The shape of a value of the model as it was, for one image.

        Graphs that are equal but for numbers of theirs are one, which knows the shapes of its first
        call alone; this is the shape at the place itself.
        """
        batches = self.context.batches
        found = None if batches is None else batches.runs[0].shape(place)
        return found or shape_of(self.editor.node(place))

    def from_frozen(self, value: Value, name: str = "") -> Value:
        """The same value, of a part of the model that nothing trains: no gradient flows back.

        So nothing in front of it is kept for backward, and what is made of an image is the same
        in every epoch.

        Args:
            value: what is read.
            name: of the variable, where it has none of its own.

        Raises:
            RewriteError: VR520, when all clauses are through, if one of them trains something
                that stands in front of it.
        """
        self.editor.frozen.append((value.place, self.context.clause))
        node = self.editor.node(value.place)
        HINT.put(node, HINT.get(node) or name or node.name)
        return value.detached()

    def start_from_model(self, *, measured: bool = False) -> None:
        """Initial values of what the clause puts in are made of the model's own.

        The pass makes them, in `inherit`.

        Args:
            measured: whether squared gradients say what of them matters, and not their size.

        Raises:
            RewriteError: VR521 if they do and were not measured.
        """
        context, clause = self.context, self.context.clause
        if clause.number in self.editor.origins or (measured and context.again):
            return  # made before: it gets the values that it had then
        found = None if context.profile is None else context.profile.tensors
        known = {k.removeprefix(SENSITIVITY): v for k, v in (found or {}).items()}
        origin = origin_of(self.editor.root, context.anatomy, known if measured else None)
        left = sorted({part.weight for part in origin.matrices.values()} - known.keys())
        if measured and left:
            raise clause.error(
                "VR521",
                f"{clause.pass_name} starts from what matters in the model, and "
                f"{'nothing' if not known else f'{left[0]!r}'} was {'' if not known else 'not '}"
                "measured",
                "init",
                suggestion="run 'vitrewrite profile' on the spec and give its file as --profile, "
                "or write init=weights",
            )
        self.editor.origins[clause.number] = origin

    # -- images ---------------------------------------------------------------------------------

    @property
    def patch_features(self) -> int:
        """Numbers in one patch of the image, channels included: 3 * 16 * 16."""
        path = self.context.anatomy.patch_embed
        layers = () if path is None else self.editor.root.get_submodule(path).parameters()
        sizes = [p.shape[1:].numel() for p in layers if p.dim() > 1]
        if not sizes:
            raise self.unfit("the model has no patch embedding to draw the scale from")
        return sizes[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was captured with.

        For checks and messages: what a pass makes has to fit other sizes too.
        """
        height, width = self._captured.shape[-2:]
        return height, width

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels.

        Raises:
            RewriteError: VR410 if the first block sees no grid of patches that fills the image.
        """
        grid, (height, width) = self.context.stream.start.grid, self.image_size
        if grid is None or height % grid[0] or width % grid[1]:
            shape = "no grid" if grid is None else f"a grid of {grid[0]}x{grid[1]}"
            raise self.unfit(f"{shape} of patches fills an image of {height}x{width}")
        return height // grid[0], width // grid[1]

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._captured.dtype

    @property
    def _captured(self) -> torch.Tensor:
        """The first input of the model that holds fractions."""
        args, kwargs = inputs.as_arguments(about(self.editor.root).example)
        images: list[torch.Tensor] = [*args, *kwargs.values()]
        return next(v for v in images if v.is_floating_point())
