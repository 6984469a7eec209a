"""The connection to NATS: its address, requests with retries, JetStream streams, and reads of their messages.

Reads by `last` and `first` go to the leader of a JetStream stream, so they see every acknowledged write, except briefly
after an election. A lagging replica may answer `batch`, so callers compare its result with `last`.
"""

import asyncio
import base64
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import nats
import nats.errors
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import Json
from millstream._stores.base import ONCE_SECONDS, StoreUnavailable
from millstream._stores.tail import Watchers
from millstream._tasks import SingleFlight, has_failed
from millstream._troubles import LogOnce, Troubles

_PORT = 4222
_MAX_REPLICAS = 5
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SYNTAX = (
    "Write nats://[user:password@ or token@]host[:port][,host…], with ?replicas=1, 3, or 5, ?namespace=name, "
    "?credentials=file. nats+tls:// uses TLS."
)


class NatsAddress(Struct, frozen=True):
    """The servers' addresses and the storage options."""

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    """The path of a credentials file."""
    replicas: int = 1
    namespace: str = "millstream"
    """The prefix of all JetStream stream names."""
    tls: ssl.SSLContext | None = None

    @override
    def __repr__(self) -> str:
        return f"NatsAddress({', '.join(self.servers)})"


def parse_address(url: str) -> NatsAddress:
    """Read a URL.

    Raises:
        LocalError: The URL isn't valid for a NATS store. The text doesn't repeat it, because it may contain a password.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    login, at, hosts = rest.rpartition("@")
    hosts = hosts.rstrip("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    replicas = options.pop("replicas", "1")
    namespace = options.pop("namespace", "millstream")
    credentials = options.pop("credentials", None)
    if options or not hosts or "/" in hosts:
        raise LocalError(f"This NATS store URL is invalid. {_SYNTAX}")
    if not replicas.isdigit() or int(replicas) not in range(1, _MAX_REPLICAS + 1):
        raise LocalError(f"The number of replicas must be 1 to {_MAX_REPLICAS}. {_SYNTAX}")
    if not _NAMESPACE.fullmatch(namespace):
        raise LocalError("A NATS store's namespace must have 1 to 32 letters, digits, hyphens, and underscores.")
    if credentials is not None and not Path(credentials).is_file():
        raise LocalError("The credentials file of the NATS store doesn't exist.")
    user, colon, password = login.partition(":")
    return NatsAddress(
        tuple(f"nats://{_with_port(host)}" for host in hosts.split(",")),
        user=unquote(user) if colon else None,
        password=unquote(password) if colon else None,
        token=unquote(user) if at and not colon else None,
        credentials=credentials,
        replicas=int(replicas),
        namespace=namespace,
        tls=ssl.create_default_context() if scheme.endswith("+tls") else None,
    )


def _with_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(_PORT)
    if not name or not port.isdigit() or not 0 < int(port) < 2**16:
        raise LocalError(f"A server in the NATS store URL has no valid host or port. {_SYNTAX}")
    return f"{name}:{port}"


OLDEST = 2, 12
"""The oldest supported server version, the first with atomic batches."""
CONNECT_SECONDS = 10.0
DEADLINE = 15.0
"""Seconds that an operation is retried, including leader elections."""
_ATTEMPT = 3.0
_PAUSE = 0.1
_CLOCK_EVERY = 30.0

WRONG_LAST = frozenset({10071, 10164})
"""Error codes: the last sequence of a subject isn't the expected one."""
FULL = frozenset({10077, 10047, 10023})
"""Error codes: the JetStream stream, the account, or the server is out of space."""
TOO_LARGE = 10054
_IN_USE = 10058
_STORE_FAILED = 10049
_BUSY = frozenset({409, 429, 503})
"""Status codes of temporary errors: a message with this id is being stored, too many requests, no leader."""
_TRIES = 5
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_DUPLICATES = int(ONCE_SECONDS * 1e9)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class StreamMessage(Struct, frozen=True):
    """A message of a JetStream stream."""

    seq: int
    subject: str
    data: bytes
    headers: dict[str, str]
    at: float
    """Time of storage, by the server's clock."""


CONNECTION_ERRORS = (nats.errors.Error, OSError, RuntimeError)
"""What nats-py raises when it can't send. A connection that was just closed raises RuntimeError on uvloop."""


class JetStreamError(StoreUnavailable):
    """An error reply from JetStream, with its `code`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"NATS rejected a request: {text}.")
        self.code = code


class _Answer(Struct, eq=False):
    """The reply to a request."""

    done: asyncio.Future[Any]
    """The message. For a batch, the last sequence that was sent, or None if messages are missing."""
    batch: list[StreamMessage] | None = None
    """The messages received so far for a batch request."""


class NatsLink:
    """A connection, and the known state of its JetStream streams."""

    def __init__(self, address: NatsAddress) -> None:
        self.address = address
        self.epoch = ""
        self.troubles = Troubles()
        self.epochs = Watchers()
        """Called after the epoch has changed."""
        self.outages = Watchers()
        """Called after pushed messages may have been lost."""
        self._client: Client | None = None
        self._streams: set[str] = set()
        """JetStream streams that exist."""
        self._creations = SingleFlight[None]()
        self._recover_task: asyncio.Task[None] | None = None
        self._last_error: Exception | None = None
        self._offset = 0.0
        self._measured_at = -_CLOCK_EVERY
        self._inbox = ""
        self._numbers = count()
        self._answers: dict[str, _Answer] = {}

    @property
    def client(self) -> Client:
        """The open connection.

        Raises:
            StoreUnavailable: The connection is closed.
        """
        if self._client is None:
            raise StoreUnavailable("The NATS store isn't open. Call open() first.")
        return self._client

    @property
    def max_bytes(self) -> int:
        """Maximum size of a value that the server accepts, in bytes."""
        return self.client.max_payload - 4096

    async def open(self) -> None:
        """Connect and read the epoch.

        Raises:
            LocalError: No server answers, or JetStream is off.
        """
        address = self.address
        options: dict[str, Any] = {"tls": address.tls} if address.tls is not None else {}
        if address.credentials is not None:
            options["user_credentials"] = address.credentials
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._client = await nats.connect(  # pyright: ignore[reportUnknownMemberType]  its options have no types
                    list(address.servers),
                    name="millstream",
                    user=address.user,
                    password=address.password,
                    token=address.token,
                    connect_timeout=2,
                    reconnect_time_wait=0.2,
                    max_reconnect_attempts=-1,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    reconnected_cb=self._on_reconnect,
                    error_cb=self._on_error,
                    **options,
                )
        except CONNECTION_ERRORS as exc:
            why = self._fault or "no response"
            where = ", ".join(address.servers)
            raise LocalError(f"No NATS server can be used at {where}: {why}. Start it, or correct its URL.") from exc
        self._inbox = self._client.new_inbox()
        try:
            version = self._client.connected_server_version
            if (version.major, version.minor) < OLDEST:
                raise LocalError(
                    f"The NATS store needs NATS {OLDEST[0]}.{OLDEST[1]} or newer, not {version.major}.{version.minor}."
                )
            await self.subscribe(f"{self._inbox}.*", self._take)
            await self._find_epoch()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        client, self._client = self._client, None
        if self._recover_task is not None:
            self._recover_task.cancel()
        self._streams.clear()
        self._measured_at = -_CLOCK_EVERY
        for answer in self._answers.values():
            _fail(answer.done, StoreUnavailable("The NATS store is closed."))
        if client is not None:
            with suppress(*CONNECTION_ERRORS):
                await client.close()

    async def subscribe(self, subject: str, take: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Call `take` with each message of a subject.

        Raises:
            StoreUnavailable: There is no connection.
        """
        try:
            return await self.client.subscribe(subject, cb=take)  # pyright: ignore[reportUnknownMemberType]  a bare Future
        except CONNECTION_ERRORS as exc:
            raise StoreUnavailable(f"The NATS store didn't respond: {_text(exc)}.") from exc

    def time(self) -> float:
        """Return the time of the servers."""
        return time.time() + self._offset

    async def _on_reconnect(self) -> None:
        self._streams.clear()
        self._last_error = None
        self.outages.notify_all()
        # Run in a separate task: the client awaits this method and can't reconnect before it returns.
        if self._recover_task is not None:
            self._recover_task.cancel()
        self._recover_task = asyncio.create_task(self._recover())
        self._recover_task.add_done_callback(has_failed)

    async def _recover(self) -> None:
        """Read the epoch and retry until that succeeds, because no later event would trigger it."""
        trouble = LogOnce(
            self.troubles,
            "The epoch can't be read; retrying",
            "The epoch can be read again.",
            catches=Exception,
        )
        while True:
            with trouble, suppress(LocalError):
                return await self._find_epoch()
            await asyncio.sleep(_PAUSE)

    @property
    def _fault(self) -> str:
        """Why there's no connection, as the servers or the network say, or empty."""
        is_connected = self._client is not None and self._client.is_connected
        return "" if is_connected or self._last_error is None else _text(self._last_error)

    async def _on_error(self, error: Exception) -> None:
        if _detail(error) >= _detail(self._last_error):
            self._last_error = error
        if isinstance(error, nats.errors.SlowConsumerError):
            self.outages.notify_all()

    # Requests

    async def api(self, subject: str, body: object = None) -> Json:
        """Send a request to the JetStream API and return the reply.

        Raises:
            StoreUnavailable: JetStream didn't respond in time.
            JetStreamError: JetStream replied with an error.
        """
        data = b"" if body is None else _encode(body)
        return await self._request(f"$JS.API.{subject}", data)

    async def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        *,
        config: Callable[[], Json] | None,
    ) -> tuple[int, bool]:
        """Add a message to a JetStream stream, at most once. Create the stream, unless `config` is None.

        Return its sequence, and whether the stream had a message with this id before the first attempt.

        Raises:
            StoreUnavailable: JetStream didn't acknowledge it in time. It may or may not have been added.
            JetStreamError: JetStream rejected it.
        """
        headers.setdefault("Nats-Msg-Id", f"{self._inbox}.{next(self._numbers)}")
        reply = await self._request(subject, data, headers, stream, config)
        return int(reply["seq"]), bool(reply.get("duplicate") and not reply.get("retried"))

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a message without waiting for a reply.

        Raises:
            StoreUnavailable: There is no connection.
        """
        try:
            await self._publish(subject, data, headers=headers)
        except CONNECTION_ERRORS as exc:
            raise StoreUnavailable(f"The NATS store didn't respond: {_text(exc)}.") from exc

    async def _publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        try:
            await self.client.publish(subject, data, reply, headers)
        except RuntimeError:
            # The client's tasks that would notice a closed connection may also have ended with this error.
            await self.client.force_reconnect()
            raise

    async def _request(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        stream: str = "",
        config: Callable[[], Json] | None = None,
    ) -> Json:
        until = time.monotonic() + DEADLINE
        last: Exception | None = None
        why = ""
        while (left := until - time.monotonic()) > 0:
            if config is not None:
                await self.ensure(stream, config)
            try:
                reply = _decode((await self._ask(subject, data, headers, min(left, _ATTEMPT))).data)
            except nats.errors.NoRespondersError as exc:
                last = exc
                self._streams.discard(stream)
                await asyncio.sleep(_PAUSE)
                continue
            except nats.errors.MaxPayloadError as exc:
                raise JetStreamError(TOO_LARGE, "larger than the server allows") from exc
            except CONNECTION_ERRORS as exc:
                last = exc
                if not isinstance(exc, TimeoutError):
                    await asyncio.sleep(_PAUSE)
                continue
            error = reply.get("error")
            if error is None:
                return reply if last is None else {**reply, "retried": True}
            why = error.get("description", "")
            if error.get("code") not in _BUSY:
                raise JetStreamError(error.get("err_code", 0), why)
            await asyncio.sleep(_PAUSE)
        if isinstance(last, nats.errors.NoRespondersError):
            why = "JetStream isn't running. Start the NATS server with -js, or with jetstream {} in its file"
        raise StoreUnavailable(
            f"The NATS store didn't respond within {DEADLINE:g} s: {self._fault or why or _text(last)}."
        )

    async def _ask(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None,
        seconds: float,
        batch: list[StreamMessage] | None = None,
    ) -> Any:
        """Send one request. The client's own method may lose cancellations on Python 3.11."""
        mark, loop = str(next(self._numbers)), asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._answers[mark] = _Answer(answer, batch)
        timer = loop.call_later(seconds, _fail, answer, TimeoutError())  # cheaper than `asyncio.timeout`
        try:
            await self._publish(subject, data, f"{self._inbox}.{mark}", headers)
            return await answer
        finally:
            timer.cancel()
            del self._answers[mark]

    # Streams

    async def ensure(self, name: str, config: Callable[[], Json]) -> None:
        """Create a JetStream stream if it doesn't exist."""
        if name not in self._streams:
            await self._creations.run(name, lambda: self._create(name, config))
            self._streams.add(name)

    async def _create(self, name: str, config: Callable[[], Json]) -> None:
        try:
            await self.info(name)
        except JetStreamError as exc:
            if exc.code != _NO_STREAM:
                raise
            # A re-created stream must not reuse sequences of the deleted one.
            first = time.time_ns() // 1000
            whole = {
                "name": name,
                "retention": "limits",
                "storage": "file",
                "num_replicas": self.address.replicas,
                "first_seq": first,
                "duplicate_window": _DUPLICATES,
                **config(),
            }
            for left in reversed(range(_TRIES)):
                try:
                    await self.api(f"STREAM.CREATE.{name}", whole)
                except JetStreamError as refused:
                    if refused.code == _IN_USE:  # another worker created it first
                        return
                    if not left or refused.code != _STORE_FAILED:
                        raise
                    await asyncio.sleep(_PAUSE)
                else:
                    return

    async def info(self, name: str, **options: Any) -> Json:
        """Return the state of a JetStream stream. Also sync the clock with the server's."""
        began = time.time()
        reply = await self.api(f"STREAM.INFO.{name}", options or None)
        if time.monotonic() - self._measured_at > _CLOCK_EVERY and "ts" in reply:
            self._measured_at = time.monotonic()
            self._offset = parse_time(reply["ts"]) - (began + time.time()) / 2
        return reply

    async def size(self, name: str) -> int:
        """Return the bytes in a JetStream stream, or 0 if it doesn't exist."""
        try:
            return int((await self.info(name))["state"]["bytes"])
        except JetStreamError:
            return 0

    async def _find_epoch(self) -> None:
        name = f"{self.address.namespace}-meta"
        subjects = [f"{self.address.namespace}.meta.>"]
        try:
            await self.ensure(
                name,
                lambda: {"subjects": subjects, "max_msgs_per_subject": 1, "metadata": {"epoch": secrets.token_hex(6)}},
            )
            found = (await self.info(name))["config"]["metadata"]["epoch"]
        except JetStreamError as exc:
            raise StoreUnavailable(f"{exc} Check that JetStream is enabled and that enough nodes are up.") from exc
        before, self.epoch = self.epoch, found
        if before not in ("", found):
            self.outages.notify_all()
            self.epochs.notify_all()

    # Messages

    async def last(self, stream: str, subject: str) -> StreamMessage | None:
        """Return the newest message of a subject, read from the leader. Wildcards are allowed."""
        return await self._get(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str, seq: int) -> StreamMessage | None:
        """Return the oldest message of a subject at or after a sequence, read from the leader."""
        return await self._get(stream, {"next_by_subj": subject, "seq": seq})

    async def _get(self, stream: str, body: Json) -> StreamMessage | None:
        try:
            found = (await self.api(f"STREAM.MSG.GET.{stream}", body))["message"]
        except JetStreamError as exc:
            if exc.code in (_NO_MESSAGE, _NO_STREAM):
                return None
            raise
        headers = _parse_headers(base64.b64decode(found["hdrs"])) if "hdrs" in found else {}
        data = base64.b64decode(found.get("data", ""))
        return StreamMessage(found["seq"], found["subject"], data, headers, parse_time(found["time"]))

    async def batch(self, stream: str, subject: str, seq: int, most: int, max_bytes: int) -> list[StreamMessage]:
        """Return messages of a subject from a sequence on, read from any replica.

        Raises:
            StoreUnavailable: No replica answered in time.
        """
        body = _encode({"seq": seq, "next_by_subj": subject, "batch": most, "max_bytes": max_bytes})
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            found = list[StreamMessage]()
            try:
                end = await self._ask(f"$JS.API.DIRECT.GET.{stream}", body, None, _ATTEMPT, found)
            except TimeoutError:
                continue
            except CONNECTION_ERRORS:
                await asyncio.sleep(_PAUSE)
                continue
            if end is not None and (not found or found[-1].seq == end):
                return found
        raise StoreUnavailable(f"The NATS store didn't respond within {DEADLINE:g} s.")

    async def count_from(self, stream: str, subject: str, seq: int) -> tuple[int, int]:
        """Return a subject's first sequence from `seq` on, and the number of messages from there, or 0 if there are
        none."""
        found = await self.batch(stream, subject, seq, 1, 1)
        return (found[0].seq, int(found[0].headers.get("Nats-Num-Pending", 0)) + 1) if found else (0, 0)

    async def _take(self, msg: Msg) -> None:
        answer = self._answers.get(msg.subject.rpartition(".")[2])
        if answer is None or answer.done.done():
            return
        headers, found = dict(msg.headers or {}), answer.batch
        status, before = headers.get("Status"), int(headers.get("Nats-Last-Sequence", 0))
        if status == "503" and not msg.data:
            answer.done.set_exception(nats.errors.NoRespondersError())
        elif found is None:
            answer.done.set_result(msg)
        elif status is not None:
            answer.done.set_result(before if status in {"204", "404"} else None)
        elif found and before != found[-1].seq:
            answer.done.set_result(None)
        else:
            seq, at = int(headers["Nats-Sequence"]), parse_time(headers["Nats-Time-Stamp"])
            found.append(StreamMessage(seq, headers["Nats-Subject"], msg.data, headers, at))

    async def purge(self, stream: str, subject: str, *, before: int) -> None:
        """Delete the messages of a subject before a sequence."""
        try:
            await self.api(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": before})
        except JetStreamError as exc:
            if exc.code != _NO_STREAM:
                raise

    async def subjects(self, stream: str, subject: str) -> list[str]:
        """Return the subjects in a JetStream stream that match a wildcard subject."""
        found: list[str] = []
        while True:
            try:
                reply = await self.info(stream, subjects_filter=subject, offset=len(found))
            except JetStreamError as exc:
                if exc.code == _NO_STREAM:
                    return []
                raise
            page: dict[str, int] = reply["state"].get("subjects") or {}
            found += page
            if not page or len(found) >= reply.get("total", len(found)):
                return found

    async def names(self, subject: str) -> list[str]:
        """Return the names of the JetStream streams with subjects that match."""
        reply = await self.api("STREAM.NAMES", {"subject": subject})
        return list(reply.get("streams") or [])


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


@lru_cache(maxsize=1024)
def token(name: str) -> str:
    """Encode a name as one segment of a subject, which can also be part of a JetStream stream's name."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=") or "_"


@lru_cache(maxsize=1024)
def read_token(text: str) -> str:
    """Decode a segment that `token` encoded."""
    return "" if text == "_" else base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def parse_time(text: str) -> float:
    """Return the Unix time of an RFC 3339 time with up to nine fractional digits."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


def _parse_headers(raw: bytes) -> dict[str, str]:
    lines = raw.decode().split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _detail(error: BaseException | None) -> int:
    """Return how much an error says. A refused sign-in says more than the end of the connection after it."""
    if error is None or isinstance(error, nats.errors.StaleConnectionError):
        return 0
    return 1 if isinstance(error, OSError) else 2


def _text(error: BaseException | None) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__
