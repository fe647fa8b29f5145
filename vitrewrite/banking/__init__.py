"""Many deltas of one spec over one base: a batch in which each sample has a task of its own.

`slots` has what a module of the model becomes, `lay` how samples lie in what it is given, `tree`
makes the one graph that is given a task for each sample, `fill` turns deltas into tensors of
modules, and `bank` is what a user holds.
"""

from .bank import Bank, BankModule, make
from .fill import Delta

__all__ = ["Bank", "BankModule", "Delta", "make"]
