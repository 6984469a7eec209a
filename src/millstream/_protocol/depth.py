"""How deep JSON nests, and how many arrays, objects, members and long numbers it holds, without parsing it.

`exceeds_limits` protects recursive decoders and the event loop. A value of a million empty arrays fits into 4 MiB and
takes half a second to build, because the garbage collector walks it repeatedly. Half a million numbers such as
``1.5e300`` take four seconds. The function doesn't validate: for text that isn't JSON its result is arbitrary, and the
decoder refuses the text afterward.
Nothing in it loops in Python, and each step is one linear pass.
"""

import re
from itertools import accumulate

MAX_CONTAINERS = 100_000
"""Arrays and objects in one message. So many take some 20 ms to build."""

MAX_MEMBERS = 50_000
"""Members of all objects in a value that is read into a dict, one by one. So many take some 20 ms."""

MAX_LONG_NUMBERS = 5_000
"""Numbers in one message that a decoder reads in its slow way. So many take some 40 ms."""

_SHORT = 4096
_FEW_NUMBERS = MAX_LONG_NUMBERS * len(b"1e200,")
"""Bytes that are too few for so many."""
_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SMALL_E = bytes.maketrans(b"E", b"e")
_SIGNS = b".+-"
_LARGE_EXPONENT = re.compile(rb"e0*[23]\d\d")
"""In text without `_SIGNS`: near the ends of what a float holds every number is read in the slow way."""
_OTHERS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_NOT_COMMAS = bytes(byte for byte in range(256) if byte not in b'",')
_NOT_COLONS = bytes(byte for byte in range(256) if byte not in b'":')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as signed bytes: +1 opens, -1 closes."""


def exceeds_limits(body: bytes, max_depth: int = 64) -> str:
    """Why `body` is more than may be decoded, or nothing. Brackets inside strings do not count.

    Bodies with at most `max_depth` opening brackets, nearly all, cost one count of these.
    """
    if len(body) > _SHORT:
        if len(body) > _FEW_NUMBERS and _too_many_long_numbers(body):
            return (
                f"more than {MAX_LONG_NUMBERS:,} numbers with very many digits or very large exponents: "
                "round them, or send them in several messages"
            )
        brackets = body.count(b"{") + body.count(b"[")
    else:
        # What `replace` leaves out is counted twice as fast as by `count`, while there is little of it.
        brackets = len(body) - len(body.replace(b"{", b"").replace(b"[", b""))
    if brackets <= max_depth:
        return ""
    outside = _outside_strings(body, _STEPS, _OTHERS)
    if outside.count(b"\x01") > MAX_CONTAINERS:
        return f"more than {MAX_CONTAINERS:,} arrays and objects"
    if max(accumulate(memoryview(outside).cast("b")), default=0) > max_depth:
        return f"nested deeper than {max_depth}"
    return ""


def _too_many_long_numbers(body: bytes) -> bool:
    if body.count(b"e") + body.count(b"E") <= MAX_LONG_NUMBERS:
        return False
    return _is_slow(body) and _is_slow(_outside_strings(body, None, b""))


def _is_slow(text: bytes) -> bool:
    """Whether a decoder would be slow: at any large exponent, and at a smaller one behind more digits than 64 bits."""
    numbers = text.translate(_SMALL_E, _SIGNS)
    zeros = numbers.translate(_DIGITS_TO_ZEROS)
    if zeros.count(b"0e00") <= MAX_LONG_NUMBERS:
        return False
    large = _LARGE_EXPONENT.subn(b"", numbers, MAX_LONG_NUMBERS + 1)[1] if b"0e000" in zeros else 0
    return large + zeros.count(b"0" * 20 + b"e00") > MAX_LONG_NUMBERS


def too_many_members(value: bytes) -> bool:
    """Whether the objects of a value have more members than may be read one by one."""
    return value.count(b":") > MAX_MEMBERS and len(_outside_strings(value, None, _NOT_COLONS)) > MAX_MEMBERS


def too_many_values(value: bytes, most: int) -> bool:
    """Whether a value is of more values than `most`, by its commas; those inside strings do not count."""
    return value.count(b",") > most and len(_outside_strings(value, None, _NOT_COMMAS)) > most


def _outside_strings(body: bytes, table: bytes | None, dropped: bytes) -> bytes:
    """What of `body` stands outside strings, without the bytes that are dropped; quotes must not be among them."""
    # Taking off pairs of backslashes first leaves before a quote only the backslash that escapes it.
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Without what stands between them, most strings are two neighboring quotes. Removing neighbors keeps the parity
    # of the quotes before each of the rest, which tells inside from outside.
    marks = text.translate(table, dropped).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])
