"""Commands to Redis through redis-py's connections. One writer task sends queued commands together.

Repeatable commands are retried for up to `PATIENCE` seconds. Other commands are retried only if they certainly didn't
run. Permanent errors are raised immediately.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import hiredis
from msgspec import Struct, field
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millstream._protocol.errors import LocalError
from millstream._stores.base import OwnerQuotaExceeded, StoreFull, StoreUnavailable, StreamSealed
from millstream._stores.redis.address import RedisAddress
from millstream._stores.redis.keys import Script, script
from millstream._tasks import cancel_all, is_canceled, retry_delay
from millstream._troubles import LogOnce, Troubles

PATIENCE = 5.0
"""Seconds that a caller waits for an unavailable store."""
SILENCE = 4.0
"""Seconds without a reply after which a connection is treated as broken."""
EXCHANGE_SECONDS = 4.0
"""Seconds to wait for the replies to a pipeline."""
CONNECT_SECONDS = 3.0
START_SECONDS = 10.0
"""Seconds to wait for Redis at startup."""
LOOK = 60.0
"""Seconds between checks of the Redis settings, which can change at runtime."""
ALLOW = "Allow them with ACL SETUSER, or remove their rename-command."
"""Advice for commands that the server rejects."""
_OLDEST = (7, 0)
_MOST = 512
"""Maximum number of commands per pipeline."""
_MAX_QUEUED = 20_000
"""Maximum number of queued commands. Further commands are rejected, because Redis can't keep up."""
_AGAIN = frozenset(
    {"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "READONLY", "MOVED", "ASK"}
)
"""Error codes of commands that didn't run and may succeed when retried."""
_BROKEN = (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError)
"""Errors of redis-py for an unreachable server. `TimeoutError` is an `OSError`."""

Argument = str | bytes | int

_hiredis: Any = hiredis  # its types allow only one part in a command

_logger = logging.getLogger("millstream.stores")


class RedisRequest(Struct, eq=False):
    """A command, which its caller may extend until it's sent."""

    script: Script | None
    """The script, or None for a plain command."""
    keys: list[str]
    args: list[Argument]
    again: bool
    confirm: bool
    """Whether replicas must confirm the command, if the URL asks for it."""
    deadline: float
    reply: asyncio.Future[Any]
    text: bool = False
    """Whether to send the script's text, because Redis hasn't cached it."""
    sent: bool = False

    def command(self) -> tuple[Argument, ...]:
        """Return the command's parts."""
        if self.script is None:
            return tuple(self.args)
        name = ("EVAL", self.script.text) if self.text else ("EVALSHA", self.script.digest)
        return (*name, len(self.keys), *self.keys, *self.args)

    def fail(self, failure: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(failure)


class RedisClient(Struct, eq=False):
    """A client for a single server, the primary that Sentinel reports, or the nodes of a Cluster."""

    address: RedisAddress
    _key: str
    """Any key in the Cluster slot that most of the store's keys share."""
    reconnected: Callable[[], None] | None = None
    """Called after a failure, when the server responds again."""
    _redis: Any = None  # redis-py's types differ between its three kinds of clients
    _opened: list[Any] = []
    """Clients to close: the main client, and one for each Sentinel."""
    _connection: Any = None
    """The connection for commands, unless it's a Cluster."""
    _queue: deque[RedisRequest] = field(default_factory=deque[RedisRequest])
    _write_task: asyncio.Task[None] | None = None
    _broken: bool = False
    troubles: Troubles = field(default_factory=Troubles)
    degraded_reason: str = ""
    """Why a server may lose data although it responds, or an empty string."""
    _watch_task: asyncio.Task[None] | None = None

    @property
    def _is_cluster(self) -> bool:
        return self.address.kind == "+cluster"

    @property
    def closed(self) -> bool:
        return self._redis is None

    async def open(self) -> None:
        """Connect and check that the servers are usable. Wait for servers that are still starting.

        Raises:
            LocalError: A server isn't usable, or didn't respond within `START_SECONDS`.
        """
        loop = asyncio.get_running_loop()
        deadline, pauses = loop.time() + START_SECONDS, _pauses()
        why = ""
        while True:
            self._opened = _clients(self.address)
            self._redis = self._opened[0]
            try:
                async with asyncio.timeout_at(deadline):
                    for info in await self._infos():
                        check(info, f"Redis at {self.address}", cluster=self._is_cluster)
            except BaseException as failure:
                await self._disconnect()
                if not isinstance(failure, (*_BROKEN, RedisError)):
                    raise
                if final := _explain(failure, self.address):
                    raise final from None
                before, why = why, _reason(failure, self.address) or why
                if loop.time() >= deadline:
                    raise LocalError(_unreachable(self.address, why)) from None
                if not before:
                    _logger.warning("Redis at %s isn't ready; retrying: %s", self.address, why)
                await asyncio.sleep(next(pauses))
            else:
                break
        self._broken = False
        self._watch_task = asyncio.create_task(self._watch_settings())

    async def close(self) -> None:
        """Disconnect. Pending commands fail."""
        await cancel_all(self._write_task, self._watch_task)
        self._write_task = self._watch_task = None
        await self._disconnect()
        while self._queue:
            self._queue.popleft().fail(_unavailable("it's closed"))

    async def scan(self, pattern: str, page: int) -> list[str]:
        """Return the keys on all servers that match a pattern."""
        if self.closed:
            raise _unavailable("it's closed")
        try:
            async with asyncio.timeout(PATIENCE):
                names = self._redis.scan_iter(match=pattern, count=page)
                found = [name.decode("utf-8", "surrogateescape") async for name in names]
        except (*_BROKEN, RedisError) as failure:
            why = str(_explain(failure, self.address) or failure)
            raise _unavailable(why or "its keys can't be listed") from None
        if is_canceled():
            raise asyncio.CancelledError  # redis-py can swallow it
        return found

    @asynccontextmanager
    async def connection(self, key: str) -> AsyncGenerator[Any, None]:
        """Open a separate connection to the server that has a key.

        Raises:
            OSError: The connection broke.
            StoreUnavailable: Redis rejects a command.
        """
        if self.closed:
            raise ConnectionError("The store is closed.")
        connection: Any = None
        try:
            if self._is_cluster:
                await self._redis.initialize()
                node: Any = self._redis.get_node_from_key(key)
                connection = node.connection_class(**node.connection_kwargs)
            else:
                connection = self._redis.connection_pool.make_connection()
            await connection.connect()
            yield connection
        except ResponseError as failure:
            raise _final(failure) from None
        except (*_BROKEN, RedisError) as failure:
            raise ConnectionError(str(failure)) from None
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)

    async def run(self, name: str, keys: Sequence[str], args: Sequence[Argument], *, again: bool = True) -> Any:
        """Run a script and return its result. Takes the same arguments and raises the same errors as `send`."""
        return await self.send(name, keys, args, again=again).reply

    def send(
        self,
        name: str,
        keys: Sequence[str],
        args: Sequence[Argument],
        *,
        again: bool = True,
        confirm: bool = False,
    ) -> RedisRequest:
        """Send a script and return the request with its pending reply.

        Args:
            name: The name of the script, or empty for the plain command in `args`.
            keys: Its keys, all in one slot.
            args: Its arguments.
            again: Whether it may run twice, because it recognizes retries, or the second time changes nothing.
            confirm: Whether replicas must confirm it, if the URL asks for it.

        Raises:
            StoreUnavailable: No answer came in time.
            StoreFull: There isn't enough space.
            StreamSealed: The stream has its last entry.
        """
        if self.closed:
            raise _unavailable("it's closed")
        if len(self._queue) >= _MAX_QUEUED:
            raise _unavailable("too many commands are queued for Redis")
        "".join(keys).encode()  # a key that can't be sent must not fail others
        loop = asyncio.get_running_loop()
        deadline, reply = loop.time() + PATIENCE, loop.create_future()
        request = RedisRequest(script(name) if name else None, [*keys], [*args], again, confirm, deadline, reply)
        self._queue.append(request)
        if self._write_task is None:
            self._write_task = asyncio.create_task(self._write())
        return request

    async def _write(self) -> None:
        """Send queued commands, one pipeline after another, until the queue is empty."""
        queue, pauses = self._queue, _pauses()
        loop = asyncio.get_running_loop()
        try:
            while queue:
                batch = [queue.popleft() for _ in range(min(_MOST, len(queue)))]
                batch = [request for request in batch if not request.reply.done()]
                for request in batch:
                    request.sent = True
                if not batch:
                    continue
                sent = False
                try:
                    async with asyncio.timeout_at(min(batch[0].deadline, loop.time() + EXCHANGE_SECONDS)):
                        if self._broken:
                            await self._reconnect()
                            self._broken, pauses = False, _pauses()
                        sent = True
                        replies = await self._send(batch)
                except (*_BROKEN, RedisError) as failure:
                    final = _explain(failure, self.address)
                    self._broken = True
                    replies = [failure if final is None else _unavailable(str(final)) for _ in batch]
                except BaseException:
                    for request in batch:
                        request.fail(_unavailable("it's closed"))
                    raise
                self._answer(batch, replies, sent=sent)
                if self._broken:
                    await asyncio.sleep(next(pauses))
        finally:
            self._write_task = None

    async def _send(self, batch: Sequence[RedisRequest]) -> list[Any]:
        """Return the reply to each command, or its exception."""
        commands = [request.command() for request in batch]
        confirmed = [number for number, request in enumerate(batch) if request.confirm] if self.address.wait else []
        wait = ("WAIT", self.address.wait, int(SILENCE * 500))
        if self._is_cluster:
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            for node in {self._redis.get_node_from_key(batch[number].keys[0]) for number in confirmed}:
                pipeline.execute_command(*wait, target_nodes=node)
            replies = await pipeline.execute(raise_on_error=False)
        else:
            replies = await self._exchange([*commands, wait] if confirmed else commands)
        replicas = replies[len(batch) :]
        if confirmed and not all(isinstance(count, int) and count >= self.address.wait for count in replicas):
            text = f"it was stored, but fewer than {self.address.wait} replicas confirmed it"
            for number in confirmed:
                if not isinstance(replies[number], Exception):
                    replies[number] = _unavailable(text)
        return list(replies[: len(batch)])

    async def _exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send commands on one connection, within the caller's time limit. redis-py's pipelines take twice as long."""
        pool = self._redis.connection_pool
        connection = self._connection
        if connection is None:
            self._connection = connection = await pool.get_connection()
            connection.socket_timeout = None
        else:
            await pool.ensure_connection(connection)
        await connection.send_packed_command(b"".join(map(_hiredis.pack_command, commands)), check_health=False)
        replies = list[Any]()
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as failure:
                replies.append(failure)
        return replies

    def _answer(self, batch: Sequence[RedisRequest], replies: Sequence[Any], *, sent: bool) -> None:
        """Pass each caller its reply. Requeue the commands that may be retried and have time left."""
        now, waiting = asyncio.get_running_loop().time(), list[RedisRequest]()
        for request, reply in zip(batch, replies, strict=True):
            if request.reply.done():
                continue
            if not isinstance(reply, Exception):
                request.reply.set_result(reply)
            elif isinstance(reply, LocalError):
                request.fail(reply)
            elif isinstance(reply, NoScriptError):
                request.text = True
                waiting.append(request)
            elif isinstance(reply, ResponseError) and _code(reply) not in _AGAIN:
                request.fail(_final(reply))
            else:
                is_refused = isinstance(reply, ResponseError)
                self._broken = True  # look for the server that has the key now
                if request.deadline > now and (is_refused or request.again or not sent):
                    waiting.append(request)
                else:
                    why = "it can't accept commands at the moment" if is_refused else _reason(reply, self.address)
                    request.fail(_unavailable(why or "it doesn't respond"))
        self._queue.extendleft(reversed(waiting))

    async def _reconnect(self) -> None:
        """Wait until the server responds. None of the queued commands has been sent."""
        if self._is_cluster:
            await self._redis.aclose()
            await self._redis.initialize()
            await self._redis.execute_command("TIME", target_nodes=self._redis.get_node_from_key(self._key))
        else:
            if self._connection is not None:  # its server may no longer be the primary
                await self._connection.disconnect()
            await self._redis.execute_command("TIME")
        if self.reconnected is not None:
            self.reconnected()

    async def _disconnect(self) -> None:
        self._redis = self._connection = None
        clients, self._opened = self._opened, []
        for client in clients:
            with suppress(RedisError, OSError):
                await client.aclose()

    async def _infos(self) -> list[dict[str, Any]]:
        """Return the result of INFO from each primary."""
        if self._is_cluster:
            await self._redis.initialize()
            nodes = self._redis.get_primaries()
            return [await self._redis.execute_command("INFO", target_nodes=node) for node in nodes]
        info = await self._redis.execute_command("INFO")
        await self._redis.connection_pool.disconnect(inuse_connections=False)  # commands have their own connection
        return [info]

    async def _watch_settings(self) -> None:
        trouble = LogOnce(
            self.troubles,
            "Whether Redis evicts data can't be checked; retrying",
            "Whether Redis evicts data can be checked again.",
            catches=Exception,
        )
        while True:
            await asyncio.sleep(LOOK)
            with trouble:
                await self.look()

    async def look(self) -> None:
        """Check whether any server has begun to evict data."""
        try:
            infos = await self._infos()
        except (*_BROKEN, RedisError):
            return  # The next command reports it.
        before = self.degraded_reason
        self.degraded_reason = next(filter(None, (evicts(info, "Redis") for info in infos)), "")
        if self.degraded_reason and not before:
            _logger.error("%s", self.degraded_reason)
        elif before and not self.degraded_reason:
            _logger.warning("Redis no longer evicts data.")


def _clients(address: RedisAddress) -> list[Any]:
    """Return the redis-py client, which connects on first use, and any Sentinel clients it uses."""
    options: dict[str, Any] = {
        "username": address.user or None,
        "password": address.password or None,
        "socket_timeout": SILENCE,
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "millstream",
        "driver_info": None,
        **address.tls,
    }
    if address.kind == "+cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        return [RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)]
    options["db"] = address.database
    if address.kind == "+sentinel":
        own = {"username": address.sentinel_user or None, "password": address.sentinel_password or None}
        make: Any = Sentinel  # redis-py has no types for this
        sentinels = make(address.hosts, sentinel_kwargs={**options, **own, "db": 0}, **options)
        return [sentinels.master_for(address.service), *sentinels.sentinels]
    host, port = address.hosts[0]
    return [Redis(host=host, port=port, **options)]


def check(info: dict[str, Any], where: str, *, cluster: bool) -> None:
    """Raise `LocalError` if a server can't be used as the store."""
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise LocalError(f"{where} is version {version[:20]}. Use Redis 7.0 or newer, or Valkey.")
    if problem := evicts(info, where):
        raise LocalError(problem)
    if info.get("cluster_enabled") and not cluster:
        raise LocalError(f"{where} is part of a Cluster. Start its URL with redis+cluster://.")
    if info.get("role") == "slave":
        raise RedisConnectionError(
            f"{where} is a read-only replica. Use the address of its primary, or a redis+sentinel:// URL."
        )


def evicts(info: dict[str, Any], where: str) -> str:
    """Return why a server may evict data, or an empty string."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction" or not int(info.get("maxmemory", 0)):
        return ""
    return (
        f"{where} evicts data when its memory is full (maxmemory-policy {policy[:32]}), which would silently "
        "lose sessions and events. Set maxmemory-policy to noeviction."
    )


def _pauses() -> Iterator[float]:
    return (retry_delay(attempt, 0.02, 0.4) for attempt in count())


def _code(failure: BaseException) -> str:
    """Return the code that begins an error reply, such as ``OOM``."""
    return getattr(failure, "status_code", None) or str(failure).partition(" ")[0]


def _unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable(f"The store didn't respond in time: {why}")


def _final(failure: ResponseError) -> LocalError:
    """Return the error to raise for a permanent error reply."""
    code = _code(failure)
    if code == "SEALED":
        return StreamSealed("The stream has ended.")
    if code == "OOM":
        return StoreFull("Redis has reached its maxmemory and rejects writes. Raise maxmemory, or delete other data.")
    if code == "SHAREFULL":
        return OwnerQuotaExceeded("This share of the store is full.")
    if code == "TOOLARGE":
        return StoreFull("The value is larger than the space for its kind.")
    if isinstance(failure, NoPermissionError):
        return StoreUnavailable(
            "Redis doesn't permit the user in the store's URL to run commands that Millstream needs: "
            f"{str(failure)[:100]}. {ALLOW}"
        )
    return StoreUnavailable(f"Redis refused: {str(failure)[:200]}")


def _causes(failure: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = failure
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explain(failure: BaseException, address: RedisAddress) -> LocalError | None:
    """Return the error to raise for a permanent failure, or None if a retry may help."""
    where = f"Redis at {address}"
    for cause in _causes(failure):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LocalError(
                f"The certificate of {where} isn't trusted: {cause.verify_message.rstrip('.')}. In the URL, use "
                "the host name in the certificate, and set ca= to the file of the authority that signed it."
            )
        if isinstance(cause, AuthenticationError):
            if address.password:
                return LocalError(f"{where} rejected the user or password in the store's URL.")
            return LocalError(f"{where} requires a user or password. Add it to the URL: redis://USER:PASSWORD@HOST.")
        if isinstance(cause, NoPermissionError):
            return LocalError(f"{where} rejected commands that Millstream needs: {str(cause)[:200]}. {ALLOW}")
        if isinstance(cause, ResponseError) and _code(cause) not in _AGAIN:
            return LocalError(f"{where} rejected the connection: {str(cause)[:200]}. Correct the URL of the store.")
    return None


def _reason(failure: BaseException, address: RedisAddress) -> str:
    """Return the failure's text, or an empty string."""
    if isinstance(failure, MasterNotFoundError):
        return f"no reachable Sentinel knows a primary for the service {address.service[:64]!r}"
    return str(failure).rstrip(".")


def _unreachable(address: RedisAddress, why: str) -> str:
    if not address.tls:
        hint = "If it requires TLS, start the URL with rediss"
    elif address.tls.get("ssl_certfile"):
        hint = "If it doesn't use TLS, start the URL with redis"
    else:
        hint = (
            "If it requires a certificate from its clients, add cert= and key= to the URL, and if it doesn't use TLS, "
            "start the URL with redis"
        )
    return f"The store at {address} can't be reached: {why or 'no response'}. Start it, or correct its URL. {hint}."
