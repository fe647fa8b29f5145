"""All or nothing on disk: a folder or file is replaced as a whole, or stays as it was.

What is written grows in a workplace beside its target, `.NAME.vitrewrite`, which one process claims
at a time (`claim`), and which takes the target's place at the end (`folders`, `single`). Where the
system can exchange two folders (Linux, on the usual file systems), there is no moment without the
target; elsewhere there is one between two renames, and the next run makes it good if a process dies
in it. A run that was killed leaves its workplace; the next run that writes the same target removes
it. What others put into a folder of ours stays in it.
"""

from .claim import claimed, is_left, workplace
from .folders import check_target, filling, replacing
from .places import LOCK, MADE_BY, RUN, WORKPLACE, check_name, open_to_readers, reported
from .single import check_file, replacing_file, write_text

__all__ = [
    "LOCK",
    "MADE_BY",
    "RUN",
    "WORKPLACE",
    "check_file",
    "check_name",
    "check_target",
    "claimed",
    "filling",
    "is_left",
    "open_to_readers",
    "replacing",
    "replacing_file",
    "reported",
    "workplace",
    "write_text",
]
