"""vitrewrite: a declarative graph-rewriting compiler for vision transformers."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the passes and specs lie beside this package, in a wheel inside it.
_checkout = Path(__file__).parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "passes").is_dir():
    __path__.append(str(_checkout))
