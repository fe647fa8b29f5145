"""Reports of a rewrite, as text and as a picture."""
