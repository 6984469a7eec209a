"""The newest calls and their callers, for debugging.

The number and length of entries are bounded. Recognized secrets aren't stored: a value is hidden because of its field's
name, and a credential in text because of its form. Arguments are read only for failed or slow calls, or while the page
is open, and only a bounded number per second, so the cost on a busy server is small.

Errors are counted by message, without numbers and ids.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.jsonrpc import MALFORMED, Json, decoder
from millstream._protocol.redaction import redact_foreign
from millstream._recent import Recent
from millstream._server.calls.call import Call, RawParams, value_of
from millstream._server.observability import merge_all
from millstream._server.observability.observer import LISTEN
from millstream._telemetry.logs import redact
from millstream._telemetry.messages import SERVER_FAILURES
from millstream._telemetry.metrics import OTHER
from millstream._text import shorten

MAX_CALLS = 300
MAX_FAILURES = 150
MAX_CLIENTS = 200
MAX_ERRORS = 100
"""Maximum number of distinct error messages. Above it, the least recent one is dropped."""
MAX_ERROR_TOOLS = 8
MAX_ARGUMENTS = 600
"""Maximum characters of a call's arguments. Longer ones are cut."""
MAX_ERROR = 300
MAX_NAME = 120
_KEPT = MAX_NAME + 1
"""Characters of a name to keep, so truncated names can be recognized."""
MAX_READ = 64 * 1024
"""Maximum bytes of arguments or a response to examine."""
READ_EACH_SECOND = 40
SLOW = 0.5
"""Minimum seconds of a slow call."""
WATCH_SECONDS = 10.0
"""Seconds that one read is treated as an open page."""


class RecentCall(Struct, array_like=True, frozen=True, gc=False):
    """One call."""

    at: float
    """End of the call, in seconds since 1970."""
    method: str
    name: str
    outcome: str
    """The error, or an empty string on success."""
    ms: float
    client: str
    caller: str
    """The principal, or the address."""
    transport: str
    revision: str
    bytes: int
    """Size of the answer."""
    arguments: str | None = None
    """The arguments as JSON, or None if they weren't read."""
    error: str = ""
    incident: str = ""
    """The incident number in the log."""


class ClientCalls(Struct, array_like=True):
    """A client's calls."""

    calls: int
    errors: int
    last: float
    """Seconds since 1970."""
    transport: str
    server_errors: int = 0
    """Number of errors that the server caused."""


class ErrorCount(Struct, array_like=True):
    """The number of times an error message occurred."""

    message: str
    """The message with `…` in place of numbers and ids."""
    by_server: bool
    """Whether the server, or a server behind it, caused the error."""
    count: int
    first: float
    """Seconds since 1970."""
    last: float
    example: str
    """The newest message, unchanged."""
    tools: list[str]
    """The first few tools with this error."""
    incident: str = ""
    """The newest incident."""


class WorkerCalls(Struct, array_like=True):
    """A worker's recent calls."""

    calls: list[RecentCall]
    clients: dict[tuple[str, str, str], ClientCalls]
    """Clients by name, version, and revision."""
    errors: list[ErrorCount] = []


class RecentCalls:
    """A bounded record of recent calls."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Create an empty record. `clock` returns seconds since 1970."""
        self._clock = clock
        self._successes: deque[tuple[Any, ...]] = deque(maxlen=MAX_CALLS)
        self._failures: deque[tuple[Any, ...]] = deque(maxlen=MAX_FAILURES)
        """Failed calls, kept separately, so other calls don't displace them."""
        self._errors: Recent[tuple[str, bool], ErrorCount] = Recent(MAX_ERRORS)
        """(message, whether the server caused it) -> count, most recent last. Revisions have different codes for one
        error.
        """
        self._clients: dict[tuple[str, str, str], ClientCalls] = {}
        self._last_read = -WATCH_SECONDS
        self._second = 0
        self._read = 0
        """Number of arguments read in this second."""

    def observe(self, call: Call, seconds: float, answer: bytes) -> None:
        """Record a finished call."""
        method = call.method
        if method == LISTEN:
            return  # The duration depends on the client, so counts and percentiles also omit this method.
        now = self._clock()
        failure, client, revision = call.failure, call.client, call.revision.date
        outcome = "" if failure is None else failure.outcome
        if call.cancelled and not outcome:
            outcome = "cancelled"
        kind = (client.name, client.version, revision)
        seen = self._clients.get(kind)
        if seen is None:
            kind = kind if len(self._clients) < MAX_CLIENTS else (OTHER, "", "")
            seen = self._clients.setdefault(kind, ClientCalls(0, 0, 0.0, ""))
        seen.calls += 1
        seen.last, seen.transport = now, call.transport
        arguments: str | None = None
        if (outcome or seconds >= SLOW or now - self._last_read < WATCH_SECONDS) and self._may_read(int(now)):
            arguments = redact_arguments(call)
        error = incident = ""
        if outcome:
            by_server = outcome in SERVER_FAILURES
            seen.errors += 1
            seen.server_errors += by_server
            error, incident = redact_error(call, answer), "" if failure is None else failure.incident
            text = error or outcome.replace("_", " ")
            error_kind = (_VARIABLE_PARTS.sub("…", text), by_server)
            found = self._errors.get(error_kind) or ErrorCount(*error_kind, 0, now, now, text, [])
            self._errors.keep(error_kind, found)
            found.count += 1
            found.last, found.example, found.incident = now, text, incident
            if (
                len(found.tools) < MAX_ERROR_TOOLS
                and (short := _short(call.item or call.name or method)) not in found.tools
            ):
                found.tools.append(short)
        principal, origin = call.principal, call.origin
        caller = principal.id if principal is not None else "" if origin is None else origin.peer
        # A tuple is cheaper than a Struct, and few entries are ever read. A caller's texts and capabilities can be as
        # long as a message.
        (self._failures if outcome else self._successes).append(
            (
                now,
                method[:_KEPT],
                (call.item or call.name)[:_KEPT],
                outcome,
                seconds * 1000,
                client.name,
                client.version,
                caller[:_KEPT],
                call.transport,
                revision,
                len(answer),
                arguments,
                error,
                incident,
            )
        )

    def _may_read(self, second: int) -> bool:
        if second != self._second:
            self._second, self._read = second, 0
        self._read += 1
        return self._read <= READ_EACH_SECOND

    def look(self) -> WorkerCalls:
        """Return the recorded calls. For the next seconds, the arguments of calls are read, up to a rate."""
        self._last_read = self._clock()
        clients = {(_short(name), _short(version), date): seen for (name, version, date), seen in self._clients.items()}
        calls = [_recent(each) for each in (*self._failures, *self._successes)]
        return WorkerCalls(calls, clients, list(self._errors.values()))


def call_values(workers: Iterable[WorkerCalls]) -> Json:
    """Return JSON values of all workers' newest calls, newest first, their clients, busiest first, and their errors,
    most frequent first.
    """
    every = list(workers)
    calls = sorted((call for each in every for call in each.calls), key=lambda call: call.at, reverse=True)
    failures = [call for call in calls if call.outcome][:MAX_FAILURES]
    fine = [call for call in calls if not call.outcome][: MAX_CALLS - min(len(failures), MAX_CALLS // 2)]
    clients = merge_all((each.clients for each in every), _merge)
    errors = merge_all(({(error.message, error.by_server): error for error in each.errors} for each in every), _add)
    frequent = sorted(errors.values(), key=lambda error: (-error.count, -error.last))[:MAX_ERRORS]
    return {
        "calls": [
            {**msgspec.structs.asdict(call), "by_server": call.outcome in SERVER_FAILURES}
            for call in sorted([*failures, *fine], key=lambda call: call.at, reverse=True)
        ][:MAX_CALLS],
        "clients": [
            {"name": name, "version": version, "revision": revision, **msgspec.structs.asdict(seen)}
            for (name, version, revision), seen in sorted(clients.items(), key=lambda item: -item[1].calls)
        ],
        "errors": [msgspec.structs.asdict(each) for each in frequent],
    }


def _add(one: ErrorCount, other: ErrorCount) -> ErrorCount:
    newer = other if other.last >= one.last else one
    tools = list(dict.fromkeys([*one.tools, *other.tools]))[:MAX_ERROR_TOOLS]
    return msgspec.structs.replace(newer, count=one.count + other.count, first=min(one.first, other.first), tools=tools)


def _merge(one: ClientCalls, other: ClientCalls) -> ClientCalls:
    newer = one if one.last >= other.last else other
    calls, errors = one.calls + other.calls, one.errors + other.errors
    return ClientCalls(calls, errors, newer.last, newer.transport, one.server_errors + other.server_errors)


def _recent(kept: tuple[Any, ...]) -> RecentCall:
    at, method, name, outcome, ms, client, version, caller, *others = kept
    program = f"{client} {version}".strip()
    return RecentCall(
        round(at, 3),
        _short(method),
        _short(name),
        _short(outcome),
        round(ms, 3),
        _short(program),
        _short(caller),
        *others,
    )


def _short(text: str) -> str:
    return redact_foreign(shorten(text, MAX_NAME))


_VARIABLE_PARTS = re.compile(r"\b(?:[0-9a-f]{8,}(?:-[0-9a-f]{4,}){0,8}|\d+(?:[.,:]\d+){0,8})\b", re.IGNORECASE)
"""The variable parts of error messages: numbers, ids, and incidents."""
_LINE_OF_CODE = re.compile(r'^  File "(?:[^"\n]*[/\\])?([^"\n/\\]+)", line (\d+)', re.MULTILINE)


def _headline(text: str) -> str:
    """Return the last line of a traceback and its location, for tracebacks in development mode."""
    if not text.startswith("Traceback ("):
        return text
    places = _LINE_OF_CODE.findall(text)
    raised = next((line for line in reversed(text.splitlines()) if line[:1].strip()), text)
    return f"{raised} ({places[-1][0]}:{places[-1][1]})" if places else raised


class _Block(Struct, gc=False):
    text: str = ""


class _Result(Struct, gc=False):
    content: list[_Block] = []


class _Answer(Struct, gc=False):
    result: _Result | None = None
    content: list[_Block] = []


_decode_answer = decoder(_Answer)


def redact_arguments(call: Call) -> str | None:
    """Return a call's arguments as JSON without secrets, or None if they have no names or are too long."""
    try:
        raw = call.raw_params()
        if len(raw) > MAX_READ:
            return None
        params = msgspec.json.decode(raw, type=RawParams) if raw else RawParams()
        given = value_of(params.arguments if bytes(params.arguments) else params.uri)
        text = "" if given is None else msgspec.json.encode(redact(given), enc_hook=repr).decode()
    except (TypeError, *MALFORMED):
        return None
    return shorten(text, MAX_ARGUMENTS)


def redact_error(call: Call, answer: bytes) -> str:
    """Return the error that the caller received, without secrets."""
    failure = call.failure
    text = ""
    if failure is not None and failure.error is not None:
        text = failure.error.message
    elif answer and len(answer) <= MAX_READ:
        try:
            found = _decode_answer(answer)
        except MALFORMED:
            return ""
        blocks = found.content if found.result is None else found.result.content
        text = blocks[0].text if blocks else ""
    text = _headline(text)
    return redact_foreign(shorten(text, MAX_ERROR))
