"""How deep JSON nests, without parsing it.

`too_deep` guards recursive decoders. It does not validate: of text that is not JSON it says something, and the
decoder refuses that text anyway. Nothing in it loops in Python, and each step is one linear pass.
"""

from itertools import accumulate

_OTHERS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as signed bytes: +1 opens, -1 closes."""


def too_deep(body: bytes, limit: int = 64) -> bool:
    """Whether arrays and objects of `body` nest more than `limit` deep. Brackets inside strings do not count.

    Bodies with at most `limit` opening brackets, nearly all, cost one count of these.
    """
    # What `replace` leaves out is counted twice as fast as by `count`.
    if len(body) - len(body.replace(b"{", b"").replace(b"[", b"")) <= limit:
        return False
    # Taking off pairs of backslashes first leaves before a quote only the backslash that escapes it.
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Without what stands between them, most strings are two neighbouring quotes. Removing neighbours keeps the parity
    # of the quotes before each bracket, which tells inside from outside.
    marks = text.translate(_STEPS, _OTHERS).replace(b'""', b"")
    outside = b"".join(marks.split(b'"')[::2])
    return max(accumulate(memoryview(outside).cast("b")), default=0) > limit
