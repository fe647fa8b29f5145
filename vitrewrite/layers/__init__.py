"""Layers that modules of passes may hold, and what they are in a file."""
