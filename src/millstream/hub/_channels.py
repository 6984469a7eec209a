"""Channel names: segments separated by dots; in subscriptions ``*`` stands for one segment, ``>`` for the rest.

The rules are those of NATS subjects. Names that begin with ``$`` belong to the hub, and as in MQTT no wildcard in
the first place reaches them: who listens to everything does not hear what is meant for one client.
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
"""What stands for bytes that were no UTF-8, in queries, paths and headers: a name that has it is not the one meant."""


def check_channel(name: str) -> None:
    """One channel.

    Raises:
        InvalidName: it is empty or too long, has blanks, control characters or an empty segment, or is a pattern.
    """
    check_pattern(name)
    if is_pattern(name):
        raise InvalidName(f"A wildcard is for subscriptions only: {name!r}.")


def check_pattern(name: str) -> None:
    """A channel, or a pattern of channels.

    Raises:
        InvalidName: as `check_channel`, or ``>`` stands before the end.
    """
    _check_text("channel", name, MAX_NAME)
    segments = name.split(".")
    if "" in segments:
        raise InvalidName(f"A channel has no empty segment: {name!r}.")
    if ">" in segments[:-1]:
        raise InvalidName(f"The wildcard '>' stands at the end: {name!r}.")


def check_client_id(client_id: str) -> None:
    """The id of a client, which is the end of the name of its channel and one segment of a path.

    Raises:
        InvalidName: it could not be, or is longer than 128 characters.
    """
    _check_text("client id", client_id, MAX_CLIENT_ID)
    if "/" in client_id:
        raise InvalidName("A client id has no slash: it is one segment of a path.")
    check_channel(CLIENT + client_id)


def owner_of(principal: Principal | None) -> str:
    """What stands for a principal in the names of what it owns."""
    return "" if principal is None else principal.bound.hex()


def owned_id(client_id: str, owner: str) -> str:
    """The client id of one owner among those of all: two people may choose the same. Client ids have no slash."""
    return f"{owner}/{client_id}" if owner else client_id


def check_name(name: str) -> None:
    """The name under which a client appears; it may be empty.

    Raises:
        InvalidName: it is longer than 80 characters or has control characters.
    """
    _check_readable("client's name", name)
    if len(name) > MAX_CLIENT_NAME or _CONTROLS.search(name):
        raise InvalidName(f"A client's name has up to {MAX_CLIENT_NAME} characters, none of them control characters.")


def is_pattern(name: str) -> bool:
    """Whether a valid name has a wildcard."""
    return ("*" in name or ">" in name) and not {"*", ">"}.isdisjoint(name.split("."))


def split_pattern(pattern: str) -> tuple[list[str], bool]:
    """Return the segments of a pattern, and whether it ends with ``>``, which isn't among them."""
    segments = pattern.split(".")
    rest = segments[-1] == ">"
    return segments[: len(segments) - rest], rest


def matches(pattern: str, channel: str) -> bool:
    """Whether a pattern reaches a channel."""
    if pattern == channel:
        return True
    wanted, given = pattern.split("."), channel.split(".")
    if channel.startswith("$") and wanted[0] != given[0]:
        return False
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        del given[len(wanted) :]
    return len(wanted) == len(given) and all(map(_same, wanted, given))


def _same(wanted: str, given: str) -> bool:
    return wanted in ("*", given)


def _check_readable(what: str, text: str) -> None:
    if _UNREADABLE in text:
        raise InvalidName(f"A {what} is UTF-8: {text[:80]!r} has something else in it.")


def _check_text(what: str, text: str, limit: int) -> None:
    if not 1 <= len(text) <= limit:
        raise InvalidName(f"A {what} has 1 to {limit} characters, not {len(text)}.")
    _check_readable(what, text)
    if not text.isprintable() or " " in text:
        raise InvalidName(f"A {what} has no blanks and no control characters: {text!r}.")
