"""Combinations of revisions and transports for behavior tests, minus exclusions with reasons.

A test names the features that it needs; the exclusions list the combinations that lack them. By default, a test runs in
just enough combinations to cover each of its revisions and each of its transports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from millstream.protocol import PER_REQUEST, REVISIONS
from property_settings import NIGHTLY

NEWEST = REVISIONS[-1]
FIRST_PER_REQUEST = PER_REQUEST[0]
"""An exclusion of this revision applies to all revisions without a handshake."""
TRANSPORTS = {
    "memory": "messages in one process",
    "stdio": "lines to a server in a process of its own",
    "lane": "Streamable HTTP through real sockets, the guard and the lane",
    "asgi": "Streamable HTTP through plain ASGI",
    "sessionless": "Streamable HTTP without sessions",
    "json": "Streamable HTTP that never answers a call by a stream",
    "sse": "HTTP+SSE on its two customary paths",
}
STREAMABLE = ("lane", "asgi", "sessionless", "json")


@dataclass(frozen=True)
class Combination:
    """A revision and a transport."""

    revision: str
    transport: str

    def __str__(self) -> str:
        return f"{self.revision}-{self.transport}"

    @property
    def handshake(self) -> bool:
        """True if the revision has a handshake and sessions."""
        return self.revision < FIRST_PER_REQUEST

    @property
    def http(self) -> bool:
        """True for Streamable HTTP."""
        return self.transport in STREAMABLE

    @property
    def events(self) -> bool:
        """True if calls can be resumed by event id."""
        return self.handshake and self.transport in ("lane", "asgi")


ALWAYS = ""
# Need, revision and transport that can't meet it ("*" is any), and the reason.
EXCLUSIONS: tuple[tuple[str, str, str, str], ...] = (
    (ALWAYS, "2024-11-05", "lane", "this revision has no Streamable HTTP"),
    (ALWAYS, "2024-11-05", "asgi", "this revision has no Streamable HTTP"),
    (ALWAYS, "2024-11-05", "sessionless", "this revision has no Streamable HTTP"),
    (ALWAYS, "2024-11-05", "json", "this revision has no Streamable HTTP"),
    (ALWAYS, "2026-07-28", "sse", "HTTP+SSE is a transport of the handshake era"),
    ("notifications", "*", "json", "a reply of one JSON object carries no notification"),
    ("questions", "*", "sessionless", "an answer finds its question by the session"),
    ("questions", "2025-03-26", "json", "a reply of one JSON object carries no question"),
    ("questions", "2025-06-18", "json", "a reply of one JSON object carries no question"),
    ("questions", "2025-11-25", "json", "a reply of one JSON object carries no question"),
    ("session", "*", "sessionless", "nothing is remembered between two requests"),
    ("handshake", "2026-07-28", "*", "this revision has no handshake"),
    ("handshake session", "2026-07-28", "*", "this revision has no sessions"),
    ("handshake session", "*", "sessionless", "sessions are off"),
    ("requests of its own", "2024-11-05", "*", "only 2026-07-28 describes itself in every request"),
    ("requests of its own", "2025-03-26", "*", "only 2026-07-28 describes itself in every request"),
    ("requests of its own", "2025-06-18", "*", "only 2026-07-28 describes itself in every request"),
    ("requests of its own", "2025-11-25", "*", "only 2026-07-28 describes itself in every request"),
    ("our process", "*", "stdio", "the test reaches into the server, which is in another process"),
    ("explicit cancel", "2026-07-28", "lane", "the end of the stream is the cancel"),
    ("explicit cancel", "2026-07-28", "asgi", "the end of the stream is the cancel"),
    ("explicit cancel", "2026-07-28", "json", "the end of the exchange is the cancel"),
    ("explicit cancel", "2026-07-28", "sessionless", "the end of the stream is the cancel"),
    ("explicit cancel", "*", "sessionless", "without a session a notification cannot name another's request"),
    ("streamable http", "*", "memory", "about HTTP"),
    ("streamable http", "*", "stdio", "about HTTP"),
    ("streamable http", "*", "sse", "about Streamable HTTP"),
    ("resumption", "*", "memory", "a connection of this kind is not taken up again"),
    ("resumption", "*", "stdio", "a connection of this kind is not taken up again"),
    ("resumption", "*", "sse", "the end of the stream is the end of the session"),
    ("resumption", "*", "sessionless", "a log belongs to a session"),
    ("resumption", "*", "json", "there is no stream to take up"),
    ("resumption", "2026-07-28", "*", "a broken stream is a canceled call"),
    ("elicitation", "2024-11-05", "*", "this revision has no elicitation"),
    ("elicitation", "2025-03-26", "*", "this revision has no elicitation"),
    ("url elicitation", "2024-11-05", "*", "this revision has no elicitation"),
    ("url elicitation", "2025-03-26", "*", "this revision has no elicitation"),
    ("url elicitation", "2025-06-18", "*", "this revision has forms only"),
    ("batches", "2024-11-05", "*", "this revision does not define batches"),
    ("batches", "2025-06-18", "*", "this revision removed batches"),
    ("batches", "2025-11-25", "*", "this revision has no batches"),
    ("batches", "2026-07-28", "*", "this revision has no batches"),
)

ALL = [Combination(revision, transport) for revision in REVISIONS for transport in TRANSPORTS]


def exclusion_reason(combination: Combination, need: str) -> str:
    """Return why a combination can't meet a need, or an empty string."""
    own = combination.revision if combination.handshake else FIRST_PER_REQUEST
    for name, revision, transport, reason in EXCLUSIONS:
        if name == need and revision in ("*", own) and transport in ("*", combination.transport):
            return reason
    return ""


def choose(*needs: str, since: str = "", until: str = NEWEST, over: tuple[str, ...] = ()) -> list[Combination]:
    """Return the combinations that meet all needs."""
    assert set(needs) <= {name for name, *_ in EXCLUSIONS}, needs
    return [
        each
        for each in ALL
        if not any(exclusion_reason(each, need) for need in (ALWAYS, *needs))
        and since <= each.revision <= until
        and (not over or each.transport in over)
    ]


def in_combinations(*needs: str, since: str = "", until: str = NEWEST, over: tuple[str, ...] = ()) -> Any:
    """Run a test in the combinations that meet its needs.

    Args:
        since: the oldest revision with the behavior.
        until: the newest revision with the behavior.
        over: run only over these transports.
    """
    found = choose(*needs, since=since, until=until, over=over)
    assert found, needs
    found = found if NIGHTLY else pick_covering(found)
    return pytest.mark.parametrize("combination", [mark_param(each, each.transport) for each in found])


def pick_covering(found: list[Combination]) -> list[Combination]:
    """Return a few combinations that cover all given revisions and transports."""
    kept: list[Combination] = []
    for transport in dict.fromkeys(each.transport for each in sorted(found, key=_choices(found))):
        own = [each for each in found if each.transport == transport]
        new = [each for each in own if each.revision not in {other.revision for other in kept}]
        kept.append((new or own)[-1])
    seen = {each.revision for each in kept}
    for each in reversed(found):
        if each.revision not in seen:
            seen.add(each.revision)
            kept.append(each)
    return sorted(kept, key=found.index)


def _choices(found: list[Combination]) -> Callable[[Combination], int]:
    """Return a sort key: the number of revisions of a combination's transport, fewest first."""
    return lambda one: sum(each.transport == one.transport for each in found)


def mark_param(value: Any, transport: str) -> Any:
    """Return a parameter, with the mark `server` if its transport starts a process."""
    marks = [pytest.mark.server] if transport == "stdio" else []
    return pytest.param(value, id=str(value), marks=marks)
