"""Active sessions: those with a message in the last minutes.

A session is a sealed id that any worker verifies, so its end isn't known. It counts as over after `IDLE_SECONDS`
without a message. Its duration is the time from the first to the last message. The table is bounded: when it's full,
the oldest session counts as over.
"""

from collections import Counter
from collections.abc import Callable

from millstream._telemetry.metrics import Labels

IDLE_SECONDS = 300.0
MAX_SESSIONS = 10_000


class ActiveSessions:
    """The times of the first and last message of each session."""

    def __init__(self, ended: Callable[[Labels, float], None], *, max_sessions: int = MAX_SESSIONS) -> None:
        self._ended = ended
        """Called with the labels (transport, revision) and duration in seconds of each session that is over."""
        self._max = max_sessions
        self._seen: dict[str, tuple[float, float, Labels]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, session: str, now: float, transport: str, revision: str) -> None:
        """Record a message of a session."""
        seen = self._seen.get(session)
        if seen is not None:
            self._seen[session] = (seen[0], now, seen[2])
            return
        if len(self._seen) >= self._max:
            self._end(next(iter(self._seen)))
        self._seen[session] = (now, now, (transport, revision))

    def over(self, session: str) -> None:
        """Record the end of a session. Unknown sessions are ignored."""
        if session in self._seen:
            self._end(session)

    def count(self, now: float) -> dict[Labels, int]:
        """Return the number of active sessions by transport and revision."""
        for session in [each for each, seen in self._seen.items() if now - seen[1] > IDLE_SECONDS]:
            self._end(session)
        return dict(Counter(labels for _, _, labels in self._seen.values()))

    def _end(self, session: str) -> None:
        first, last, labels = self._seen.pop(session)
        self._ended(labels, last - first)
