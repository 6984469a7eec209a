"""The client for the hub of another server, for programs without `async`."""

import ssl
from asyncio import to_thread
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Final, Self

from millstream._copies import NotCopyable
from millstream._http.client import ClientError
from millstream._override import override
from millstream._tasks import LoopThread, make_blocking
from millstream.hub._client import EventGap, HubClient, HubSubscription, HubTransport
from millstream.hub._event import HubEvent

_NOT_CONNECTED = "The client isn't connected. Use `with hub.connect_blocking(…) as feed:`."


class BlockingSubscription(NotCopyable):
    """A blocking `HubSubscription`: ``for event in feed.subscribe("orders.*"): print(event.data)``.

    It waits without end. Ctrl-C interrupts it, and no event is lost if the program continues to read.
    """

    _COPY_ADVICE = HubSubscription._COPY_ADVICE

    def __init__(
        self, inner: HubSubscription, wait: Callable[..., Any], call: Callable[[Callable[[], None]], None]
    ) -> None:
        """`BlockingHubClient.subscribe` creates it."""
        self._inner = inner
        self._wait = wait
        self._call = call

    @property
    def position(self) -> str:
        """The position after the last event that was read, to resume from in another run of the program."""
        return self._inner.position

    @property
    def closed(self) -> bool:
        """Whether it was closed, so that its loop ends."""
        return self._inner.closed

    def __enter__(self) -> Self:
        self._wait(self._inner.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # in the loop's thread, which owns the connection

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HubEvent | EventGap:
        try:
            found: HubEvent | EventGap | None = None if self.closed else self._wait(anext(self._inner, None))
        except CancelledError:  # the client was closed meanwhile
            found = None
        if found is None:
            raise StopIteration
        return found

    def close(self) -> None:
        """Unsubscribe. A thread that waits for the next event stops."""
        self._call(self._inner.close)

    def retry_now(self) -> None:
        """Reconnect immediately, if it's waiting."""
        self._call(self._inner.retry_now)


class BlockingHubClient(NotCopyable):
    """A blocking `HubClient`: ``with hub.connect_blocking(url) as feed: feed.publish("news", "Hello")``.

    Several threads can use it at once.

    Args:
        inner: The client whose methods it calls.
    """

    _COPY_ADVICE = HubClient._COPY_ADVICE

    def __init__(self, inner: HubClient) -> None:
        """`connect_blocking` creates it."""
        self._inner = inner
        self._loop = LoopThread("millstream-hub", lambda: ClientError(_NOT_CONNECTED))

    @override
    def __str__(self) -> str:
        return str(self._inner)

    def __enter__(self) -> Self:
        self._loop.start()
        self._loop.wait(self._inner.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._loop.wait(self._inner.__aexit__(*exc))
        finally:
            self._loop.stop()

    @property
    def client_id(self) -> str:
        """The id of this client as a member of channels."""
        return self._inner.client_id

    def subscribe(
        self, channel: str, *more: str, history: int = 0, last_event_id: str = "", name: str = ""
    ) -> BlockingSubscription:
        """Return a subscription to channels or patterns, which share one order of events.

        Args:
            channel: A channel, or a pattern such as ``orders.*``.
            more: Further channels and patterns.
            history: Number of newest events that come first, at most 1,000.
            last_event_id: As for `HubClient.subscribe`.
            name: Makes this client a member of the channels, with this name.

        Raises:
            ValueError: A channel contains a comma.
            ClientError: The client isn't connected.
        """

        async def subscribe() -> HubSubscription:
            return self._inner.subscribe(channel, *more, history=history, last_event_id=last_event_id, name=name)

        return BlockingSubscription(self._loop.wait(subscribe()), self._loop.wait, self._loop.call)

    publish: Final = make_blocking(HubClient.publish)
    members: Final = make_blocking(HubClient.members)

    def retry_now(self) -> None:
        """Reconnect immediately, if a subscription is waiting."""
        self._loop.call(self._inner.retry_now)

    @property
    def _wait(self) -> Callable[..., Any]:
        return self._loop.wait


def connect_blocking(
    url: str,
    *,
    token: str | Callable[[], str] = "",
    tls: ssl.SSLContext | None = None,
    transport: HubTransport = "sse",
) -> BlockingHubClient:
    """Connect to the hub of a server, for programs without `async`.

    Args:
        url: The server's URL, such as ``https://example.com``, without ``/mcp``.
        token: A key, an access token, or a function that returns a current one for each request.
        tls: Certificates to trust or present. By default, the system's.
        transport: As for `connect`.

    Raises:
        TargetError: The URL isn't one of a server.

    Example:
        with hub.connect_blocking("https://example.com", token=key) as feed:
            for event in feed.subscribe("orders.*", history=10):
                print(event)
    """
    current = partial(to_thread, token) if callable(token) else token
    return BlockingHubClient(HubClient(url, current, tls, transport))
