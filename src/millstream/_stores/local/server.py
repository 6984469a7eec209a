"""What the parent serves to its workers: the stores that they ask for, each opened once.

The parent runs none of the program, so it doesn't know which stores that wants. Each worker says so.
"""

import asyncio
import hmac
import secrets
import shutil
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from millstream._protocol.errors import LocalError
from millstream._stores.base import Store
from millstream._stores.local import wire
from millstream._stores.local.folder import private_socket, sweep
from millstream._stores.local.peer import Peer, Shared, failure
from millstream._stores.parent import Address


class LocalServer:
    """Holds stores for workers.

    Example:
        >>> server = LocalServer(open_store)
        >>> address = str(await server.start())  # each worker gives it to `use_parent`
        >>> await server.close()
    """

    __slots__ = ("_held", "_listener", "_open", "_path", "_peers", "_secret", "_tasks", "address")

    def __init__(self, open_store: Callable[[str], Store]) -> None:
        """`open_store` makes the store that a URL names."""
        # Configuration
        self._open = open_store
        # Process
        self.address = Address()
        """Where it listens, once it does."""
        self._held: dict[str, asyncio.Task[Shared]] = {}
        """By URL."""
        self._peers: set[Peer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None
        self._secret = ""

    async def start(self) -> Address:
        """Listen.

        Raises:
            OSError: there is nowhere to listen.
        """
        loop = asyncio.get_running_loop()
        if hasattr(socket, "AF_UNIX") and hasattr(loop, "create_unix_server"):
            await asyncio.to_thread(sweep)
            self._path = private_socket()
            self._listener = await loop.create_unix_server(self._peer, str(self._path), backlog=1024)
            self.address = Address(path=str(self._path))
        else:
            self._secret = secrets.token_urlsafe(32)
            self._listener = await loop.create_server(self._peer, "127.0.0.1", 0, backlog=1024)
            self.address = Address(port=self._listener.sockets[0].getsockname()[1], secret=self._secret)
        return self.address

    async def close(self) -> None:
        """Cut the workers off, and close the stores. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for peer in list(self._peers):
            peer.abort()
        for task in list(self._tasks):
            task.cancel()
        held, self._held = self._held, {}
        for opening in held.values():
            with suppress(LocalError, OSError):
                await (await opening).store.close()
        if self._path is not None:
            shutil.rmtree(self._path.parent, ignore_errors=True)
            self._path = None

    def _peer(self) -> Peer:
        peer = Peer(self._hello, self._gone)
        self._peers.add(peer)
        return peer

    def _hello(self, peer: Peer, hello: wire.Hello) -> None:
        if not hmac.compare_digest(hello.secret.encode(), self._secret.encode()):
            peer.abort()
            return
        peer.name = secrets.token_hex(6)
        task = asyncio.get_running_loop().create_task(self._welcome(peer, hello))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _welcome(self, peer: Peer, hello: wire.Hello) -> None:
        try:
            if hello.version != wire.VERSION:
                raise LocalError(
                    "The workers run another version of Millstream than their parent, which was started before an "
                    "update. Stop the whole program and start it again."
                )
            held = await self._hold(hello.url)
        except (LocalError, OSError) as exc:
            peer.write(failure(hello.id, exc))
            peer.name = ""  # it may ask for another
            return
        if peer not in self._peers:
            return
        peer.shared = held
        peer.write(wire.Welcome(hello.id, wire.Greeting(peer.name, held.store.epoch, held.store.time())))
        held.come(peer)

    async def _hold(self, url: str) -> Shared:
        opening = self._held.get(url)
        if opening is None:
            opening = self._held[url] = asyncio.get_running_loop().create_task(self._open_held(url))
        try:
            return await asyncio.shield(opening)
        except (LocalError, OSError):
            if self._held.get(url) is opening:
                del self._held[url]
            raise

    async def _open_held(self, url: str) -> Shared:
        store = self._open(url)
        await store.open()
        return Shared(store)

    def _gone(self, peer: Peer) -> None:
        self._peers.discard(peer)
        if peer.shared is not None:
            peer.shared.go(peer)


@asynccontextmanager
async def holding(open_store: Callable[[str], Store]) -> AsyncGenerator[str, None]:
    """Hold stores inside the ``async with`` block; gives the address as text.

    Raises:
        OSError: there is nowhere to listen.
    """
    server = LocalServer(open_store)
    try:
        yield str(await server.start())
    finally:
        await server.close()
