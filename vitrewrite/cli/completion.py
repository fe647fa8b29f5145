"""What the shell is told when it asks how a word goes on. Nothing here imports torch or timm."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from .. import catalog
from ..errors import VitrewriteError

Words = Callable[[click.Context, str], Iterable[str]]
_PARAM = re.compile(r"(?m)^\s*param\s+(\w+)[^\n]*?(?:\bin\s*\{([^}\n]*)\})?[ \t]*(?:#.*)?$")
_CALLED = re.compile(r"([A-Za-z_][\w.]*)\s*\(")
_INCLUDED = re.compile(r"(?m)^\s*include\s+[\"']?([\w./-]+)")
_SEVERAL = ("overrides", "targets", "specs")  # arguments that overrides stand in
_SWITCH = ("true", "false")
_DEEP = 16  # includes in includes


class Completed(click.types.StringParamType):
    """A text as the user wrote it, which the shell can go on with."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The words that begin so; none rather than an error."""
        try:
            found = [w for w in self.words(ctx, incomplete) if w.startswith(incomplete)]
        except (VitrewriteError, OSError, ValueError):
            return []
        return [CompletionItem(word) for word in dict.fromkeys(found)]


def attach(parameter: click.Parameter) -> None:
    """Tells a parameter of a command what may stand in it, by its name."""
    if parameter.name in _WORDS and isinstance(parameter.type, click.types.StringParamType):
        parameter.type = Completed(_WORDS[parameter.name])


# -- words ----------------------------------------------------------------------------------------


def _specs(context: click.Context, begun: str) -> Iterator[str]:
    yield from catalog.specs()
    yield from _files(begun, ".peft")


def _targets(context: click.Context, begun: str) -> Iterator[str]:
    yield from catalog.specs()
    yield from _files(begun, ".peft", "lock.json")


def _models(context: click.Context, begun: str) -> Iterator[str]:
    from ..catalog.models import known_models

    yield from (name for name, _ in known_models())
    yield from _files(begun, ".py")


def _passes(context: click.Context, begun: str) -> Iterator[str]:
    yield from catalog.passes()
    yield from _files(begun, ".py")


def _topics(context: click.Context, begun: str) -> Iterator[str]:
    from ..catalog.explain import explanations
    from .listing import CLAUSES
    from .topics import TOPICS

    yield from (*CLAUSES, *TOPICS, *catalog.passes())
    if begun[:1].lower() == "v":
        yield from explanations()


def _listed(context: click.Context, begun: str) -> Iterator[str]:
    from .listing import names

    yield from names(context.params.get("what") or "specs")


def _models_and_specs(context: click.Context, begun: str) -> Iterator[str]:
    yield from catalog.specs()
    yield from _models(context, begun)


def _files(begun: str, end: str, within: str = "") -> Iterator[str]:
    """Files that end so, folders that have a file of that name, and folders on the way to more."""
    folder = os.path.dirname(begun)  # noqa: PTH120 - keeps `./`
    for path in sorted(Path(folder or ".").glob("*")):
        name = os.path.join(folder, path.name)  # noqa: PTH118
        if path.name.endswith(end) or (within and (path / within).is_file()):
            yield name
        elif path.is_dir() and not path.name.startswith((".", "__")) and begun:
            yield f"{name}/"


# -- overrides ------------------------------------------------------------------------------------


def _overrides(context: click.Context, begun: str) -> Iterator[str]:
    """Keys with `=`; behind that sign, values."""
    given = [word for name in _SEVERAL for word in context.params.get(name) or ()]
    facts = _facts(context)
    key, equals, value = begun.partition("=")
    if equals:
        yield from (f"{key}={word}" for word in _values(context, facts, key, value))
    elif (key := _split_key(given)) in facts:
        yield from _values(context, facts, key, begun)
    else:
        yield from (f"{key}=" for key in facts)


def _split_key(given: list[str]) -> str:
    """The key, where a shell takes `model=vit` for three words: bash does."""
    words = " ".join(given).removesuffix(" =").replace(" = ", "=").split(" ")
    return words[-1]


def _values(
    context: click.Context, facts: Mapping[str, tuple[str, ...]], key: str, begun: str
) -> Iterator[str]:
    if key == "model":
        yield from _models(context, begun)
    elif key in ("weights", "delta"):
        yield from ("random", "pretrained") if key == "weights" else ()
        yield from _files(begun, ".safetensors")
    elif key == "data":
        yield "digits"
        yield from _files(begun, "/")
    else:
        yield from facts.get(key, ())


def _facts(context: click.Context) -> dict[str, tuple[str, ...]]:
    """The keys that a command line may have, with values where there are few."""
    from ..language.keys import MODEL_ARGUMENTS, RESERVED
    from ..language.settings import options

    given = context.params
    if "model" in given:
        return dict.fromkeys((*MODEL_ARGUMENTS, "input"), ())
    several = next((words for name in ("targets", "specs") if (words := given.get(name))), [None])
    spec = given.get("spec") or given.get("target") or several[0]
    found: dict[str, tuple[str, ...]] = {}
    with suppress(VitrewriteError, OSError):  # as much of the spec as can be read
        for key, values in _of_spec(spec, _DEEP) if spec else ():
            found[key] = values
    found |= dict.fromkeys(RESERVED, ())
    found["device"] = ("cpu", "cuda")
    found |= {f"tune.{name}": _choices(each) for name, each in options().items()}
    return found | dict.fromkeys(MODEL_ARGUMENTS, ())


def _of_spec(name: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Params of a spec, and options of its passes; it may well be wrong somewhere."""
    text = catalog.spec_path(name).read_text(encoding="utf-8", errors="replace")
    for param, choices in _PARAM.findall(text):
        yield param, tuple(word.strip(" \"'") for word in choices.split(",") if word.strip())
    known = set(catalog.passes())
    for used in dict.fromkeys(_CALLED.findall(text)):
        if used in known:
            for option, about in catalog.signature(used).options.items():
                yield f"{used}.{option}", _choices(about)
    for included in _INCLUDED.findall(text) if depth else ():
        yield from _of_spec(included, depth - 1)


def _choices(option: object) -> tuple[str, ...]:
    if getattr(option, "type", "") == "bool":
        return _SWITCH
    found = [*(getattr(option, "choices", None) or ()), *(getattr(option, "words", None) or ())]
    return tuple(map(str, found))


def _options_of_pass(context: click.Context, begun: str) -> Iterator[str]:
    name = context.params.get("file") or ""
    if name in catalog.passes():
        yield from (f"{option}=" for option in catalog.signature(name).options)


def _specs_and_overrides(context: click.Context, begun: str) -> Iterator[str]:
    yield from _targets(context, begun)
    if context.params.get("targets") or context.params.get("specs"):
        yield from _overrides(context, begun)


_WORDS: Mapping[str, Words] = {
    "spec": _specs, "specs": _specs_and_overrides, "first": _targets, "second": _targets,
    "target": _targets, "targets": _specs_and_overrides, "model": _models_and_specs,
    "overrides": _overrides, "patterns": _listed, "topic": _topics,
    "file": _passes, "options": _options_of_pass,
}  # fmt: skip


# -- bash -----------------------------------------------------------------------------------------


class _Bash(BashComplete):
    """Click's, without a space behind `rank=`, which a value follows."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n",
        "    [[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace\n\n    return 0\n",
    )


add_completion_class(_Bash)
