"""
A gallery example
=================

What it shows comes first.
"""

import math

print(math.pi > 3)

###############################################################################
# Then the words go on.
#
# With *emphasis*.

angle = math.radians(180)
print(round(angle, 3))
