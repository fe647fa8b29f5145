"""How a pass declares itself: a frozen dataclass whose fields are its options in the language.

The declaration is *read*, not run, by everything that must not import torch: `catalog` parses
the class body and evaluates the literals in it. So `option(...)` takes literals only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from .tuning.procedure import Procedure


def option(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    help: str = "",
) -> Any:
    """A field of a pass that a spec can set; without `default` it must be set.

    Args:
        default: the paper's value.
        minimum: smallest value allowed (inclusive).
        maximum: largest value allowed (inclusive).
        choices: the words allowed, for a `str`.
        help: one line for `vitrewrite explain`.
    """
    metadata = {"minimum": minimum, "maximum": maximum, "choices": choices, "help": help}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Pass:
    """Base of all passes.

    Class attributes, all literals:
        verbs: the clauses it can stand in, such as `("insert at", "prepend")`.
        attaches: the roles of the sites it accepts, such as `("linear",)`.
        source: the paper.
        claims: what the verifier checks, out of `same_output_at_init`, `lowers_exactly`.
        after: passes that are carried out before this one, whatever the order in the spec.
    """

    verbs: ClassVar[tuple[str, ...]] = ()
    attaches: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""
    claims: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, site: Any, /) -> None:
        """Carries the pass out at a site, through the verbs that the site offers."""
        raise NotImplementedError

    def lower(self, folding: Any, module: Any, /) -> None:
        """Folds what the pass inserted into the base; needed for `lowers_exactly`."""
        raise NotImplementedError

    def delta(self, module: Any, /) -> list[dict[str, torch.Tensor]]:
        """The tensors of each site of an inserted module, named and shaped as its card has them."""
        raise NotImplementedError

    def procedure(self) -> Procedure | None:
        """What it contributes to training: losses, phases, schedules; see `tuning.procedure`."""
        return None
