"""Which server has a key, and how to connect to it: a single one, the primary that Sentinel names, or the node of a
Cluster (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from millstream._protocol.errors import LocalError
from millstream._stores.redis.address import Address
from millstream._stores.redis.keys import SLOTS, slot_of, slot_text
from millstream._stores.redis.link import Link, Lost, Refused, connect, dial

Place = int
"""Servers are counted: 0 is the only one, but in a Cluster."""
COMMANDS: Final = "commands"
"""The name of the connections on which everything is asked. The other ones only read, or have one question."""
_ONLY: Final = 0
_SENTINEL_SECONDS: Final = 1.0


class Routes:
    """A single server."""

    def __init__(self, address: Address) -> None:
        self.address = address

    async def prepare(self) -> None:
        """Find out where the keys are, if that isn't known."""

    def place(self, key: str) -> Place:
        """Where a key is."""
        return _ONLY

    def places(self) -> list[Place]:
        """Every server that has keys."""
        return [_ONLY]

    async def renew(self, why: str) -> Place | None:
        """A server refused, or isn't there: another one may have the key. Gives the one where it's being moved to, and
        where only this command is to be asked.

        Raises:
            LocalError: the server is one of several, and the URL doesn't say so.
        """
        if why.startswith(("MOVED ", "ASK ")):
            raise LocalError(f"The store at {self.address} is part of a Cluster. Begin its URL with redis+cluster://.")
        return None

    async def connect(self, place: Place, name: str, broken: Callable[[Link], None]) -> Link:
        """Connect to a server.

        Raises:
            OSError: there's none at the moment.
            LocalError: the server can't be used.
        """
        host, port = self.address.hosts[0]
        return await connect(self.address, host, port, name, broken)

    async def moved(self) -> bool:
        """Whether the keys are on another server now, and nobody told those who are connected."""
        return False


class SentinelRoutes(Routes):
    """The primary of a service. Sentinel is asked before each connection, because it may have changed."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._at: tuple[str, int] | None = None
        """The primary when the connection for commands was made last."""

    async def connect(self, place: Place, name: str, broken: Callable[[Link], None]) -> Link:
        host, port = await self._primary()
        if name == COMMANDS:  # the reader may come to a new primary before them
            self._at = host, port
        return await connect(self.address, host, port, name, broken)

    async def moved(self) -> bool:
        # A primary that's replaced while it's well serves on for 8 s or more, until Sentinel makes it a replica.
        with suppress(OSError):
            return self._at is not None and await self._primary() != self._at
        return False

    async def _primary(self) -> tuple[str, int]:
        failure = ""
        address = self.address
        for host, port in address.hosts:
            link = None
            try:
                async with asyncio.timeout(_SENTINEL_SECONDS):
                    link = await dial(address.tls, host, port, _ignore)
                    if address.sentinel_password:
                        who = (address.sentinel_user,) if address.sentinel_user else ()
                        await link.ask("AUTH", *who, address.sentinel_password)
                    found: Any = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
                if found:
                    return found[0].decode(), int(found[1])
                failure = f"Sentinel at {host}:{port} knows no service {address.service[:64]!r}."
            except Refused as refused:
                failure = f"Sentinel at {host}:{port} refuses: {str(refused)[:100]}"
            except OSError as broken:
                failure = failure or f"Sentinel at {host}:{port} doesn't answer{_text(broken)}"
            finally:
                if link is not None:
                    link.close()
        raise Lost(failure)


class ClusterRoutes(Routes):
    """The primaries of a Cluster, each with its slots."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._nodes: list[tuple[str, int]] = []
        """Every node that was ever named: its index is its place."""
        self._slots: list[Place] = []
        self._asking: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        if not self._slots:
            await self._ask()

    def place(self, key: str) -> Place:
        return self._slots[_slot(slot_text(key))] if self._slots else -1

    def places(self) -> list[Place]:
        return sorted(set(self._slots))

    async def renew(self, why: str) -> Place | None:
        code, *rest = why.split()
        if code in ("MOVED", "ASK") and len(rest) == 2:
            host, _, port = rest[1].rpartition(":")
            place = self._node(host or self.address.hosts[0][0], int(port))
            if code == "ASK":
                return place
            if self._slots:
                self._slots[int(rest[0])] = place
                return None
        with suppress(OSError, LocalError):  # the old places are as good as any
            await self._ask()
        return None

    async def connect(self, place: Place, name: str, broken: Callable[[Link], None]) -> Link:
        host, port = self._nodes[place]
        return await connect(self.address, host, port, name, broken)

    def _node(self, host: str, port: int) -> Place:
        if (host, port) not in self._nodes:
            self._nodes.append((host, port))
        return self._nodes.index((host, port))

    async def _ask(self) -> None:
        """Ask one node for the slots of all; who comes meanwhile waits for the same reply."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_any())
        await asyncio.shield(self._asking)

    async def _ask_any(self) -> None:
        failure: Exception = Lost("The Cluster has no nodes.")
        for host, port in dict.fromkeys((*self._nodes, *self.address.hosts)):
            try:
                link = await connect(self.address, host, port, "routes", _ignore, any_role=True)
            except (OSError, LocalError) as broken:
                failure = broken
                continue
            try:
                self._learn(await link.ask("CLUSTER", "SLOTS"), host)
            except Refused as refused:
                raise LocalError(f"Redis at {host}:{port} is not part of a Cluster: {str(refused)[:100]}") from None
            except Lost as broken:
                failure = broken
            else:
                return
            finally:
                link.close()
        raise failure

    def _learn(self, ranges: Any, asked: str) -> None:
        slots = list(self._slots) or [-1] * SLOTS
        for start, end, primary, *_ in ranges:
            host = primary[0].decode() if primary[0] else asked
            slots[start : end + 1] = [self._node(host, int(primary[1]))] * (end + 1 - start)
        if -1 in slots:
            raise Lost("The Cluster isn't complete: some slots have no server.")
        self._slots = slots


def routes_to(address: Address) -> Routes:
    """The routes for a kind of address."""
    kinds = {"": Routes, "+sentinel": SentinelRoutes, "+cluster": ClusterRoutes}
    return kinds[address.kind](address)


_slot = lru_cache(4096)(slot_of)


def _text(failure: OSError) -> str:
    return f": {failure.strerror}." if failure.strerror else "."


def _ignore(link: Link) -> None:
    """A connection for one question."""
