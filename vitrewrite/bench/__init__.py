"""`vitrewrite bench`: what a rewritten model costs, side by side with its base."""

from .run import BenchSettings as BenchSettings
from .run import run as run
from .text import table as table
