"""`vitrewrite bench`: what a rewritten model costs, side by side with its base."""

from .run import BenchSettings as BenchSettings
from .run import run as run
from .run import run_by_block as run_by_block
from .text import by_block as by_block
from .text import table as table
