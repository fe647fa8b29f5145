"""How a pass declares itself: a frozen dataclass whose fields are its options in the language.

The declaration is *read*, not run, by everything that must not import torch: `catalog` parses
the class body and evaluates the literals in it. So `option(...)` takes literals only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .signatures import SIZES_KEPT

if TYPE_CHECKING:
    import torch

    from .updates import LowRankUpdate, Rescaling


def option(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | tuple[int, ...] | None = None,
    words: tuple[str, ...] = (),
    needs: str = "",
    rest: Any = None,
    help: str = "",
) -> Any:
    """A field of a pass that a spec can set; without `default` it must be set.

    Args:
        default: the paper's value.
        minimum: smallest value allowed (inclusive).
        maximum: largest value allowed (inclusive).
        above: the value must be larger than this.
        below: the value must be smaller than this.
        choices: the words or numbers allowed.
        words: strings that need no quotes, where others are allowed too; of a number what it may be
            instead.
        needs: a condition on the other options without which this one has no effect, such as
            `"masks and count > 1"`; a spec that sets it all the same gets a warning. What depends
            on the site is told by `site.idle(option, why)`.
        rest: what a list of values by site means for the sites behind its end; else it must be as
            long as there are sites.
        help: one line for `vitrewrite explain`.
    """
    metadata = {
        "minimum": minimum, "maximum": maximum, "above": above, "below": below,
        "choices": choices, "words": words, "needs": needs, "rest": rest, "help": help,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Rung:
    """What a clause can be to meet a cost: some options, perhaps at one of its sites alone."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at: int | None = None


@dataclasses.dataclass(frozen=True)
class Pass:
    """Base of all passes.

    Class attributes, all literals:
        verbs: the clauses it can stand in, such as `("insert at", "prepend")`.
        attaches: the roles of the sites it accepts, such as `("linear",)`.
        source: the paper.
        claims: what the verifier checks: `same_output_at_init`, `lowers_exactly` and what `errors`
            measures. At a site where one is not made, `rewrite` says `site.waive(claim, why)`.
            On layers, a pass that lowers exactly is linear: it goes before those that are not.
        reads: facts of the stream that it asks for, out of `prefix`, `grid`, `size`.
        writes: facts that it changes. Writers come before readers, whatever the order in the spec.
            A pass that writes `layers` puts layers in: all other clauses see the model with them.
        excludes: names of passes that do the same another way: a site has one of them.
        least: how many gates of a module a search leaves open, where each has a part by itself.
        sole: a kind of pass, such as `pruner`: of all that say so, a model has one.
        named: what a delta calls its tensors by, if that is not the name of the pass.
    """

    verbs: ClassVar[tuple[str, ...]] = ()
    attaches: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""
    claims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[int] = 1
    sole: ClassVar[str] = ""
    named: ClassVar[str] = ""

    def rewrite(self, site: Any, /) -> None:
        """Carries the pass out at a site, through the verbs that the site offers.

        In `drop SITES by PASS` it only refuses sites that it is not made for: its procedure finds
        in training which of them go.
        """
        raise NotImplementedError

    def cost(self, out_features: int, in_features: int, /) -> int:
        """Parameters that the pass adds at a matrix, which budgets ask for."""
        raise NotImplementedError

    @property
    def measured_on(self) -> int:
        """Training images that `vitrewrite profile` measures for it, unless a selector says.

        For passes that start from what matters in the model; 0 for others.
        """
        return 0

    def ladder(self, sites: int, patches: int, /) -> Sequence[Rung]:
        """What there is to choose from where the option `macs` states a cost to meet.

        Args:
            sites: how many the clause has.
            patches: tokens of the model that are no prefix.

        Returns:
            Choices, the one that leaves the model most expensive first.
        """
        raise NotImplementedError

    def prices(self, site: Any, module: Any, /, *, patches_only: bool = False) -> Sequence[float]:
        """What a search pays for: MACs of an image behind each entry of `module.priced()`.

        A module that a search decides about has `priced()`, a tensor that says what of it would be
        there, and `logits`, its parameter that training moves; see `layers.gating`. Where a part
        costs as much as two others the difference is the price: sums are those of the lowered
        model.

        Args:
            site: where the module is.
            module: what was inserted.
            patches_only: whether linear layers are counted for patches alone, as some papers do.

        Returns:
            As many as `priced()` has entries.
        """
        raise NotImplementedError

    def found(self, module: Any, opened: Sequence[bool], /) -> Mapping[str, Any]:
        """The options of a clause, at the site of a module, that state what a search ended with.

        They are words, numbers and lists of these. A model with them in place of the clause's own
        is built anew, and costs what `prices` say of what is open.

        Args:
            module: what was inserted for the search; its tensors do not count.
            opened: which of its logits are open; of those that have no say by themselves, as of
                gates that need others open, what amounts to the same.
        """
        raise NotImplementedError

    def lower(self, site: Any, module: Any, /) -> bool:
        """Makes what the pass inserted cheaper, through the verbs that the site offers.

        Returns:
            Whether the module is gone; one that is as cheap as it can be stays.
        """
        return False

    def errors(self, module: Any, inputs: Any, outputs: Any, /) -> dict[str, float]:
        """What must hold of one call of an inserted module: by claim, how far off it is.

        The names are among the `claims` of the pass. Of one that claims that sizes of tokens are
        kept, by default, how much of them a module that yields (x, sizes) loses.
        """
        from .defaults import errors

        return errors(inputs, outputs) if SIZES_KEPT in self.claims else {}

    def initialise(self, module: Any, generator: torch.Generator, /) -> None:
        """Draws the parameters of an inserted module.

        By its `reset_parameters(generator)`; of a module without one, as its constructor does.
        """
        from .defaults import initialise

        initialise(module, generator)

    def inherit(self, site: Any, module: Any, origin: Any, /) -> None:
        """Makes initial values of a module of the model's own, where a clause asked for that.

        After `initialise`, for a clause with a site that said `start_from_model()`.

        Args:
            site: where the module is.
            module: what was inserted.
            origin: the layers of the model as it was, by role: `origin.weight("blocks[3].attn.q")`,
                `origin.bias(role)`, `origin.importance(role)`, and `origin.once(name, make)` for
                what all modules of the clause have in common.
        """
        raise NotImplementedError

    def delta(self, module: Any, /) -> list[dict[str, torch.Tensor]]:
        """The tensors of each site of an inserted module, named and shaped as its card has them.

        The module's parameters and persistent buffers under their own names, for a module that is
        at one site.
        """
        from .defaults import delta

        return delta(module)

    def weights(self, module: Any, given: Sequence[Any], /) -> Mapping[str, Any]:
        """How much each value counts that an inserted module reads of the model, for pictures.

        What they are called is said in `rewrite` by `site.reads(*names)`; without it there is one
        number, which is about the site.

        Args:
            module: what was inserted.
            given: the arguments that it is called with for some images; empty without images.

        Returns:
            By what the numbers are, such as `norm of columns`: a tensor [values], or [images,
            values] where they hang on the image. None in its place where images are needed.
        """
        return {}

    def update(self, module: Any, /) -> LowRankUpdate | Rescaling | None:
        """What an inserted module does to each of its sites, for other libraries to do the same.

        None where it is nothing that they know; `convert` refuses it then.
        """
        return None

    def procedure(self) -> object:
        """What it contributes to training, a `tuning.procedure.Procedure`, or None."""
        return None
