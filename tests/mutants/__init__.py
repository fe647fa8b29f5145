"""Random one-line mutants of the compiler; see `__main__`."""
