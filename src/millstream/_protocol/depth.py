"""Bounds on JSON before it's parsed: nesting depth, and the number of arrays, objects, members, and long numbers.

`exceeds_limits` protects recursive decoders and the event loop. A million empty arrays fit into 4 MiB and take half a
second to build, because the garbage collector walks them repeatedly. Half a million numbers such as ``1.5e300`` take
four seconds. The function doesn't validate: if the text isn't JSON, the result is arbitrary, and the decoder rejects
the text afterward. Each step is one linear pass, without a loop in Python.
"""

import re
from itertools import accumulate

MAX_NESTING = 64
MAX_CONTAINERS = 100_000
"""Maximum number of arrays and objects in one message. Building this many takes about 20 ms."""

MAX_MEMBERS = 50_000
"""Maximum number of members in all objects of a value that is read into a dict. This many take about 20 ms."""

MAX_LONG_NUMBERS = 5_000
"""Maximum number of numbers in one message that take the decoder's slow path. This many take about 40 ms."""

_SHORT = 4096
_FEW_NUMBERS = MAX_LONG_NUMBERS * len(b"1e200,")
"""A shorter body can't have too many long numbers."""
_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SMALL_E = bytes.maketrans(b"E", b"e")
_SIGNS = b".+-"
_LARGE_EXPONENT = re.compile(rb"e0*[23]\d\d")
"""For text without `_SIGNS`. Numbers near the limits of a float always take the decoder's slow path."""
_OTHERS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_NOT_COMMAS = bytes(byte for byte in range(256) if byte not in b'",')
_NOT_COLONS = bytes(byte for byte in range(256) if byte not in b'":')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as signed bytes: +1 opens, -1 closes."""


def exceeds_limits(body: bytes, max_depth: int = MAX_NESTING) -> str:
    """Return why `body` must not be decoded, or an empty string. Brackets inside strings don't count.

    A body with at most `max_depth` opening brackets costs one count of them. Nearly all bodies are like this.
    """
    if len(body) > _SHORT:
        if len(body) > _FEW_NUMBERS and _too_many_long_numbers(body):
            return (
                f"more than {MAX_LONG_NUMBERS:,} numbers with very many digits or very large exponents; "
                "round them, or send several messages"
            )
        brackets = body.count(b"{") + body.count(b"[")
    else:
        # Comparing lengths after `replace` is twice as fast as `count` when there are few brackets.
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
    """Return whether the decoder's slow path would run: a large exponent, or a smaller one after more than 64 bits of
    digits.
    """
    numbers = text.translate(_SMALL_E, _SIGNS)
    zeros = numbers.translate(_DIGITS_TO_ZEROS)
    if zeros.count(b"0e00") <= MAX_LONG_NUMBERS:
        return False
    large = _LARGE_EXPONENT.subn(b"", numbers, MAX_LONG_NUMBERS + 1)[1] if b"0e000" in zeros else 0
    return large + zeros.count(b"0" * 20 + b"e00") > MAX_LONG_NUMBERS


def too_many_members(value: bytes) -> bool:
    """Return whether the objects of a value have more members than `MAX_MEMBERS`."""
    return value.count(b":") > MAX_MEMBERS and len(_outside_strings(value, None, _NOT_COLONS)) > MAX_MEMBERS


def too_many_values(value: bytes, most: int) -> bool:
    """Return whether an array or object has more than `most` values, judged by commas outside strings."""
    return value.count(b",") > most and len(_outside_strings(value, None, _NOT_COMMAS)) > most


def _outside_strings(body: bytes, table: bytes | None, dropped: bytes) -> bytes:
    """Return the part of `body` outside strings, without the `dropped` bytes, which must not include quotes."""
    # After pairs of backslashes are gone, a backslash before a quote escapes it.
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # With their contents removed, most strings are two adjacent quotes. Removing adjacent pairs keeps the parity of
    # quotes before each remaining byte, which separates inside from outside.
    marks = text.translate(table, dropped).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])
