"""What is taken out: blocks by `drop SITES`, before all else, and what passes replace or drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..anatomy.sites import Anatomy, Block
from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.stream import Stream
from ..errors import caused_at
from ..language.model import Spec
from ..selection.kinds import kind_of, word_for
from ..selection.select import Selection
from ..selection.within import Site
from ..sites import BlockSite, Context
from ..text import a_or_an
from .choosing import Chooser


def drop_blocks(
    spec: Spec, editor: Editor, anatomy: Anatomy, stream: Stream, chooser: Chooser
) -> tuple[Anatomy, list[tuple[ClauseRef, tuple[str, ...], int]]]:
    """Takes out the blocks that the `drop` clauses of a spec name, or what was chosen of them.

    Returns:
        The anatomy of what is left, and per clause the roles of its blocks and how many parameters
        they had.

    Raises:
        RewriteError: VR409 for a site that is no block, or if no block is left; VR410 for a block
            that what follows cannot do without.
    """
    done = []
    for number, clause in enumerate(spec.clauses):
        if clause.verb != "drop" or clause.sites is None:
            continue
        name = clause.use.name if clause.use else "drop"
        spans = {o.name: o.span for o in clause.use.options} if clause.use else {}
        described = ClauseRef(number, name, str(clause), clause.span, spans)
        context = Context(editor, described, anatomy, stream)
        with caused_at(clause.span):
            sites = Selection(anatomy, editor.root).sites(clause.sites)
            blocks = [site for site in sites if isinstance(site, Block)]
            for site in sites:
                if not isinstance(site, Block):
                    message = (
                        f"drop takes out blocks, and '{site.role}' is {a_or_an(word_for(site))}"
                    )
                    raise described.error("VR409", message)
            blocks = chooser.sites(clause, blocks, context)
            if len(blocks) == len(anatomy.blocks):
                raise described.error("VR409", f"'{clause}' leaves no block of {anatomy.model}")
            before = sum(p.numel() for p in editor.root.parameters())
            names = {*editor.root.state_dict()}
            for block in blocks:
                BlockSite(context, block).leave_out()
            editor.clean()
        count = before - sum(p.numel() for p in editor.root.parameters())
        editor.left_out(names, described)
        anatomy = anatomy.without(blocks, described.origin)
        done.append((described, tuple(block.role for block in blocks), count))
    return anatomy, done


def expect(sites: Iterable[Site], clause: ClauseRef, editor: Editor) -> None:
    """Raises VR401 for a site of a clause that another one took out, or put another in place of."""
    for site in sites:
        if (found := _taken(site, editor)) is not None:
            by, there = found
            raise clause.without(site.role, by, "replaced" if there else "taken out")


def expect_some(sites: Sequence[Site], clause: ClauseRef, editor: Editor) -> None:
    """Raises VR401 if other clauses took out all that a clause trains; heads may be new ones."""
    gone = [(site, f[0]) for site in sites if (f := _taken(site, editor)) and not f[1]]
    if sites and len(gone) == len(sites):
        site, by = gone[0]
        raise clause.without(site.role, by)


def _taken(site: Site, editor: Editor) -> tuple[ClauseRef, bool] | None:
    """The clause that took a site out, and whether something else has its name now."""
    kind = kind_of(site)
    for path in (kind.module(site), kind.unit(site) if kind.gets else None):
        if path and (by := editor.taken(path)) is not None:
            names = editor.root.state_dict()
            return by, any(f"{name}.".startswith(f"{path}.") for name in names)
    return None
