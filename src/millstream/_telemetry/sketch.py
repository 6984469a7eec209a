"""How many different things several processes have seen, without telling each other which.

Linear counting (Whang, Vander-Zanden and Taylor, 1990): each thing sets one bit of a map by its hash. The share of bits
that are still zero says how many there were; the maps of several processes are put together by "or", so that what two
of them saw counts once. With 16,384 bits the error is about 1 % for up to 20,000.
"""

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

BITS: Final = 16_384


def sketch(names: Iterable[str]) -> bytes:
    """The map of some names: 2 KiB."""
    bits = bytearray(BITS // 8)
    for name in names:
        place = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") % BITS
        bits[place >> 3] |= 1 << (place & 7)
    return bytes(bits)


def union(one: bytes, other: bytes) -> bytes:
    """The map of what is in either."""
    return (int.from_bytes(one, "big") | int.from_bytes(other, "big")).to_bytes(len(one), "big")


def size(bits: bytes) -> int:
    """How many different names there were, nearly."""
    total = len(bits) * 8
    zero = total - int.from_bytes(bits, "big").bit_count()
    return round(total * math.log(total / max(zero, 1)))
