"""One session that measures: created from the options, run, shown on the terminal.

`activation` creates it, `sweep` runs it in the process that owns it, `workers` in the processes of xdist, and
`terminal` prints what happens.
"""
