"""One connection to one Redis. Commands go out together at the end of a turn of the event loop, and replies come back
in the order of the commands: any number can be under way at once.

It knows nothing of what is asked, and never tries again.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from millstream._protocol.errors import LocalError
from millstream._stores.redis.address import Address

CONNECT_SECONDS: Final = 3.0
ALLOW: Final = "Allow them with ACL SETUSER, or take out their rename-command."
"""What to do about commands that a server refuses."""
_OLDEST: Final = (7, 0)
_MORE: Final = object()
_RUN_DIGITS: Final = 12

Argument = str | bytes | int
_pack: Callable[[tuple[Argument, ...]], bytes] = getattr(hiredis, "pack_command")  # noqa: B009  its stub is wrong


class Refused(Exception):
    """The server answered with an error."""

    @property
    def code(self) -> str:
        """The first word, such as ``OOM``."""
        return str(self).partition(" ")[0]


class Lost(ConnectionError):
    """The connection broke. A command that was under way may have been done or not."""


class Link(asyncio.Protocol):
    """A connection. It's alive from `connect` until it breaks or is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, broken: Callable[["Link"], None]) -> None:
        # configuration
        self._loop = loop
        self._broken = broken
        # connection
        self.alive = False
        self.id = 0
        """The server's number for this connection."""
        self.info: dict[str, str] = {}
        """What the server said about itself when the connection was made."""
        self.heard = 0.0
        """When the last bytes came, or those were asked for that came first, by the loop's clock."""
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader(protocolError=Lost, replyError=Refused, notEnoughData=_MORE)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command; the future has the reply.

        Raises:
            Lost: by the future, when the connection breaks before the reply.
            Refused: by the future, when the server refuses.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self.alive:
            future.set_exception(Lost("The connection is closed."))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        if not self._waiting:
            self.heard = self._loop.time()
        self._out.append(_pack(command))
        self._waiting.append(future)
        return future

    @property
    def run(self) -> str:
        """Which run of the server this is. A server that begins again has another one; one that becomes a replica, and
        then a primary again, has not.
        """
        return self.info["run_id"][:_RUN_DIGITS]

    @property
    def waiting(self) -> int:
        """How many replies are to come."""
        return len(self._waiting)

    def close(self) -> None:
        """End it. What is under way is lost."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self.alive = True
        self.heard = self._loop.time()

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        self.heard = self._loop.time()
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _MORE:
                future = waiting.popleft()
                if future.done():  # whoever asked was canceled
                    continue
                if isinstance(reply, Refused):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (Lost, IndexError):  # not the protocol of Redis, or more replies than commands
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and self.alive:
            self._transport.write(b"".join(out))

    def _end(self) -> None:
        if not self.alive:
            return
        self.alive = False
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(Lost("The connection broke."))
                future.exception()  # whoever doesn't wait any more needs no warning
        self._broken(self)


async def dial(tls: ssl.SSLContext | None, host: str, port: int, broken: Callable[[Link], None]) -> Link:
    """A connection on which nothing was asked yet.

    Raises:
        OSError: nobody is there.
    """
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(
        lambda: Link(loop, broken), host, port, ssl=tls, server_hostname=host if tls else None
    )
    return link


async def connect(
    address: Address, host: str, port: int, name: str, broken: Callable[[Link], None], *, any_role: bool = False
) -> Link:
    """Connect to one server, and look at what it is.

    Raises:
        LocalError: it can't be used; trying again won't help as long as nobody changes something.
        OSError: it isn't there, or not yet.
    """
    where = f"Redis at {host}:{port}"
    link = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            link = await dial(address.tls, host, port, broken)
            await _greet(link, address, f"millstream-{name}")
        check(link.info, where, any_role=any_role)
    except BaseException as failure:
        if link is not None:
            link.close()
        if isinstance(failure, TimeoutError):
            hint = " over TLS. If it has none, begin the URL with redis instead of rediss" if address.tls else ""
            raise Lost(f"{where} doesn't answer{hint}.") from None
        if isinstance(failure, Refused):
            raise _explained(failure, where) from None
        if isinstance(failure, ssl.SSLCertVerificationError):
            raise LocalError(
                f"{where} shows a certificate that can't be trusted: {failure.verify_message.rstrip('.')}. In the URL,"
                " name the host as the certificate does, and with ca= the file of the authority that signed it."
            ) from None
        if type(failure) is Lost:
            hint = "a certificate, name yours with cert= and key=" if address.tls else "TLS, begin the URL with rediss"
            raise Lost(f"{where} broke the connection before it said anything. If it wants {hint}.") from None
        raise
    return link


async def _greet(link: Link, address: Address, name: str) -> None:
    """Everything in one round trip; the first refusal is the one that tells."""
    asked: list[asyncio.Future[Any]] = []
    if address.password:
        who = (address.user, address.password) if address.user else (address.password,)
        asked.append(link.ask("AUTH", *who))
    if address.database:
        asked.append(link.ask("SELECT", address.database))
    asked += [link.ask("CLIENT", "SETNAME", name), link.ask("CLIENT", "ID")]
    asked.append(link.ask("INFO", "server", "replication", "memory"))
    await asyncio.wait(asked)
    for failure in [each.exception() for each in asked]:
        if failure is not None:
            raise failure
    replies = [each.result() for each in asked]
    link.id = replies[-2]
    link.info = read_info(replies[-1])


def check(info: dict[str, str], where: str, *, any_role: bool = False) -> None:
    """Whether a server can be the store.

    Raises:
        LocalError: it can't.
        Lost: it can't now: it's a replica, or it loads its data.
    """
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise LocalError(f"{where} is version {version[:20]}. Millstream needs Redis 7.0 or newer, or Valkey.")
    if problem := evicts(info, where):
        raise LocalError(problem)
    if info.get("role") == "slave" and not any_role:
        raise Replica(f"{where} is a read-only replica. Give the address of its primary, or use redis+sentinel://.")


def evicts(info: dict[str, str], where: str) -> str:
    """Why a server may drop what it was given; empty where it doesn't."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or info.get("maxmemory", "0") == "0":
        return ""
    return (
        f"{where} evicts data when its memory is full (maxmemory-policy {policy[:32]}), which would lose sessions"
        " and events in silence. Set maxmemory-policy to noeviction."
    )


def read_info(reply: bytes) -> dict[str, str]:
    """What a server says about itself."""
    return dict(line.split(":", 1) for line in str(reply, "utf-8", "replace").splitlines() if ":" in line)


class Replica(Lost):
    """The server is a replica, perhaps only until it is promoted."""


def _explained(failure: Refused, where: str) -> Exception:
    """A refusal of the greeting as an error that says what to do."""
    code, text = failure.code, str(failure)
    if code == "NOAUTH":
        return LocalError(f"{where} wants a user or password. Write it into the URL: redis://USER:PASSWORD@HOST.")
    if code == "WRONGPASS" or "AUTH" in text or "password" in text:
        return LocalError(f"{where} refuses the user or password in the URL of the store.")
    if code == "NOPERM" or "unknown command" in text:
        return LocalError(f"{where} refuses commands that Millstream needs: {text[:200]}. {ALLOW}")
    if "DB index" in text:
        return LocalError(
            f"{where} has no database of that number. Correct it, or leave it out: it's the last part of the URL."
        )
    if code in ("LOADING", "MASTERDOWN", "BUSY") or "max number of clients" in text:
        return Lost(f"{where} isn't ready: {text[:100]}")
    if "syntax error" in text:
        return LocalError(f"{where} is too old. Millstream needs Redis 7.0 or newer, or Valkey.")
    return LocalError(f"{where} refuses the connection: {text[:200]}")
