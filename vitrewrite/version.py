"""The version of this package, without importing the rest of it."""

__version__ = "0.2.0"
