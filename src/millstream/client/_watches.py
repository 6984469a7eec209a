"""Subscriptions to changes at a server, in both eras.

See https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions. Broken
subscriptions and watched connections of the handshake era are reopened with backoff, followed by a change of the kind
`again`: changes may have been missed. If the server permanently rejects the subscription, the watch ends with an error.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, NoReturn, Self, TypeVar

from msgspec import Struct, field

from millstream._copies import NotCopyable
from millstream._override import override
from millstream._protocol.errors import INTERNAL_ERROR, OVERLOADED, RATE_LIMITED, SERVER_ERROR
from millstream._protocol.jsonrpc import encode
from millstream._protocol.notifications import (
    ResourceRequestParams,
    SubscriptionFilter,
    SubscriptionsListenRequestParams,
)
from millstream._protocol.uri import normalize_uri
from millstream._tasks import Tasks, cancel_all, retry_delay
from millstream.client._errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    ServerError,
    client_logger,
)
from millstream.client._requests import Connection, RawRequest, Requests
from millstream.client._server_messages import Change
from millstream.client._transports import StreamReopened, Transport

_logger = client_logger(__name__)
_MAX_UNREAD = 10_000
"""Maximum unread changes. Beyond it, a single change of the kind `again` replaces them."""
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_STABLE_SECONDS = 5.0
"""Seconds after which the end of a subscription isn't a failure to reopen it."""
_TEMPORARY_ERRORS = frozenset({RATE_LIMITED, OVERLOADED, SERVER_ERROR, INTERNAL_ERROR})
"""Error codes of temporary failures."""
_CONFIRM_TIMEOUT = 60.0
"""Seconds for the server to confirm a subscription."""


T = TypeVar("T")


class ClientSubscription(Struct, Generic[T], eq=False, kw_only=True):
    """The unread changes that a server reported, and the task that keeps the subscription open."""

    _waiting: deque[T] = field(default_factory=deque[T])
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _fault: ClientError | None = None
    _agreed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the server has confirmed the subscription."""
    _failures: int = 0
    """Consecutive attempts that failed or didn't last. If it isn't 0, reports may have been missed."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._waiting:
            if self._fault is not None:
                raise self._fault
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def fail(self, fault: ClientError) -> None:
        """End the subscription with an error, when everything is read."""
        self._fault = self._fault or fault
        self._changed.set()

    def _append(self, item: T) -> None:
        self._waiting.append(item)
        self._changed.set()

    async def _start(self, tasks: Tasks) -> None:
        """Open the subscription in one of the client's tasks, and wait until the server confirms it."""
        self._task = tasks.spawn(self._keep_open())
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await self._agreed.wait()
        except TimeoutError as exc:
            raise RequestTimeout(
                f"The server didn't confirm the subscription within {_CONFIRM_TIMEOUT:g} seconds."
            ) from exc
        if self._fault is not None:
            raise self._fault

    async def _keep_open(self) -> None:
        """Reopen the subscription with backoff. End it if the first attempt fails, or on a permanent error."""
        now = asyncio.get_running_loop().time
        try:
            while self._fault is None:
                began = now()
                try:
                    await self._listen()
                except ClientError as exc:
                    if not is_temporary(exc) or not (self._agreed.is_set() or self._failures):
                        self.fail(exc)
                        return
                except Exception as exc:
                    _logger.exception("A subscription ended with an unexpected error")
                    self.fail(ClientError(f"The subscription ended: {exc!r}"))
                    return
                self._agreed.clear()
                if now() - began > _STABLE_SECONDS:
                    self._failures = 0
                await asyncio.sleep(retry_pause(self._failures))
                self._failures += 1
        finally:
            self.fail(ConnectionLost("The client was closed."))
            self._agreed.set()  # `_start` reports the error

    async def _listen(self) -> NoReturn:
        """Open the subscription once.

        Raises:
            ClientError: It has ended.
        """
        raise NotImplementedError


class Watch(ClientSubscription[Change], eq=False, kw_only=True):
    """Keeps a connection of the handshake era open."""

    _requests: Requests
    _interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the handshake-era connection was lost, or the watch has failed."""

    async def run(self) -> None:
        """Reopen lost connections until one is permanently rejected."""
        self._begin()
        try:
            await self._keep_open()
        finally:
            self._end()
        _logger.warning("The subscription to changes on the server ended. %s", self._fault)

    def _begin(self) -> None:
        incoming = self._requests.incoming
        incoming.interruption_callbacks.add(self._on_interruption)
        incoming.subscribed.set()

    def _end(self) -> None:
        incoming = self._requests.incoming
        incoming.interruption_callbacks.discard(self._on_interruption)
        if not incoming.interruption_callbacks:
            incoming.subscribed.clear()

    def _on_interruption(self, transport: Transport, fault: ClientError) -> None:
        last = self._requests.last
        if last is None or last.transport is not transport:
            return  # never opened
        if not isinstance(fault, ConnectionLost):
            self.fail(fault)
        elif last.revision.handshake:
            self._interrupted.set()

    @override
    def fail(self, fault: ClientError) -> None:
        """End the watch with an error, which its reader gets after all changes."""
        super().fail(fault)
        self._end()
        self._interrupted.set()

    @override
    async def _listen(self) -> NoReturn:
        connection = await self._requests.connect()
        self._interrupted.clear()
        await self._subscribe(connection)
        self._agreed.set()
        await self._interrupted.wait()
        raise ConnectionLost("The connection was lost.")

    async def _subscribe(self, connection: Connection) -> None:
        """Subscribe to changes on a connection."""


class Changes(Watch, NotCopyable, eq=False):
    """A subscription to changes: ``async with client.watch(…) as changes: async for change in changes: …``.

    While it's open, a broken connection or session is reopened, followed by a change of the kind `again`. If the server
    permanently rejects the subscription, the loop raises a `ClientError`.
    """

    _filter: SubscriptionFilter
    _subscription: int = 0
    """Id of the subscription, or 0 in the handshake era."""
    _has_changes: bool = True
    """Whether the server has confirmed any of the changes."""

    async def __aenter__(self) -> Self:
        """Subscribe. No later change is missed.

        Raises:
            ClientError: The server rejected the request.
        """
        self._requests.incoming.watchers.add(self._on_change)
        self._begin()
        try:
            await self._start(self._requests.incoming.background)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._requests.incoming.watchers.discard(self._on_change)
        self._end()
        await cancel_all(self._task)
        connection = self._requests.connection
        if connection is not None and connection.revision.handshake and not connection.transport.lost:
            with contextlib.suppress(ClientError):
                for ask in self._asks("resources/unsubscribe"):
                    await self._requests.send(connection, ask)

    @override
    def _on_interruption(self, transport: Transport, fault: ClientError) -> None:
        if isinstance(fault, StreamReopened) and not self._filter.resource_subscriptions:
            return
        super()._on_interruption(transport, fault)

    def _on_change(self, change: Change, subscription: Any) -> None:
        wanted = self._filter
        if change.kind == "again":
            if not self._agreed.is_set():  # reported when the subscription is active again
                return
        elif self._subscription:
            if subscription != self._subscription:
                return
        elif change.kind == "resource":
            normal = normalize_uri(change.uri)  # servers may use another spelling
            if not any(normal.startswith(normalize_uri(uri)) for uri in wanted.resource_subscriptions):
                return
        elif not getattr(wanted, f"{change.kind}_list_changed", True):
            return
        self._append(change)

    @override
    def _append(self, item: Change) -> None:
        if len(self._waiting) >= _MAX_UNREAD:
            self._waiting.clear()
            item = Change("again")
        super()._append(item)

    def _asks(self, method: str) -> Iterator[RawRequest]:
        for uri in self._filter.resource_subscriptions:
            yield RawRequest(method=method, params=encode(ResourceRequestParams(uri)), repeatable=True)

    def _acknowledge(self, has_changes: bool) -> None:
        self._has_changes = has_changes
        if self._failures and not self._agreed.is_set():
            self._append(Change("again"))
        self._agreed.set()

    @override
    async def _subscribe(self, connection: Connection) -> None:
        requests, self._subscription = self._requests, 0
        if connection.revision.handshake:
            for ask in self._asks("resources/subscribe"):
                await requests.ask(ask)
            self._acknowledge(True)
            return
        self._subscription = subscription = next(requests.ids)
        requests.incoming.acknowledgments[subscription] = self._acknowledge
        params = encode(SubscriptionsListenRequestParams(self._filter))
        ask = RawRequest(method="subscriptions/listen", params=params, id=subscription, timeout=math.inf)
        try:
            await requests.send(connection, ask)
        finally:
            del requests.incoming.acknowledgments[subscription]
        if not self._has_changes and self._filter.resource_subscriptions:  # a list may get its first item later
            raise ClientError("The server doesn't report these changes, at least not to these credentials.")
        raise ConnectionLost("The server ended the subscription.")


class WatchingRequests(Requests, NotCopyable, eq=False, kw_only=True):
    """Sends requests: ``await conversation.requests.ask(RawRequest(method="ping"))``.

    New connections get the session's log level, and the watchers of a lost one are notified.
    """

    log_level: str
    """Minimum severity of log messages. Empty leaves it to the server."""

    @override
    async def restore(self, connection: Connection, before: Connection | None) -> None:
        """Report that changes may have been missed, and set the log level."""
        if before is not None and before.revision.handshake:
            self.incoming.report_change(Change("again"))
        if connection.revision.handshake and self.log_level and "logging" in connection.capabilities:
            ask = RawRequest(method="logging/setLevel", params=encode({"level": self.log_level}))
            await self.send(connection, ask)


def is_temporary(fault: ClientError) -> bool:
    """Return whether a later attempt may succeed."""
    if isinstance(fault, ServerError):
        return fault.code in _TEMPORARY_ERRORS
    return isinstance(fault, (ConnectFailed, ConnectionLost, RequestTimeout))


def retry_pause(failures: int) -> float:
    """Return the seconds until the next attempt, with jitter."""
    return retry_delay(failures, _FIRST_WAIT, _LONGEST_WAIT)
