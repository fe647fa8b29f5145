"""vitrewrite: a declarative graph-rewriting compiler for vision transformers.

```python
import vitrewrite as vr

spec = vr.parse("lora_qv", rank=4)          # a path, the name of a shipped spec, or a text
print(vr.plan(spec, "vit_base"))            # no weight is touched
rewritten = vr.apply(spec, model)           # a new module; the input model is unchanged
rewritten.module, rewritten.report, rewritten.delta()
vr.verify(rewritten)
vr.emit(rewritten, "out/")
vr.save(rewritten, "d.safetensors"); vr.load(rewritten, "d.safetensors")
lowered = vr.lower(rewritten)
bank = vr.bank(rewritten, {"pets": "d.safetensors"})    # many deltas in one batch
```
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalog.declare import Pass
from .errors import VitrewriteError
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import apply, bank, capture, emit, load, lower, parse, plan, save, verify

__all__ = [
    "Pass",
    "VitrewriteError",
    "apply",
    "bank",
    "capture",
    "emit",
    "load",
    "lower",
    "parse",
    "plan",
    "save",
    "verify",
]

# In a checkout the passes and specs lie beside this package, in a wheel inside it.
_checkout = Path(__file__).parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "passes").is_dir():
    __path__.append(str(_checkout))


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Imports torch only when something needs it."""
    if name not in __all__:
        raise AttributeError(f"module 'vitrewrite' has no attribute '{name}'")
    from . import api

    return getattr(api, name)
