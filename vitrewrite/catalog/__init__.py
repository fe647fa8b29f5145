"""Finds passes and specs by name, and reads what a pass declares without importing it.

The file system is the list: the pass `lora` is `passes/lora.py`, `merge.bdm` is
`passes/merge/bdm.py`. Passes of others come through the entry-point group `vitrewrite.passes`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from vitrewrite.catalog.signatures import PassInfo, read_signature
from vitrewrite.errors import SpecError
from vitrewrite.text import did_you_mean, listing, shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from vitrewrite.catalog.declare import Pass

_GROUP = "vitrewrite.passes"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_DECLARES_PASS = re.compile(r"^class [A-Za-z]\w*\([^)]*\bPass\b", re.MULTILINE)


@dataclass(frozen=True)
class Catalog:
    """Folders to look in. The functions of this module ask the one of the installation.

    Attributes:
        pass_folders: where `lora.py` and `merge/bdm.py` are.
        spec_folders: where `fpet_lora.peft` is.
        package: the import name of the pass folders, or "" for plain files.
        plugins: whether to ask the entry points as well.
    """

    pass_folders: Sequence[Path]
    spec_folders: Sequence[Path]
    package: str = ""
    plugins: bool = False
    _read: dict[str, PassInfo] = field(default_factory=dict, repr=False, compare=False)
    _loaded: dict[str, type[Pass]] = field(default_factory=dict, repr=False, compare=False)

    def passes(self) -> list[str]:
        """The names of all passes.

        Raises:
            SpecError: VR241 if two passes have one name.
        """
        own = {name for folder in self.pass_folders for name in _pass_names(folder)}
        return sorted(own | self._entry_points(own).keys())

    def specs(self) -> list[str]:
        """The names of all shipped specs, such as `fpet_lora` or `bench/vpt`."""
        found = {
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in self.spec_folders
            for path in folder.rglob("*.peft")
        }
        return sorted(found)

    def spec_path(self, name: str) -> Path:
        """The file of a spec, given its path or the name of a shipped one.

        Raises:
            SpecError: VR226 if there is neither.
        """
        if name.endswith(".peft"):
            return Path(name)
        for folder in self.spec_folders:
            path = folder / f"{name}.peft"
            if re.fullmatch(r"[\w./-]+", name) and ".." not in name and is_file(path):
                return path
        if is_file(Path(name)):
            return Path(name)
        known = self.specs()
        notes = [f"shipped specs: {listing(known)}"] if known else []
        suggestion = did_you_mean(name, known)
        raise SpecError("VR226", f"no spec named {shown(name)}", notes=notes, suggestion=suggestion)

    def signature(self, name: str) -> PassInfo:
        """What a pass declares, read from its file without running it.

        Args:
            name: that of an installed one, or `FILE.py:CLASS`.

        Raises:
            SpecError: VR201 if there is no such pass, VR240 if its file declares none.
        """
        if name not in self._read and ".py:" in name:
            self._read[name] = self._of_file(*name.rsplit(":", 1))
        elif name not in self._read:
            module, path = self._locate(name)
            self._read[name] = read_signature(name, module, path)
        return self._read[name]

    def name_of(self, file: Path) -> str | None:
        """The name of the installed pass that a file is, if it is one's."""
        same = (name for name in self.passes() if self._locate(name)[1].resolve() == file.resolve())
        return next(same, None)

    def _of_file(self, file: str, class_name: str) -> PassInfo:
        """What a class in a file declares, that a spec names itself."""
        path = Path(file)
        if not is_file(path):
            raise SpecError("VR201", f"there is no file {shown(file)} with a pass")
        if path.stem in self.passes():
            message = f"two passes are named {shown(path.stem)}"
            raise SpecError(
                "VR241",
                message,
                notes=[f"{file} and one that is installed"],
                suggestion="give the file another name",
            )
        return read_signature(path.stem, "", path, class_name)

    def load(self, name: str) -> type[Pass]:
        """The class of a pass, importing its module.

        Raises:
            SpecError: VR201, VR240 as `signature`, VR242 if its module cannot be imported.
        """
        if name in self._loaded:
            return self._loaded[name]
        self.passes()  # a clash of names is an error before anything is run
        info = self.signature(name)
        try:
            module = _import(info)
        except Exception as error:
            message = f"pass {shown(name)} cannot be imported: {type(error).__name__}: {error}"
            raise SpecError("VR242", message, notes=[f"its file is {info.path}"]) from error
        found = cast("type[Pass]", getattr(module, info.class_name))
        if "lowers_exactly" in found.claims and "lower" not in _own_names(found):
            message = f"pass {shown(name)} claims 'lowers_exactly' and has no lower()"
            raise SpecError("VR240", message, notes=[f"its file is {info.path}"])
        if _NAME.fullmatch(name):  # a file of the user's may change between two specs
            self._loaded[name] = found
        return found

    def _locate(self, name: str) -> tuple[str, Path]:
        if _NAME.fullmatch(name):
            for folder in self.pass_folders:
                if path := _pass_file(folder, name):
                    return (f"{self.package}.{name}" if self.package else ""), path
        plugins = self._entry_points(set())
        if name in plugins:
            return plugins[name].module, _module_file(name, plugins[name].module)
        known = self.passes()
        message = f"no pass named {shown(name)}; known passes: {listing(known, 60) or 'none'}"
        raise SpecError("VR201", message, suggestion=did_you_mean(name, known))

    def _entry_points(self, own: set[str]) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in _installed() if self.plugins else ():
            if entry.name in own or found.get(entry.name, entry) != entry:
                message = f"two passes are named {shown(entry.name)}"
                other = found[entry.name].value if entry.name in found else "a pass of vitrewrite"
                raise SpecError("VR241", message, notes=[f"{entry.value} and {other}"])
            found[entry.name] = entry
        return found


def pass_in(path: Path) -> PassInfo:
    """What the one pass in a file declares.

    Raises:
        SpecError: VR201 if there is no such file, VR240 if it does not declare one.
    """
    if not is_file(path):
        raise SpecError("VR201", f"there is no file {shown(str(path))} with a pass")
    return read_signature(path.stem, "", path)


def _own_names(cls: type) -> set[str]:
    """What a pass defines itself, without what all passes have."""
    return {name for base in cls.__mro__[:-1] if base.__name__ != "Pass" for name in vars(base)}


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _pass_names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        hidden = any(not _NAME.fullmatch(part) or part.startswith("_") for part in names)
        # Helpers of a pass may lie beside it; only a file that declares a pass is one.
        if names and not hidden and _declares_pass(path, path.stat().st_mtime_ns):
            yield ".".join(names)


@functools.cache
def _declares_pass(path: Path, changed: int) -> bool:
    """Whether the text of a file does, as it was when it was changed last."""
    return _DECLARES_PASS.search(path.read_text("utf-8", "replace")) is not None


def _pass_file(folder: Path, name: str) -> Path | None:
    base = folder.joinpath(*name.split("."))
    if any(part.startswith("_") for part in name.split(".")):
        return None
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((path for path in candidates if is_file(path)), None)


@functools.cache
def _installed() -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points  # slow to import, and few runs need it

    return tuple(entry_points(group=_GROUP))


def _module_file(name: str, module: str) -> Path:
    """Where a module lies; its packages are not run to find out."""
    top, *rest = module.split(".")
    found = importlib.util.find_spec(top)
    if found is not None and not rest and found.origin:
        return Path(found.origin)
    for base in (found.submodule_search_locations or []) if found else []:
        if rest and (path := _pass_file(Path(base), ".".join(rest))):
            return path
    message = f"pass {shown(name)} is announced but its module {shown(module)} is not there"
    raise SpecError("VR240", message)


def _import(info: PassInfo) -> ModuleType:
    if info.module:
        return importlib.import_module(info.module)
    name = "vitrewrite_pass_" + re.sub(r"\W", "_", str(info.path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, info.path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package() -> ModuleType:
    """The package itself, which knows where its passes and specs are."""
    return sys.modules[__package__.partition(".")[0]]


@functools.cache
def installed() -> Catalog:
    """The catalog of this installation: a checkout's folders, or those inside the wheel."""
    bases = [Path(base) for base in _package().__path__]
    passes = [base / "passes" for base in bases if (base / "passes").is_dir()]
    specs = [base / "specs" for base in bases if (base / "specs").is_dir()]
    return Catalog(tuple(passes), tuple(specs), _GROUP, plugins=True)


def passes() -> list[str]:
    """The names of all passes; see `Catalog.passes`."""
    return installed().passes()


def name_of(file: Path) -> str | None:
    """The installed pass that a file is; see `Catalog.name_of`."""
    return installed().name_of(file)


def specs() -> list[str]:
    """The names of all shipped specs."""
    return installed().specs()


def spec_path(name: str) -> Path:
    """The file of a spec; see `Catalog.spec_path`."""
    return installed().spec_path(name)


def signature(name: str) -> PassInfo:
    """What a pass declares; see `Catalog.signature`."""
    return installed().signature(name)


def load(name: str) -> type[Pass]:
    """The class of a pass; see `Catalog.load`."""
    return installed().load(name)
