"""Passes that take tokens out and fold them into those that stay."""
