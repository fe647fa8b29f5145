"""Values that a site of a clause keeps for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..editing.value import Value
    from .context import Context


class Handing:
    """What blocks and attentions hand on, from site to site of a clause."""

    context: Context

    @property
    def role(self) -> str:
        """The site in words."""
        raise NotImplementedError

    def hand_on(self, *values: Value) -> None:
        """Keeps values for the next site of the clause."""
        self.context.shared.update({f"{i} from {self.role}": v for i, v in enumerate(values)})

    @property
    def handed(self) -> Value | None:
        """What the site before in the clause handed on, if it did; the first of several."""
        return next(iter(self.all_handed), None)

    @property
    def all_handed(self) -> tuple[Value, ...]:
        """All that the site before in the clause handed on."""
        number = self.context.roles.index(self.role)
        before = self.context.roles[number - 1] if number else None
        found = self.context.shared.items()
        return tuple(v for key, v in found if key.endswith(f" from {before}"))

    def collect(self, value: Value, kind: str = "") -> None:
        """Keeps a value beside those of its kind that the blocks before in the clause collected."""
        self.context.shared[f"collected {kind} at {self.role}"] = value

    @property
    def collected(self) -> tuple[Value, ...]:
        """What the blocks of the clause collected up to this one, in order."""
        return self.collected_as("")

    def collected_as(self, kind: str) -> tuple[Value, ...]:
        """The same of one kind."""
        found = (
            self.context.shared.get(f"collected {kind} at {role}") for role in self.context.roles
        )
        return tuple(value for value in found if value is not None)
