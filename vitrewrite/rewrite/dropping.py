"""`drop SITES`: the blocks that a spec takes out, before anything else is done to the model."""

from __future__ import annotations

from ..anatomy.sites import Anatomy, Block
from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.stream import Stream
from ..errors import caused_at
from ..language.model import Spec
from ..selection.kinds import word_for
from ..selection.select import Selection
from ..sites import BlockSite, Context
from ..text import a_or_an, plural


def drop_blocks(
    spec: Spec, editor: Editor, anatomy: Anatomy, stream: Stream
) -> tuple[Anatomy, list[tuple[ClauseRef, tuple[str, ...], int]]]:
    """Takes out the blocks that the `drop` clauses of a spec name.

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
        described = ClauseRef(number, "drop", str(clause), clause.span, {})
        with caused_at(clause.span):
            sites = Selection(anatomy, editor.root).sites(clause.sites)
            blocks = [site for site in sites if isinstance(site, Block)]
            for site in sites:
                if not isinstance(site, Block):
                    message = (
                        f"drop takes out blocks, and '{site.role}' is {a_or_an(word_for(site))}"
                    )
                    raise described.error("VR409", message)
            if len(blocks) == len(anatomy.blocks):
                raise described.error("VR409", f"'{clause}' leaves no block of {anatomy.model}")
            before = sum(p.numel() for p in editor.root.parameters())
            names = {*editor.root.state_dict()}
            for block in blocks:
                BlockSite(Context(editor, described, anatomy, stream), block).leave_out()
            editor.clean()
        count = before - sum(p.numel() for p in editor.root.parameters())
        gone = names - {*editor.root.state_dict()}
        paths = ", ".join(f"{block.path}.*" for block in blocks)
        place = f"{described.place}: " if described.place else ""
        editor.warnings.append(
            f"{place}{plural(len(gone), 'tensor')} of the base left out: {paths}"
        )
        anatomy = anatomy.without(blocks, described.origin)
        done.append((described, tuple(block.role for block in blocks), count))
    return anatomy, done
