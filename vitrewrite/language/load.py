"""Reading a spec from a path, a shipped name or a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitrewrite.catalog import Catalog, installed, is_file

from .include import Expansion
from .model import Spec
from .overrides import Overrides
from .problems import all_together
from .resolve import Resolver
from .source import SpecSource, read_source, text_source
from .tokens import VERBS


def parse_spec(
    source: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    catalog: Catalog | None = None,
    folder: Path = Path(),
    models: bool = False,
) -> Spec:
    """Reads and checks a spec, with everything that needs no model.

    Args:
        source: a path, the name of a shipped spec, or the text of one. A string is a text if it
            has a line end, starts with `#`, or starts with a verb and a space.
        overrides: values of params and of pass options by key, such as `rank` and `lora.rank`;
            strings are read like values on a command line. `model` replaces the spec's model,
            `input` says what any model is called with; the other reserved keys (`weights`, `data`,
            `seed`, `device`) are the caller's.
        catalog: where to find passes and specs; this installation's by default.
        folder: what the files of passes that a text names are relative to.
        models: whether to refuse names of models that nobody knows; building one does, too.

    Raises:
        VitrewriteError: the error, or an `ErrorList` of all errors, in the order of the spec.
    """
    catalog = catalog or installed()
    with all_together() as problems:
        text = open_source(source, catalog, folder)
        expansion = Expansion(text, catalog, problems)
        spec = Resolver(expansion, catalog, Overrides(overrides or {}), problems).spec(text)
        for ref in spec.models if models else ():
            with problems.catch():
                ref.refuse_unknown()
        return spec


def open_source(source: str | Path, catalog: Catalog, folder: Path = Path()) -> SpecSource:
    """The text that a path, a name or a text stands for.

    Args:
        source: one of them.
        catalog: where to find specs.
        folder: what files that a text names are relative to.

    Raises:
        SpecError: VR101, VR102 or VR103 if it cannot be read, VR226 if there is no such spec.
    """
    if isinstance(source, Path):
        return read_source(source)
    if is_text(source):
        return text_source(source, folder=folder)
    path = catalog.spec_path(source)
    shipped = not source.endswith(".peft") and not is_file(Path(source))
    return read_source(path, f"{source}.peft" if shipped else source)


def is_text(source: str) -> bool:
    """Whether a string is the text of a spec rather than a path or a name."""
    words = source.split(maxsplit=1)
    return "\n" in source or source.startswith("#") or (len(words) > 1 and words[0] in VERBS)
