"""Hear what changes at a server: a subscription of the per-request era, or what the handshake era tells by itself.

https://modelcontextprotocol.io/specification/2026-07-28/basic/utilities/subscriptions. A subscription that breaks is
opened again, after a wait that grows; then a change of the kind `again` says that others may have been missed.
"""

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from millstream._protocol.jsonrpc import encode
from millstream._protocol.messages import ResourceRequestParams, SubscriptionFilter, SubscriptionsListenRequestParams
from millstream.client._agreement import Link
from millstream.client._errors import BadAnswer, ClientError, ConnectFailed, ConnectionLost, NoAnswer
from millstream.client._incoming import Change, Incoming
from millstream.client._requests import Ask, Requests

_ROOM = 10_000
"""Changes that may wait to be read; of more, the oldest are forgotten."""
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_AGREES = 60.0
"""Seconds that the server has to confirm a subscription."""


class Changes:
    """``async with client.watch(…) as changes: async for change in changes: …``."""

    __slots__ = (
        "_fault", "_filter", "_incoming", "_news", "_open_ones", "_requests", "_subscription", "_task", "_waiting",
    )  # fmt: skip

    def __init__(
        self, requests: Requests, incoming: Incoming, wanted: SubscriptionFilter, open_ones: set["Changes"]
    ) -> None:
        self._requests = requests
        self._incoming = incoming
        self._filter = wanted
        self._open_ones = open_ones
        """Those that a new connection must subscribe to."""
        self._waiting: deque[Change] = deque(maxlen=_ROOM)
        self._news = asyncio.Event()
        self._subscription: int = 0
        self._task: asyncio.Task[None] | None = None
        self._fault: ClientError | None = None

    async def __aenter__(self) -> Self:
        """Subscribe. Nothing that changes afterwards is missed.

        Raises:
            ClientError: the server doesn't agree.
        """
        link = await self._requests.connect()
        self._incoming.watchers.add(self._hear)
        try:
            if link.agreement.revision.handshake:
                self._open_ones.add(self)
                await self._each(link, "resources/subscribe")
            else:
                agreed = asyncio.Event()
                self._task = asyncio.create_task(self._keep_listening(agreed))
                await self._confirmed(self._task, agreed)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.watchers.discard(self._hear)
        self._open_ones.discard(self)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ClientError):
                await self._task
            return
        link = self._requests.link
        if link is not None and not link.transport.lost:
            with contextlib.suppress(ClientError):
                await self._each(link, "resources/unsubscribe")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._fault is not None:
                raise self._fault
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def _hear(self, change: Change, subscription: Any) -> None:
        wanted = self._filter
        if self._task is not None:
            if subscription != self._subscription:
                return
        elif change.kind == "resource":
            if not any(change.uri.startswith(uri) for uri in wanted.resource_subscriptions):
                return
        elif not getattr(wanted, f"{change.kind}_list_changed", True):
            return
        self._take(change)

    def _take(self, change: Change) -> None:
        self._waiting.append(change)
        self._news.set()

    # The handshake era

    async def restore(self, link: Link) -> None:
        """Subscribe on a new connection; what changed since the last one broke is unknown."""
        await self._each(link, "resources/subscribe")
        self._take(Change("again"))

    async def _each(self, link: Link, method: str) -> None:
        for uri in self._filter.resource_subscriptions:
            ask = Ask(method=method, params=encode(ResourceRequestParams(uri)))
            await self._requests.send(link, ask)

    # The per-request era

    async def _confirmed(self, task: asyncio.Task[None], agreed: asyncio.Event) -> None:
        first = asyncio.create_task(agreed.wait())
        try:
            done, _ = await asyncio.wait({first, task}, timeout=_AGREES, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
        if task in done:
            raise self._fault or BadAnswer("The server ended the subscription at once.")
        if not done:
            raise NoAnswer(f"The server did not confirm the subscription within {_AGREES:g} seconds.")

    async def _keep_listening(self, agreed: asyncio.Event) -> None:
        failures = 0
        try:
            while True:
                try:
                    await self._listen(agreed)
                    why = ConnectionLost("The server ended the subscription.")
                except ConnectionLost as exc:
                    why = exc
                except ConnectFailed as exc:
                    if failures == 0:
                        raise
                    why = ConnectionLost(str(exc))
                if agreed.is_set():
                    failures = 0
                elif failures == 0:
                    raise why  # it was never open
                await asyncio.sleep(min(_FIRST_WAIT * 2**failures, _LONGEST_WAIT) * random.uniform(0.75, 1))  # noqa: S311
                failures += 1
                agreed = asyncio.Event()
                self._take(Change("again"))
        except ClientError as exc:
            self._fault = exc
            self._news.set()

    async def _listen(self, agreed: asyncio.Event) -> None:
        """One subscription, until it ends."""
        subscription = next(self._requests.ids)
        self._incoming.acknowledged[subscription] = agreed
        self._subscription = subscription
        params = encode(SubscriptionsListenRequestParams(self._filter))
        try:
            link = await self._requests.connect()
            ask = Ask(method="subscriptions/listen", params=params, id=subscription, timeout=math.inf)
            await self._requests.send(link, ask)
        finally:
            del self._incoming.acknowledged[subscription]


def wanted(uris: Sequence[str], *, tools: bool, prompts: bool, resources: bool) -> SubscriptionFilter:
    """What to subscribe to: everything that is named; without a name, all lists."""
    everything = not (uris or tools or prompts or resources)
    return SubscriptionFilter(tools or everything, prompts or everything, resources or everything, list(uris))
