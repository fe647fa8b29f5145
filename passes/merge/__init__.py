"""Passes that merge tokens."""
