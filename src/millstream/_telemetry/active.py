"""Which sessions are active: those that were heard of in the last minutes.

A session may be nothing but a sealed id that any worker verifies, so nobody hears when one is left alone; what was
not heard of for `IDLE_SECONDS` counts as over, and its duration is the time from the first to the last message. The
table is bounded: when it is full, the session that began first is counted as over.
"""

from collections import defaultdict
from collections.abc import Callable

from millstream._telemetry.metrics import Labels

IDLE_SECONDS = 300.0
MAX_SESSIONS = 10_000


class ActiveSessions:
    """First and last sight of each session."""

    __slots__ = ("_ended", "_max", "_seen")

    def __init__(self, ended: Callable[[Labels, float], None], *, max_sessions: int = MAX_SESSIONS) -> None:
        self._ended = ended
        """Gets the labels (transport, revision) and seconds of each session that is over."""
        self._max = max_sessions
        self._seen: dict[str, tuple[float, float, Labels]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def heard(self, session: str, now: float, transport: str, revision: str) -> None:
        """Note a message of a session."""
        seen = self._seen.get(session)
        if seen is not None:
            self._seen[session] = (seen[0], now, seen[2])
            return
        if len(self._seen) >= self._max:
            self._end(next(iter(self._seen)))
        self._seen[session] = (now, now, (transport, revision))

    def over(self, session: str) -> None:
        """Note that a session was ended; unknown ones are ignored."""
        if session in self._seen:
            self._end(session)

    def count(self, now: float) -> dict[Labels, float]:
        """How many are active, by transport and revision."""
        return {labels: len(names) for labels, names in self.names(now).items()}

    def names(self, now: float) -> dict[Labels, list[str]]:
        """Which ones are active, by transport and revision."""
        for session in [each for each, seen in self._seen.items() if now - seen[1] > IDLE_SECONDS]:
            self._end(session)
        found: defaultdict[Labels, list[str]] = defaultdict(list)
        for session, (_, _, labels) in self._seen.items():
            found[labels].append(session)
        return dict(found)

    def _end(self, session: str) -> None:
        first, last, labels = self._seen.pop(session)
        self._ended(labels, last - first)
