"""Subscriptions to changes at a server, in both eras.

See https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions. Broken
subscriptions and watched connections of the handshake era are reopened with backoff, followed by a change of the kind
`again`: changes may have been missed. If the server refuses permanently, the watch ends with an error.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from millstream._protocol.errors import INTERNAL_ERROR, OVERLOADED, RATE_LIMITED, SERVER_ERROR
from millstream._protocol.jsonrpc import encode
from millstream._protocol.notifications import (
    ResourceRequestParams,
    SubscriptionFilter,
    SubscriptionsListenRequestParams,
)
from millstream._tasks import Tasks, cancel_all, retry_delay
from millstream.client._errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    RequestTimeout,
    ServerError,
)
from millstream.client._negotiation import Connection
from millstream.client._requests import RawRequest, Requests
from millstream.client._server_messages import Change, ServerMessages
from millstream.client._transports import Transport

_logger = logging.getLogger(__name__)
_MAX_UNREAD = 10_000
"""Maximum unread changes. Above it, one of the kind `again` replaces them."""
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_STABLE_SECONDS = 5.0
"""Seconds after which the end of a subscription isn't a failure to reopen it."""
_TEMPORARY_ERRORS = frozenset({RATE_LIMITED, OVERLOADED, SERVER_ERROR, INTERNAL_ERROR})
"""Error codes of temporary failures."""
_CONFIRM_TIMEOUT = 60.0
"""Seconds for the server to confirm a subscription."""


class Changes:
    """A subscription to changes: ``async with client.watch(…) as changes: async for change in changes: …``.

    While it's open, a broken connection or session is reopened, followed by a change of the kind `again`. If the server
    refuses permanently, the loop raises a `ClientError`.
    """

    def __init__(
        self, requests: Requests, incoming: ServerMessages, wanted: SubscriptionFilter, watches: "Watches"
    ) -> None:
        self._requests = requests
        self._incoming = incoming
        self._filter = wanted
        self._watches = watches
        self._waiting: deque[Change] = deque()
        self._changed = asyncio.Event()
        self._subscription: int = 0
        self._task: asyncio.Task[None] | None = None
        self._fault: ClientError | None = None
        self._agreed = asyncio.Event()
        """Set while the server has confirmed the subscription."""
        self._has_changes = True
        """Whether the server has confirmed any of the changes."""
        self._reopens = False
        """Whether it was confirmed before, so that changes may have been missed."""

    async def __aenter__(self) -> Self:
        """Subscribe. No later change is missed.

        Raises:
            ClientError: The server refused.
        """
        connection = await self._requests.connect()
        self._incoming.watchers.add(self._on_change)
        try:
            if connection.negotiated.revision.handshake:
                self._watches.add(self)
                for ask in self._asks("resources/subscribe"):
                    await self._requests.ask(ask)
            else:
                self._task = asyncio.create_task(self._keep_listening())
                await self._wait_for_acknowledgment(self._task)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.watchers.discard(self._on_change)
        self._watches.discard(self)
        if self._task is not None:
            await cancel_all(self._task)
            return
        connection = self._requests.connection
        if connection is not None and not connection.transport.lost:
            with contextlib.suppress(ClientError):
                for ask in self._asks("resources/unsubscribe"):
                    await self._requests.send(connection, ask)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._fault is not None:
                raise self._fault
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def _on_change(self, change: Change, subscription: Any) -> None:
        wanted = self._filter
        if self._task is not None:
            if subscription != self._subscription and change.kind != "again":
                return
        elif change.kind == "resource":
            if not any(change.uri.startswith(uri) for uri in wanted.resource_subscriptions):
                return
        elif not getattr(wanted, f"{change.kind}_list_changed", True):
            return
        self._add(change)

    def _add(self, change: Change) -> None:
        if len(self._waiting) >= _MAX_UNREAD:
            self._waiting.clear()
            change = Change("again")
        self._waiting.append(change)
        self._changed.set()

    # Handshake era

    async def restore(self, connection: Connection) -> None:
        """Subscribe on a new connection."""
        if (
            self._task is None and not connection.negotiated.revision.handshake
        ):  # the server was replaced by a newer one
            self._task = asyncio.create_task(self._keep_listening())
        elif self._task is None:
            try:
                for ask in self._asks("resources/subscribe"):
                    await self._requests.send(connection, ask)
            except ServerError as exc:
                if is_temporary(exc):
                    raise
                self.fail(exc)

    def fail(self, fault: ClientError) -> None:
        """End the subscription with an error, once all changes are read."""
        self._watches.discard(self)
        self._fault = fault
        self._changed.set()

    def _asks(self, method: str) -> Iterator[RawRequest]:
        for uri in self._filter.resource_subscriptions:
            yield RawRequest(method=method, params=encode(ResourceRequestParams(uri)), repeatable=True)

    # Per-request era

    async def _wait_for_acknowledgment(self, task: asyncio.Task[None]) -> None:
        first = asyncio.create_task(self._agreed.wait())
        try:
            done, _ = await asyncio.wait({first, task}, timeout=_CONFIRM_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
        if task in done:
            raise self._fault or InvalidResponse("The server ended the subscription immediately.")
        if not done:
            raise RequestTimeout(f"The server didn't confirm the subscription within {_CONFIRM_TIMEOUT:g} seconds.")

    def _acknowledge(self, has_changes: bool) -> None:
        self._has_changes = has_changes
        if self._reopens and not self._agreed.is_set():
            self._add(Change("again"))
        self._agreed.set()

    async def _keep_listening(self) -> None:
        failures, now = 0, asyncio.get_running_loop().time
        try:
            while True:
                began = now()
                try:
                    await self._listen()
                    why: ClientError = ConnectionLost("The server ended the subscription.")
                except ClientError as exc:
                    why = exc
                if not is_temporary(why) or not (self._agreed.is_set() or self._reopens):
                    raise why
                if now() - began > _STABLE_SECONDS:
                    failures = 0
                await asyncio.sleep(retry_pause(failures))
                failures += 1
                self._agreed.clear()
                self._reopens = True
        except ClientError as exc:
            self.fail(exc)

    async def _listen(self) -> None:
        """Run one subscription until it ends."""
        subscription = next(self._requests.ids)
        self._incoming.acknowledgments[subscription] = self._acknowledge
        self._subscription = subscription
        params = encode(SubscriptionsListenRequestParams(self._filter))
        try:
            connection = await self._requests.connect()
            ask = RawRequest(method="subscriptions/listen", params=params, id=subscription, timeout=math.inf)
            await self._requests.send(connection, ask)
            if not self._has_changes and self._filter.resource_subscriptions:  # a list may get its first item later
                raise ClientError("The server doesn't report these changes, at least not to these credentials.")
        finally:
            del self._incoming.acknowledgments[subscription]


class Watches:
    """Watchers of the handshake era. A lost connection is reopened while there are any."""

    def __init__(self, requests: Requests, incoming: ServerMessages, background: Tasks, *, always: bool) -> None:
        self._requests = requests
        self._incoming = incoming
        self._background = background
        self._always = always
        """Whether an `on_change` callback watches as well."""
        self._open: set[Changes] = set()
        self._restored_connection: Connection | None = None
        """The connection with all subscriptions."""
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._reconnected_at = -math.inf
        """When the connection was last reopened, in the loop's time."""
        incoming.interruption_callback = self._on_interruption

    def add(self, changes: Changes) -> None:
        """Add a watcher."""
        self._open.add(changes)
        self._incoming.subscribed.set()
        self._keep()

    def discard(self, changes: Changes) -> None:
        """Remove a watcher."""
        self._open.discard(changes)
        if not self._open and not self._always:
            self._incoming.subscribed.clear()

    async def restore(self, connection: Connection) -> None:
        """Subscribe on a new connection, and report that changes may have been missed."""
        if self._always:
            self._incoming.subscribed.set()
        try:
            async with self._lock:
                if self._restored_connection is connection:
                    return
                for changes in list(self._open):
                    await changes.restore(connection)
                before, self._restored_connection = self._restored_connection, connection
            if before is not None and before.negotiated.revision.handshake:  # otherwise, each watch reports this
                self._incoming.report_change(Change("again"))
        finally:
            self._keep()  # in case it's lost again or only partly restored

    async def close(self) -> None:
        """Stop reconnecting."""
        self._incoming.subscribed.clear()
        await cancel_all(self._task)

    def _on_interruption(self, transport: Transport, fault: ClientError | None) -> None:
        last = self._requests.last
        if last is None or last.transport is not transport:
            return  # never opened
        if fault is None:
            self._incoming.report_change(Change("again"))
        elif isinstance(fault, ConnectionLost):
            self._keep()
        else:
            self._fail(fault)

    def _fail(self, fault: ClientError) -> None:
        for changes in list(self._open):
            changes.fail(fault)
        if self._always:
            _logger.warning("The subscription to changes on the server ended. %s", fault)
        self._incoming.subscribed.clear()

    @property
    def _broken(self) -> bool:
        last = self._requests.last
        if last is None or not last.negotiated.revision.handshake:
            return False
        return self._requests.connection is not last or last.transport.lost or self._restored_connection is not last

    def _keep(self) -> None:
        if self._broken and self._incoming.subscribed.is_set() and (self._task is None or self._task.done()):
            self._task = self._background.spawn(self._connect())

    async def _connect(self) -> None:
        """Reconnect while there are watchers."""
        now = asyncio.get_running_loop().time
        if now() - self._reconnected_at > _LONGEST_WAIT:
            self._failures = 0  # it was stable
        while self._broken and self._incoming.subscribed.is_set():
            await asyncio.sleep(retry_pause(self._failures))
            self._failures += 1
            try:
                await self.restore(await self._requests.connect())
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
