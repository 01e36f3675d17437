"""Notation: a tower from one line of text, the same line that a tower prints.

    tower  =  task ":" floor ("/" floor)*            digits-mlp: lstm@20 / lstm@5 / adam(lr=1e-3)
    floor  =  level | group
    group  =  "depth" "(" level ("/" level)+ ("," setting)* ")"        depth(sgd@1 / sgd@1, price=1e-3)
    level  =  part ["@" unroll] ["[" settings "]"]   lstm(hidden=20)@20[batch=64, objective=mean-log]

Parts and their settings are read by `levels.reading`, levels by `recursion.reading`. A group is short for levels with
gates (`recursion.group`). Every mistake is a ValueError of one line that says where it is: ``level 2 (lstm@0): unroll
must be a whole number of at least 1, got 0``.
"""

from recursion.reading import read
from recursion.tower import Tower


def parse(text: str) -> Tower:
    """The tower that ``text`` describes. ValueError, in one line, for every mistake in it."""
    task, levels = read(text)
    return Tower(task, *levels)
