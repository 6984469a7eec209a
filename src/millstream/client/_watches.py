"""Subscriptions to changes at a server, in both eras.

See https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions. Broken
subscriptions and watched connections of the handshake era are reopened with backoff, followed by a change of the kind
`again`: changes may have been missed. If the server permanently rejects the subscription, the watch ends with an error.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, NoReturn, Self, TypeVar

from msgspec import Struct, field

from millstream._override import override
from millstream._protocol.errors import INTERNAL_ERROR, OVERLOADED, RATE_LIMITED, SERVER_ERROR
from millstream._protocol.jsonrpc import encode
from millstream._protocol.notifications import (
    ResourceRequestParams,
    SubscriptionFilter,
    SubscriptionsListenRequestParams,
)
from millstream._protocol.uri import normalize_uri
from millstream._tasks import cancel_all, retry_delay
from millstream.client._errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    ServerError,
)
from millstream.client._requests import Connection, RawRequest, Requests
from millstream.client._server_messages import Change
from millstream.client._transports import Transport

_logger = logging.getLogger(__name__)
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

    async def _start(self) -> None:
        """Open the subscription and wait until the server confirms it."""
        self._task = asyncio.create_task(self._keep_open())
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
                self._agreed.clear()
                try:
                    await self._listen()
                except ClientError as exc:
                    if not is_temporary(exc) or not (self._agreed.is_set() or self._failures):
                        self.fail(exc)
                        return
                if now() - began > _STABLE_SECONDS:
                    self._failures = 0
                await asyncio.sleep(retry_pause(self._failures))
                self._failures += 1
        finally:
            self._agreed.set()  # `_start` reports the error

    async def _listen(self) -> NoReturn:
        """Open the subscription once.

        Raises:
            ClientError: It has ended.
        """
        raise NotImplementedError


class Changes(ClientSubscription[Change], eq=False):
    """A subscription to changes: ``async with client.watch(…) as changes: async for change in changes: …``.

    While it's open, a broken connection or session is reopened, followed by a change of the kind `again`. If the server
    permanently rejects the subscription, the loop raises a `ClientError`.
    """

    _requests: "WatchingRequests"
    _filter: SubscriptionFilter
    _subscription: int = 0
    _has_changes: bool = True
    """Whether the server has confirmed any of the changes."""

    async def __aenter__(self) -> Self:
        """Subscribe. No later change is missed.

        Raises:
            ClientError: The server rejected the request.
        """
        connection = await self._requests.connect()
        self._requests.incoming.watchers.add(self._on_change)
        try:
            if connection.revision.handshake:
                self._requests.add(self)
                for ask in self._asks("resources/subscribe"):
                    await self._requests.ask(ask)
            else:
                await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._requests.incoming.watchers.discard(self._on_change)
        self._requests.discard(self)
        if self._task is not None:
            await cancel_all(self._task)
            return
        connection = self._requests.connection
        if connection is not None and not connection.transport.lost:
            with contextlib.suppress(ClientError):
                for ask in self._asks("resources/unsubscribe"):
                    await self._requests.send(connection, ask)

    def _on_change(self, change: Change, subscription: Any) -> None:
        wanted = self._filter
        if self._task is not None:
            if subscription != self._subscription and change.kind != "again":
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

    # Handshake era

    async def _restore(self, connection: Connection) -> None:
        """Subscribe on a new connection."""
        if self._task is not None:
            return
        if not connection.revision.handshake:  # the server was replaced by a newer one
            self._task = asyncio.create_task(self._keep_open())
            return
        try:
            for ask in self._asks("resources/subscribe"):
                await self._requests.send(connection, ask)
        except ServerError as exc:
            if is_temporary(exc):
                raise
            self._requests.discard(self)
            self.fail(exc)

    def _asks(self, method: str) -> Iterator[RawRequest]:
        for uri in self._filter.resource_subscriptions:
            yield RawRequest(method=method, params=encode(ResourceRequestParams(uri)), repeatable=True)

    # Per-request era

    def _acknowledge(self, has_changes: bool) -> None:
        self._has_changes = has_changes
        if self._failures and not self._agreed.is_set():
            self._append(Change("again"))
        self._agreed.set()

    @override
    async def _listen(self) -> NoReturn:
        subscription = next(self._requests.ids)
        self._requests.incoming.acknowledgments[subscription] = self._acknowledge
        self._subscription = subscription
        params = encode(SubscriptionsListenRequestParams(self._filter))
        try:
            connection = await self._requests.connect()
            ask = RawRequest(method="subscriptions/listen", params=params, id=subscription, timeout=math.inf)
            await self._requests.send(connection, ask)
        finally:
            del self._requests.incoming.acknowledgments[subscription]
        if not self._has_changes and self._filter.resource_subscriptions:  # a list may get its first item later
            raise ClientError("The server doesn't report these changes, at least not to these credentials.")
        raise ConnectionLost("The server ended the subscription.")


class WatchingRequests(Requests, eq=False, kw_only=True):
    """Sends requests: ``await conversation.requests.ask(RawRequest(method="ping"))``.

    New connections get the session's log level and subscriptions. A lost connection of the handshake era is reopened
    while there are watchers or an `on_change` callback.
    """

    log_level: str
    """Minimum severity of log messages. Empty leaves it to the server."""
    _watchers: set[Changes] = field(default_factory=set[Changes])
    _restored_connection: Connection | None = None
    """The connection with all subscriptions."""
    _restore_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _task: asyncio.Task[None] | None = None
    _failures: int = 0
    _reconnected_at: float = -math.inf
    """When the connection was last reopened, in the loop's time."""

    def __post_init__(self) -> None:
        self.incoming.interruption_callback = self._on_interruption

    def add(self, changes: Changes) -> None:
        """Start sending changes to a watcher.

        Args:
            changes: The watcher.
        """
        self._watchers.add(changes)
        self.incoming.subscribed.set()
        self._keep()

    def discard(self, changes: Changes) -> None:
        """Stop sending changes to a watcher.

        Args:
            changes: The watcher.
        """
        self._watchers.discard(changes)
        if not self._watchers and self.incoming.on_change is None:
            self.incoming.subscribed.clear()

    @override
    async def restore(self, connection: Connection) -> None:
        """Subscribe on a new connection, report that changes may have been missed, and set the log level."""
        if self.incoming.on_change is not None:
            self.incoming.subscribed.set()
        try:
            async with self._restore_lock:
                if self._restored_connection is connection:
                    return
                for changes in list(self._watchers):
                    await changes._restore(connection)  # pyright: ignore[reportPrivateUsage]
                before, self._restored_connection = self._restored_connection, connection
            if before is not None and before.revision.handshake:  # otherwise, each watch reports this
                self.incoming.report_change(Change("again"))
            if connection.revision.handshake and self.log_level and "logging" in connection.capabilities:
                ask = RawRequest(method="logging/setLevel", params=encode({"level": self.log_level}))
                await self.send(connection, ask)
        finally:
            self._keep()  # in case it's lost again or only partly restored

    async def stop_watching(self) -> None:
        """Unsubscribe from changes and stop reconnecting."""
        self.incoming.subscribed.clear()
        await cancel_all(self._task)

    def _on_interruption(self, transport: Transport, fault: ClientError | None) -> None:
        last = self.last
        if last is None or last.transport is not transport:
            return  # never opened
        if fault is None:
            self.incoming.report_change(Change("again"))
        elif isinstance(fault, ConnectionLost):
            self._keep()
        else:
            self._fail(fault)

    def _fail(self, fault: ClientError) -> None:
        for changes in self._watchers:
            changes.fail(fault)
        self._watchers.clear()
        if self.incoming.on_change is not None:
            _logger.warning("The subscription to changes on the server ended. %s", fault)
        self.incoming.subscribed.clear()

    @property
    def _broken(self) -> bool:
        last = self.last
        if last is None or not last.revision.handshake:
            return False
        return self.connection is not last or last.transport.lost or self._restored_connection is not last

    def _keep(self) -> None:
        if (
            self.reconnects
            and self._broken
            and self.incoming.subscribed.is_set()
            and (self._task is None or self._task.done())
        ):
            self._task = self.incoming.background.spawn(self._connect())

    async def _connect(self) -> None:
        """Reconnect while there are watchers."""
        now = asyncio.get_running_loop().time
        if now() - self._reconnected_at > _LONGEST_WAIT:
            self._failures = 0  # the connection was stable
        while self._broken and self.incoming.subscribed.is_set():
            await asyncio.sleep(retry_pause(self._failures))
            self._failures += 1
            try:
                await self.restore(await self.connect())
                self._reconnected_at = now()
            except ClientError as exc:
                if not is_temporary(exc):
                    self._fail(exc)  # removes all watchers


def is_temporary(fault: ClientError) -> bool:
    """Return whether a later attempt may succeed."""
    if isinstance(fault, ServerError):
        return fault.code in _TEMPORARY_ERRORS
    return isinstance(fault, (ConnectFailed, ConnectionLost, RequestTimeout))


def retry_pause(failures: int) -> float:
    """Return the seconds until the next attempt, with jitter."""
    return retry_delay(failures, _FIRST_WAIT, _LONGEST_WAIT)
