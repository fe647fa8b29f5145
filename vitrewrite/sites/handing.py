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
