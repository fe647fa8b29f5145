"""Folders that vitrewrite wrote, as they are read: what is read is what was written."""
