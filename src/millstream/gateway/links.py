"""Connections to one upstream: one client `Conversation` for each key, opened when first needed.

A key says whose connection it is. An upstream's session belongs to one principal and one session of a client, so
nothing that an upstream keeps for one caller reaches another. Clients never see an upstream's session id.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic

from msgspec import Struct

from millstream.client._conversation import Conversation
from millstream.client._errors import ClientError, ConnectionLost
from millstream.gateway.relay import Relays


class LinkKey(Struct, frozen=True, gc=False):
    """Whose connection it is."""

    principal: str = ""
    """The id of the caller's principal; empty for callers that don't sign in, and for connections that all share."""
    affinity: str = ""
    """The id of the caller's handshake session; empty without one."""
    capabilities: bytes = b""
    """What the connection declares of the client, as canonical JSON; empty for nothing."""
    credentials: str = ""
    """Whose credentials it carries: see `UpstreamCredentials.link_key`."""
    handshake: bool = False
    """It has a handshake, though the upstream speaks the per-request era, too."""


_ATTEMPTS = 3
"""Connections of a key that a call waits for, if each is closed before it stands: its person connects elsewhere."""
SHARED = LinkKey()
"""The key of the connection that lists what the upstream offers."""


class TooManyLinks(ClientError):
    """All connections to an upstream are in use."""


class NoCredentials(ClientError):
    """The credentials for a request can't be had now, which says nothing about the upstream."""


class Link:
    """One connection."""

    __slots__ = ("calls", "conversation", "key", "last_used", "opening", "relays")

    def __init__(self, key: LinkKey, conversation: Conversation, relays: Relays) -> None:
        self.key: LinkKey = key
        self.conversation: Conversation = conversation
        self.relays: Relays = relays
        """The clients of the calls that run on it."""
        self.opening: asyncio.Task[None] | None = None
        """Connects; None once it has succeeded."""
        self.calls: int = 0
        """How many calls run on it."""
        self.last_used: float = monotonic()


class Links:
    """The connections to one upstream."""

    __slots__ = ("_closing", "_leaving", "_max", "_open", "connect")

    def __init__(self, connect: Callable[[LinkKey], Link], *, max_links: int) -> None:
        """Nothing connects before `open`.

        Args:
            connect: makes a connection that isn't started yet.
            max_links: how many connections may be open. Above it, an idle one of the principal that has the most is
                closed, so one caller can't close those of all others. No principal may have more than half of them in
                use.
        """
        self.connect: Callable[[LinkKey], Link] = connect
        self._max = max_links
        self._open: dict[LinkKey, Link] = {}
        self._leaving: set[Link] = set()
        """Connections of people who have connected another account, or none, while calls run on them."""
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def ready(self, key: LinkKey) -> Link | None:
        """Return the connection of a key if it stands."""
        link = self._open.get(key)
        return link if link is not None and link.opening is None else None

    async def open(self, key: LinkKey) -> Link:
        """Return the connection of a key, and make it if there is none.

        Raises:
            ClientError: the upstream can't be reached, or all connections are in use.
        """
        for _ in range(_ATTEMPTS):
            link = self._open.get(key)
            if link is None:
                if len(self._open) >= self._max // 2:
                    self._make_room(key.principal)
                link = self._open[key] = self.connect(key)
                link.opening = asyncio.get_running_loop().create_task(self._start(link))
                link.opening.add_done_callback(_retrieve)
            opening = link.opening
            if opening is None:
                return link
            await asyncio.wait([opening])
            if not opening.cancelled():
                opening.result()
            if self._open.get(key) is link:  # another caller may have closed it
                return link
        raise ConnectionLost("The connection was closed while it was opened.")

    async def _start(self, link: Link) -> None:
        try:
            await link.conversation.start()
            link.opening = None
        except BaseException:
            if self._open.get(link.key) is link:
                del self._open[link.key]
            raise

    def _make_room(self, principal: str) -> None:
        counts = Counter(link.key.principal for link in self._open.values())
        full = len(self._open) >= self._max
        if not full and (not principal or counts[principal] < self._max // 2):
            return
        idle = [link for link in self._open.values() if not link.calls and link.opening is None and link.key != SHARED]
        if not full:
            idle = [link for link in idle if link.key.principal == principal]
        if not idle:
            raise TooManyLinks(f"Too many of the {self._max} connections to this upstream are in use.")
        self.end(min(idle, key=lambda link: (-counts[link.key.principal], link.last_used)))

    def end(self, link: Link) -> None:
        """Close a connection in the background. The next call with its key makes another."""
        if self._open.get(link.key) is link:
            del self._open[link.key]
        task = asyncio.get_running_loop().create_task(_close(link))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def end_of(self, owner: str) -> None:
        """Close the connections that carry the credentials of one person, once the calls on them are over."""
        for key, link in list(self._open.items()):
            if key.credentials.partition("\n")[0] != owner:
                continue
            if link.calls and key.principal:  # without a principal, it's the connection for lists
                del self._open[key]
                self._leaving.add(link)
            else:
                self.end(link)

    def end_idle(self, seconds: float, *, now: float) -> None:
        """Close connections without calls that weren't used for so long, and those that wait for their last call."""
        for link in [each for each in self._leaving if not each.calls]:
            self._leaving.discard(link)
            self.end(link)
        for link in list(self._open.values()):
            if not link.calls and link.opening is None and link.key != SHARED and now - link.last_used > seconds:
                self.end(link)

    async def close(self) -> None:
        """Close all of them."""
        for link in [*self._open.values(), *self._leaving]:
            self.end(link)
        self._leaving.clear()
        while self._closing:
            await asyncio.wait(self._closing)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Every caller may have gone before a connection failed."""
    if not task.cancelled():
        task.exception()


async def _close(link: Link) -> None:
    opening = link.opening
    if opening is not None:
        opening.cancel()
        await asyncio.wait([opening])
        if opening.cancelled() or opening.exception() is not None:
            return  # `Conversation.start` has closed it
    await link.conversation.close()
