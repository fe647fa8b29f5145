"""Passes that take tokens out."""
