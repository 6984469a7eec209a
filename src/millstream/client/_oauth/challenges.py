"""`WWW-Authenticate`, read in linear time (RFC 9110 §11.6.1).

A hostile server writes this header, and the client reads it on its event loop. So every pattern here is possessive, and
each character is looked at once or twice, whatever the header says.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

MAX_LENGTH: Final = 16 * 1024
"""A longer header counts as empty."""
_GAP = re.compile(r"[\s,]*+")
_NAME = re.compile(r'[^\s,="]++')
_EQUALS = re.compile(r"\s*+=\s*+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"?+')
_PLAIN = re.compile(r"[^\s,]*+")


class Challenges(Struct, frozen=True):
    """The challenges of one header."""

    schemes: frozenset[str]
    """In lower case."""
    parameters: Mapping[str, str]
    """Of all schemes together, names in lower case; the last of a name counts."""


def read_challenges(header: str) -> Challenges:
    """Return the schemes and parameters of a `WWW-Authenticate` header; a malformed part is skipped."""
    schemes, parameters = set[str](), dict[str, str]()
    position, end = 0, len(header)
    while len(header) <= MAX_LENGTH and position < end:
        gap = _GAP.match(header, position)
        first = position == 0 or (gap is not None and "," in gap[0])
        position = gap.end() if gap is not None else position
        name = _NAME.match(header, position)
        if name is None:  # a quotation mark or an equals sign in a place of no meaning
            stray = _QUOTED.match(header, position)
            position = position + 1 if stray is None else stray.end()
            continue
        equals = _EQUALS.match(header, name.end())
        if equals is None:
            if first:  # otherwise it's the credentials of the scheme before (token68)
                schemes.add(name[0].lower())
            position = name.end()
            continue
        value = _QUOTED.match(header, equals.end()) or _PLAIN.match(header, equals.end())
        assert value is not None  # noqa: S101  the plain pattern matches anything
        parameters[name[0].lower()] = value[1] if value.re is _QUOTED else value[0]
        position = value.end()
    return Challenges(frozenset(schemes), parameters)
