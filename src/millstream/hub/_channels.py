"""Channel names: segments separated by dots. In subscriptions, ``*`` matches one segment and ``>`` the rest.

The rules are those of NATS subjects. Names that start with ``$`` are reserved for the hub. As in MQTT, a leading
wildcard doesn't match them, so a subscription to everything doesn't include messages for a single client.
"""

import re

from millstream._protocol.principal import Principal
from millstream.hub._limits import InvalidName

DEFAULT = "broadcast"
PRESENCE = "$presence."
CLIENT = "$client."

MAX_NAME = 200
MAX_CLIENT_ID = 128
MAX_CLIENT_NAME = 80

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREADABLE = "\ufffd"
"""The replacement character for invalid UTF-8 in queries, paths, and headers. Names that contain it are invalid."""


def check_channel(name: str) -> None:
    """Check a channel name: ``check_channel("orders.7")``.

    Raises:
        InvalidName: The name is empty, too long, or a pattern, or it has blanks, control characters, or an empty
            segment.
    """
    check_pattern(name)
    if is_pattern(name):
        raise InvalidName(f"A wildcard is allowed only in subscriptions: {name!r}.")


def check_pattern(name: str) -> None:
    """Check a channel name or pattern.

    Raises:
        InvalidName: As for `check_channel`, or ``>`` isn't at the end.
    """
    _check_text("channel", name, MAX_NAME)
    segments = name.split(".")
    if "" in segments:
        raise InvalidName(f"A channel must not have an empty segment: {name!r}.")
    if ">" in segments[:-1]:
        raise InvalidName(f"The wildcard '>' must be at the end: {name!r}.")


def check_client_id(client_id: str) -> None:
    """Check a client id. It's used in a channel name and as a path segment.

    Raises:
        InvalidName: The id is invalid or longer than 128 characters.
    """
    _check_text("client id", client_id, MAX_CLIENT_ID)
    if "/" in client_id:
        raise InvalidName("A client id must not contain a slash.")
    check_channel(CLIENT + client_id)


def owner_of(principal: Principal | None) -> str:
    """Return the owner prefix of a principal's clients, or an empty string without a principal."""
    return "" if principal is None else principal.binding.hex()


def owned_id(client_id: str, owner: str) -> str:
    """Return an owner's client id, unique among all owners. Client ids contain no slash."""
    return f"{owner}/{client_id}" if owner else client_id


def check_name(name: str) -> None:
    """Check a client's display name, which can be empty.

    Raises:
        InvalidName: The name is longer than 80 characters or has control characters.
    """
    _check_readable("client's name", name)
    if len(name) > MAX_CLIENT_NAME or _CONTROLS.search(name):
        raise InvalidName(f"A client's name must have at most {MAX_CLIENT_NAME} characters and no control characters.")


def is_pattern(name: str) -> bool:
    """Return whether a valid name has a wildcard."""
    return ("*" in name or ">" in name) and not {"*", ">"}.isdisjoint(name.split("."))


def split_pattern(pattern: str) -> tuple[list[str], bool]:
    """Return the segments of a pattern without a final ``>``, and whether it had one."""
    segments = pattern.split(".")
    rest = segments[-1] == ">"
    return segments[: len(segments) - rest], rest


def matches(pattern: str, channel: str) -> bool:
    """Return whether a pattern matches a channel."""
    if pattern == channel:
        return True
    tokens, segments = pattern.split("."), channel.split(".")
    if channel.startswith("$") and tokens[0] != segments[0]:
        return False
    if tokens[-1] == ">":
        tokens.pop()
        if len(segments) <= len(tokens):
            return False
        del segments[len(tokens) :]
    return len(tokens) == len(segments) and all(map(_matches_segment, tokens, segments))


def _matches_segment(token: str, segment: str) -> bool:
    return token in ("*", segment)


def _check_readable(what: str, text: str) -> None:
    if _UNREADABLE in text:
        raise InvalidName(f"A {what} must be UTF-8, but {text[:80]!r} isn't.")


def _check_text(what: str, text: str, limit: int) -> None:
    if not 1 <= len(text) <= limit:
        raise InvalidName(f"A {what} must have 1 to {limit} characters, not {len(text)}.")
    _check_readable(what, text)
    if not text.isprintable() or " " in text:
        raise InvalidName(f"A {what} must not contain blanks or control characters: {text!r}.")
