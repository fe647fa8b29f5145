"""A catalogue with a few small passes, so that tests of the language need no real ones."""

from pathlib import Path

from vitrewrite.catalog import Catalog

FIXTURES = Path(__file__).parent / "fixtures"
CATALOG = Catalog((FIXTURES / "passes",), (FIXTURES / "specs",))
