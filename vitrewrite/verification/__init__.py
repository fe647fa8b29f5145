"""Verification: claims about a rewritten model, checked on the model itself."""

from .check import Check as Check
from .checks import quick as quick
from .checks import verify_rewritten as verify_rewritten
