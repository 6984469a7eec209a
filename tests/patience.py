"""How long a test waits for what must happen: the one bound of every wait, in every test.

It's a net that catches what hangs, never a measure: a machine that is five times slower than yours, or one that stands
still for some seconds (`make busy`), must see the same result.
"""

WAIT = 120.0
