"""All lists of the zoo by library, and a model by its key."""

from __future__ import annotations

from tests.zoo import hf_list, other_lists, timm_list
from tests.zoo.subject import Subject

LIBRARIES = ("timm", "transformers", *other_lists.LISTS)


def names(library: str) -> list[str]:
    """The names of a library's models, generated; minutes for timm, which builds all."""
    if library == "timm":
        return timm_list.names()
    return hf_list.names() if library == "transformers" else other_lists.names(library)


def subject(key: str) -> Subject:
    """The model `library:name`."""
    library, _, name = key.partition(":")
    if library == "timm":
        return timm_list.subject(name)
    if library == "transformers":
        return hf_list.subject(name)
    return other_lists.subject(library, name)
