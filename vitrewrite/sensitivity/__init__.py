"""Which parameters matter: candidates, their measured sensitivities, and what a budget buys."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .allocation import Allocation, AllocationRule, Decision, allocate
    from .listing import Candidate, candidates
    from .profile import Profile

__all__ = [
    "Allocation",
    "AllocationRule",
    "Candidate",
    "Decision",
    "Profile",
    "allocate",
    "candidates",
]


def __getattr__(name: str) -> Any:
    """Imports torch only when something needs it: `check` looks at a spec's selectors without."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from . import allocation, listing, profile

    owner = next(m for m in (listing, profile, allocation) if hasattr(m, name))
    return getattr(owner, name)
