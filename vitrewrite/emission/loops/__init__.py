"""Loops in printed source.

`runs` finds calls that are each fed by the one before. Where turns do more, `rolling` looks for
them, `growing` finds what belongs to a turn, `folding` puts a node of `rolls` in the place of all
turns, and `turns` prints it. Loops over the items of tuples, which carry nothing, are found by
`levels` in `lockstep`, made by `turning`, put in place by `filling` and printed by `sweeping`.
"""
