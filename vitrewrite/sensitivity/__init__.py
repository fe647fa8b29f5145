"""Which parameters matter: candidates, their measured sensitivities, and what a budget buys."""

from .allocation import Allocation, Decision, Rule, allocate
from .candidates import Candidate, candidates

__all__ = ["Allocation", "Candidate", "Decision", "Rule", "allocate", "candidates"]
