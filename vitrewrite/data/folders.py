"""Folders with a subfolder per class, as torchvision reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from .listing import image_files
from .pictures import read_image


class ClassFolder(ImageFolder):  # type: ignore[misc]
    """torchvision's, of the files that `image_files` finds: it stops at loops of links."""

    samples: list[tuple[Path, int]]
    targets: list[int]

    def __init__(self, root: Path) -> None:
        super().__init__(root, loader=read_image, allow_empty=True)

    @staticmethod
    def make_dataset(directory: Any, class_to_idx: Any, *_: Any, **__: Any) -> Any:
        """The files of each class with its label."""
        pairs = ((Path(directory, name), label) for name, label in class_to_idx.items())
        return [(path, label) for folder, label in pairs for path in image_files(folder)]

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """The subfolders that are not hidden."""
        found = (p.name for p in Path(directory).iterdir() if p.is_dir())
        classes = sorted(name for name in found if not name.startswith("."))
        return classes, {name: label for label, name in enumerate(classes)}

    @property
    def files(self) -> list[Path]:
        """Where the images lie."""
        return [path for path, _ in self.samples]

    def relabel(self, classes: Sequence[str]) -> None:
        """Counts labels in a longer list of the classes."""
        self.targets = [classes.index(self.classes[label]) for label in self.targets]
        self.samples = list(zip(self.files, self.targets, strict=True))
