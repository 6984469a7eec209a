"""Refusal of calls that would probably get no response."""

import math
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from msgspec import Struct

from millstream._protocol.principal import Share
from millstream._server.calls.call import Call
from millstream._tasks import retry_delay
from millstream._text import pluralize
from millstream._troubles import LogOnce
from millstream.client import ClientError, ConnectFailed, TargetError, TlsFailed
from millstream.client._endpoint import try_again
from millstream.protocol import Json

FAILURES = 5
"""Consecutive failures of a caller's calls to a tool before the breaker reacts."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MAX_DURATIONS = 512
"""Maximum recent response times kept for the quantiles."""
_MAX_RECORDS = 1000
"""Maximum callers and tools with failures, half of them for one caller."""
_MAX_FAILING = 100
"""Maximum tools with failures that aren't their callers'."""
_MAX_AGE = 600.0
"""Seconds after which the failures of a caller may be forgotten."""
_MAX_NAME = 200
"""Maximum characters of a method, which a relay passes on whatever it is, and of a name to remember."""


_LATER = "Try again in a minute. If it keeps failing, its operator has to restart it."
_TEMPORARY = frozenset({socket.EAI_AGAIN})
"""Errors of a name server that isn't responding."""


class Outage(NamedTuple):
    """Why an upstream can't be used, for callers. It doesn't reveal addresses."""

    what: str
    """What it does, or lacks."""
    remedy: str
    """Who can change that, or when to try again."""

    @property
    def refusal(self) -> str:
        """The reason for not sending a call, as the end of a sentence."""
        return f"{self.what}, so the call wasn't sent. {self.remedy}"


def find_outage(error: Exception, *, is_process: bool) -> Outage:
    """Return why an upstream can't be used and who can change that.

    Args:
        error: The reason why the gateway can't reach it.
        is_process: Whether it's a command.
    """
    cause = error.__cause__
    if isinstance(error, ClientError) and error.status:
        return Outage(f"responded with status {error.status}", try_again(error) or _LATER)
    if isinstance(error, TlsFailed):
        return Outage("has no TLS certificate that this gateway trusts", "Its operator has to correct that.")
    if isinstance(cause, socket.gaierror) and cause.errno not in _TEMPORARY:
        return Outage("has a host name that can't be resolved", "The gateway's operator has to correct its URL.")
    if isinstance(error, TargetError):
        return Outage("can't be started", "Its operator has to correct the command.")
    if is_process:
        return Outage("can't be started", "The gateway tries again by itself. Its log has the reason.")
    return Outage("can't be reached" if isinstance(error, ConnectFailed) else "isn't responding", _LATER)


class CallerFailures(Struct):
    """Consecutive failures of one caller's calls to one tool."""

    count: int = 0
    failed_at: float = 0.0
    retry_at: float = 0.0
    """When the caller can call the tool again."""


class Breaker:
    """Refuses calls that would probably get no response, so that callers fail fast.

    Failures count against the caller and tool: after `FAILURES` failures, its calls to the tool are rejected for a
    while, which doubles each time. Several callers may be one person, so their timeouts alone don't block a tool for
    others. Refused connections, and failures of the gateway's own requests, open the breaker for all callers.
    """

    is_open: bool = False
    """Whether all calls are rejected, unless the upstream can be reached again when one arrives."""
    outage: Outage | None = None
    """The reason while it's open."""
    response_count: int = 0
    """Number of calls with a response."""
    failure_count: int = 0
    """Number of calls without a usable response."""
    refused_count: int = 0
    """Number of calls that weren't sent."""

    def __init__(self, trouble: LogOnce, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.records: dict[tuple[str, str], dict[tuple[str, str], CallerFailures]] = {}
        """Method and name -> owner and session -> failures. Empty as long as all calls succeed."""
        self._failing: set[tuple[str, str]] = set()
        """Methods and names in `trouble`."""
        self.trouble = trouble
        """Calls that fail for a reason that isn't the caller's."""
        self._share = Share(_MAX_RECORDS)
        self._durations: deque[float] = deque(maxlen=_MAX_DURATIONS)

    def refusal(self, call: Call, method: str, name: str) -> str:
        """Return the reason for not sending a call, as the end of a sentence, or an empty string to send it."""
        text, callers = "", self.records.get(_key(method, name))
        if self.is_open and self.outage is not None:
            text = self.outage.refusal
        elif callers:
            now, own = self._clock(), callers.get(_caller(call))
            if own is not None and own.retry_at > now:
                text = (
                    f"failed your last {own.count} calls to {call.name!r:.200}, so this one wasn't sent. Try again in "
                    f"{pluralize(math.ceil(own.retry_at - now), 'second')}."
                )
        self.refused_count += text != ""
        return text

    def begin_trouble(self, call: Call, reason: str) -> None:
        """Record a call that failed for a reason that isn't the caller's.

        The trouble ends when each failed tool has worked again, or none has failed for an hour.
        """
        key = _key(call.method, call.name)
        if not self.trouble.lasts:  # it may have ended by itself
            self._failing.clear()
        if len(self._failing) < _MAX_FAILING:
            self._failing.add(key)
        name = f" {key[1]}" if call.method == "tools/call" else ""  # a URI may identify a person
        self.trouble.fail(f"{key[0]}{name}: {reason}")

    def succeed(self, seconds: float, call: Call, method: str, name: str) -> None:
        """Record a call with a response, including errors."""
        self.respond(seconds, call, method, name)
        if self._failing:
            self._failing.discard(_key(call.method, call.name))
            if not self._failing:
                self.trouble.end()

    def respond(self, seconds: float, call: Call, method: str, name: str) -> None:
        """Record a call with a response, which may have rejected the credentials."""
        self._durations.append(seconds)
        self.response_count += 1
        if self.records:
            self._clear(_caller(call), _key(method, name))

    def _clear(self, caller: tuple[str, str], key: tuple[str, str]) -> None:
        callers = self.records.get(key, {})
        if callers.pop(caller, None) is not None:
            self._share.leave(caller[0])
        if not callers:
            self.records.pop(key, None)

    def fail(self, call: Call, method: str, name: str) -> None:
        """Record a call without a usable response."""
        self.failure_count += 1
        now, caller, key = self._clock(), _caller(call), _key(method, name)
        found = self.records.get(key, {}).get(caller)
        if found is None:
            if not self._share.take(caller[0]):
                self._forget(now - _MAX_AGE)
                if not self._share.take(caller[0]):
                    return
            found = self.records.setdefault(key, {})[caller] = CallerFailures()
        found.failed_at = now
        if found.retry_at > now:  # the call was sent before
            return
        found.count += 1
        if found.count >= FAILURES:
            found.retry_at = now + retry_delay(found.count - FAILURES, _FIRST_PAUSE, _LONGEST_PAUSE)

    def _forget(self, before: float) -> None:
        """Forget the failures before a time."""
        for key, callers in list(self.records.items()):
            for caller, each in list(callers.items()):
                if each.failed_at < before:
                    self._clear(caller, key)

    def open(self, outage: Outage) -> None:
        """Reject all calls, and forget callers' failures, which the upstream caused.

        Args:
            outage: The reason.
        """
        self.is_open, self.outage = True, outage
        self.records.clear()
        self._share = Share(_MAX_RECORDS)

    def describe(self) -> Json:
        """Return call counts, and quantiles of the last `_MAX_DURATIONS` response times in milliseconds."""
        figures: Json = {
            "breaker": "open" if self.is_open else "closed",
            "calls": self.response_count + self.failure_count,
            "unanswered": self.failure_count,
            "refused": self.refused_count,
        }
        if self._durations:
            ordered = sorted(self._durations)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[name] = round(ordered[int(len(ordered) * share)] * 1000, 3)
        return figures


def _key(method: str, name: str) -> tuple[str, str]:
    return method[:_MAX_NAME], name[:_MAX_NAME]


def _caller(call: Call) -> tuple[str, str]:
    """Return the owner of a call, and its session if callers don't sign in, because they may share an address."""
    return call.owner, "" if call.principal is not None or call.session is None else call.session.id
