"""The zoo: every vision transformer of the libraries that people use, captured and checked.

`make zoo` runs all of it and writes `docs/coverage.md`; every change runs a fixed thirtieth
(`test_tenth.py`).
"""
