"""One session that measures: made of what was typed, run, shown on the terminal.

`activation` makes it, `sweep` runs it in the process that owns it, `workers` in the processes of xdist, `terminal` says
what happens.
"""
