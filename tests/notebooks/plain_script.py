"""A script with no cell marks at all."""

import math

print(math.floor(2.5))


def double(x):
    return 2 * x


print(double(21))
