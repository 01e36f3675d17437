"""Keys that the tests of tasks draw from."""

import math

from levels import keys


def batch_of(*shape, seed=0):
    """Different keys ``[*shape]``."""
    return keys.split(keys.seed(seed), math.prod(shape)).reshape(shape)


def halves(*shape, seed=0):
    """The halves of different keys, for starts and for problems, as a level splits them."""
    return keys.split(batch_of(*shape, seed=seed), 2).unbind(-1)
