"""What is known of a value whose making is known, before it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from .numbers import Deps


@dataclass(frozen=True)
class Fact:
    """What is known of a known tensor without computing it."""

    deps: Deps  # the witnesses that its value or shape may differ under
    oldest: int  # the first step that it depends on; -1 is what the model holds
    uniform: bool  # all elements are equal, to the same number at all sizes

    @property
    def certain(self) -> bool:
        """Whether a single number that is made of it is the same at all sizes."""
        return self.uniform or not self.deps

    def after(self, change: Fact | None) -> Fact:
        """The fact for what something was written into."""
        if change is None:
            return self
        oldest = min(self.oldest, change.oldest)
        return Fact(self.deps | change.deps, oldest, self.uniform and change.uniform)


class Memory:
    """What may share memory, so that a change of one tensor is one of all."""

    def __init__(self) -> None:
        self._other: Memory | None = None
        self.changed: Fact | None = None

    def whole(self) -> Memory:
        """The one that stands for all that was joined."""
        found = self
        while found._other is not None:
            found = found._other
        return found

    def join(self, other: Memory) -> None:
        """Takes two for one."""
        mine, whole = self.whole(), other.whole()
        if mine is not whole:
            mine._other = whole
            if mine.changed is not None:
                whole.change(mine.changed)

    def change(self, fact: Fact) -> None:
        """Something was written into it."""
        whole = self.whole()
        whole.changed = fact.after(whole.changed)
