"""Connections to one upstream: one client `Conversation` per key, opened on first use.

A key identifies the owner of a connection. An upstream's session belongs to one principal and one session of a client,
so upstream state never crosses callers. Clients never see an upstream's session id.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from msgspec import Struct

from millstream._server.pool import Pool
from millstream._tasks import Tasks, has_failed
from millstream.client import ClientError, ConnectFailed, ConnectionLost
from millstream.client._conversation import Conversation
from millstream.gateway._relay import Relays


class LinkKey(Struct, frozen=True, gc=False):
    """The owner of a connection."""

    principal: str = ""
    """Id of the caller's principal; empty for anonymous callers, and for shared connections."""
    affinity: str = ""
    """Id of the caller's handshake session; empty without one."""
    capabilities: bytes = b""
    """Client capabilities that the connection declares, as canonical JSON; empty for none."""
    credentials: str = ""
    """The credentials of the connection: see `UpstreamCredentials.link_key`."""
    handshake: bool = False
    """Whether it uses the handshake although the upstream also supports the per-request era."""


MAX_HTTP_CALLS = 100
"""Maximum concurrent calls that several callers send to one upstream over HTTP. Each takes a connection."""
_ATTEMPTS = 3
"""Maximum connections that a call tries if each is closed while it opens, because its user is reconnecting."""
SHARED_KEY = LinkKey()
"""Key of the connection that reads the upstream's lists."""


class InUse(ConnectFailed):
    """The processes or connections that a caller may hold are in use. This isn't a failure of the upstream."""

    def __init__(self, places: Pool, owner: str, what: str = "its {} connections", *, remedy: str = "") -> None:
        holding = f"{places.count(owner)} of {what.format(places.maximum)}"
        super().__init__(f"The upstream is in use: the caller holds {holding}.", remedy=remedy)
        self.holding: str = holding
        """What the caller holds of how much, as a text."""


class NoCredentials(ClientError):
    """A request has no credentials at the moment. This isn't a failure of the upstream."""


class Link:
    """One connection."""

    def __init__(
        self, key: LinkKey, owner: str, conversation: Conversation, relays: Relays, places: Pool | None = None
    ) -> None:
        self.key: LinkKey = key
        self.owner: str = owner
        """The caller whose share of the connections it uses; empty if callers share it."""
        self.conversation: Conversation = conversation
        self.relays: Relays = relays
        """Clients of the calls on this connection."""
        self.places: Pool | None = places
        """Places for calls, if several callers share the HTTP connections."""
        self.open_task: asyncio.Task[None] | None = None
        """Task that connects; None once it has succeeded."""
        self.calls: int = 0
        """Number of calls on this connection."""
        self.last_used: float = monotonic()


def http_places(*, several: bool = False) -> Pool:
    """Return the places for calls that share the HTTP connections to one upstream."""
    places = Pool(MAX_HTTP_CALLS)
    places.several = several
    return places


class Links:
    """The connections to one upstream."""

    def __init__(self, connect: Callable[[LinkKey, str], Link], *, max_connections: int) -> None:
        """Create the pool; `open` makes connections.

        Args:
            connect: Creates a connection of an owner that isn't started yet.
            max_connections: Maximum open connections. An owner that may not have another one loses an idle one of its
                own or of an owner that holds more, see `Pool`.
        """
        self.connect: Callable[[LinkKey, str], Link] = connect
        self.places: Pool = Pool(max_connections)
        self._open: dict[LinkKey, Link] = {}
        self._to_close: set[Link] = set()
        """Connections to close when their last call ends, because their user has reconnected or disconnected."""
        self._close_tasks = Tasks()

    def __len__(self) -> int:
        return len(self._open)

    def ready(self, key: LinkKey) -> Link | None:
        """Return the open connection of a key, or None."""
        link = self._open.get(key)
        return link if link is not None and link.open_task is None else None

    @property
    def has_handshake(self) -> bool:
        """Whether there's a connection that began with a handshake."""
        return any(key.handshake and link.open_task is None for key, link in self._open.items())

    async def open(self, key: LinkKey, owner: str = "") -> Link:
        """Return the connection of a key, opening it if necessary.

        Args:
            key: Identifies the connection.
            owner: The caller, see `Call.owner`; empty for the gateway itself.

        Raises:
            InUse: All connections are in use.
            ClientError: The upstream can't be reached.
        """
        for _ in range(_ATTEMPTS):
            link = self._open.get(key)
            if link is None:
                if not (key.principal or key.affinity):
                    owner = ""  # several callers share it
                self._take_place(owner)
                link = self._open[key] = self.connect(key, owner)
                link.open_task = asyncio.get_running_loop().create_task(self._start(link))
                link.open_task.add_done_callback(has_failed)
            opening = link.open_task
            if opening is None:
                return link
            await asyncio.wait([opening])
            if not opening.cancelled():
                opening.result()
            if self._open.get(key) is link:  # another caller may have closed it
                return link
        raise ConnectionLost("The connection was closed while it was being opened.")

    async def _start(self, link: Link) -> None:
        try:
            await link.conversation.start()
            link.open_task = None
        except BaseException:
            if self._open.get(link.key) is link:
                del self._open[link.key]
                self.places.leave(link.owner)
            raise

    def _take_place(self, owner: str) -> None:
        """Take a place for a connection, closing idle ones of the largest owner if needed."""
        count = self.places.count
        while not self.places.take(owner):
            idle = [
                link
                for link in self._open.values()
                if not link.calls
                and link.open_task is None
                and link.key != SHARED_KEY
                and (link.owner in ("", owner) or count(link.owner) > count(owner))
            ]
            if not idle:
                raise InUse(self.places, owner, remedy="Raise max_connections.")
            self.end(min(idle, key=lambda link: (-count(link.owner), link.last_used)))

    def end(self, link: Link) -> None:
        """Close a connection in the background. The next call with its key opens another one."""
        if self._open.get(link.key) is link:
            del self._open[link.key]
        self.places.leave(link.owner)
        self._close_tasks.spawn(_close(link))

    def end_links_of(self, owner: str) -> None:
        """Close the connections with one user's credentials once their calls have finished."""
        for key, link in list(self._open.items()):
            if key.credentials.partition("\n")[0] != owner:
                continue
            if link.calls and key.principal:  # without a principal, it's the connection for lists
                del self._open[key]
                self._to_close.add(link)
            else:
                self.end(link)

    def retire(self, *, handshake: bool) -> None:
        """Close the connections with or without `LinkKey.handshake` once their calls have finished."""
        for key, link in list(self._open.items()):
            if key.handshake is handshake:
                del self._open[key]
                self._to_close.add(link)

    def end_idle(self, seconds: float, *, now: float) -> None:
        """Close connections that have been idle for `seconds`, and those marked for closing."""
        for link in [each for each in self._to_close if not each.calls]:
            self._to_close.discard(link)
            self.end(link)
        for link in list(self._open.values()):
            if not link.calls and link.open_task is None and link.key != SHARED_KEY and now - link.last_used > seconds:
                self.end(link)

    async def close(self) -> None:
        """Close all connections."""
        for link in [*self._open.values(), *self._to_close]:
            self.end(link)
        self._to_close.clear()
        while self._close_tasks:
            await self._close_tasks.settle(None)


async def _close(link: Link) -> None:
    opening = link.open_task
    if opening is not None:
        opening.cancel()
        await asyncio.wait([opening])
        if has_failed(opening):
            return  # `Conversation.start` has closed it
    await link.conversation.close()
