"""`vitrewrite check-pass`: whether a pass keeps its contract, tried on a tiny model."""
