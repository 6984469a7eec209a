"""A linear-time parser for `WWW-Authenticate` (RFC 9110 §11.6.1).

A hostile server can write this header, and the client parses it on its event loop. Every pattern is possessive, so each
character is examined at most twice.
"""

import re
from collections.abc import Mapping

from msgspec import Struct

MAX_LENGTH = 16 * 1024
"""Maximum length. Longer headers are ignored."""
_GAP = re.compile(r"[\s,]*+")
_NAME = re.compile(r'[^\s,="]++')
_EQUALS = re.compile(r"\s*+=\s*+")
_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"?+')
_PLAIN = re.compile(r"[^\s,]*+")


class ParsedChallenges(Struct, frozen=True):
    """The challenges of one header."""

    schemes: frozenset[str]
    """Scheme names, in lower case."""
    parameters: Mapping[str, str]
    """Parameters of all schemes, with names in lower case. The last of repeated parameters wins."""


def read_challenges(header: str) -> ParsedChallenges:
    """Parse a `WWW-Authenticate` header, skipping malformed parts."""
    schemes, parameters = set[str](), dict[str, str]()
    position, end = 0, len(header)
    while len(header) <= MAX_LENGTH and position < end:
        gap = _GAP.match(header, position)
        first = position == 0 or (gap is not None and "," in gap[0])
        position = gap.end() if gap is not None else position
        name = _NAME.match(header, position)
        if name is None:  # a stray quotation mark or equals sign
            stray = _QUOTED_STRING.match(header, position)
            position = position + 1 if stray is None else stray.end()
            continue
        equals = _EQUALS.match(header, name.end())
        if equals is None:
            if first:  # otherwise it's the token68 of the previous scheme
                schemes.add(name[0].lower())
            position = name.end()
            continue
        value = _QUOTED_STRING.match(header, equals.end()) or _PLAIN.match(header, equals.end())
        assert value is not None  # noqa: S101  the plain pattern matches anything
        parameters[name[0].lower()] = value[1] if value.re is _QUOTED_STRING else value[0]
        position = value.end()
    return ParsedChallenges(frozenset(schemes), parameters)
