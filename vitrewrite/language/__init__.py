"""The language of specs: parsing, checking and formatting, without torch.

Each name is imported when it is used: words are completed and models listed without a parser.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .claims import METRICS as METRICS
    from .format import format_text as format_text
    from .keys import RESERVED as RESERVED
    from .load import parse_spec as parse_spec
    from .model import Claim as Claim
    from .model import Clause as Clause
    from .model import PassUse as PassUse
    from .model import Spec as Spec
    from .overrides import Overrides as Overrides
    from .overrides import parse_model as parse_model
    from .overrides import parse_override as parse_override
    from .overrides import parse_overrides as parse_overrides
    from .references import ModelRef as ModelRef

_PLACES = {
    "METRICS": "claims", "format_text": "format", "parse_spec": "load", "Claim": "model",
    "Clause": "model", "PassUse": "model", "Spec": "model", "RESERVED": "keys",
    "Overrides": "overrides", "parse_model": "overrides", "parse_override": "overrides",
    "parse_overrides": "overrides", "ModelRef": "references",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the file of a name."""
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
