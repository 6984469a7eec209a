"""Messages between the workers that share a store, to all of them or to one.

Data that must not be lost is in the store. A message announces it, or asks for work on a running call. Each message has
a MAC with the server's secret, so access to the store isn't enough to forge one. With a store that isn't shared, there
are no other workers, and nothing is sent.

Logs drop their oldest messages, whose owner may be another client. Messages with client data are therefore delivered
with a receipt (`Peers.deliver`), and large ones are stored in the map, which has a share for each owner.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Share
from millstream._recent import Recent
from millstream._stores.base import StoreFull, StoreUnavailable
from millstream._stores.rates import share_for
from millstream._stores.store import Store
from millstream._tasks import Tasks
from millstream._troubles import LogOnce, run_on


class PeerMessage(Struct, frozen=True, array_like=True):
    """A message from one worker to another. Its tag is its name on the wire."""


class RecordUpdate(PeerMessage, frozen=True, tag="record"):
    """A session has a new or changed record."""

    session: str


class AnswerMessage(PeerMessage, frozen=True, tag="answer"):
    """A client answered a question from a call on the receiver."""

    session: str
    id: str
    result: bytes
    error: bytes


class CancelCall(PeerMessage, frozen=True, tag="cancel"):
    """A client canceled a call."""

    session: str
    id: bytes
    """JSON, because an integer can have more than 64 bits."""
    reason: str = ""


class SessionEnd(PeerMessage, frozen=True, tag="end"):
    """A session was deleted."""

    session: str


class HolderChange(PeerMessage, frozen=True, tag="holder"):
    """The sender serves a caller or a session whose state was on another worker. See `Services.hand_over`."""

    owner: str


class StreamTakeover(PeerMessage, frozen=True, tag="stream"):
    """A connection to the sender has taken over a stream. The last announcement wins."""

    name: str
    """Identifies the stream: a session id for a GET stream, or the name of the log for a call's stream."""
    id: int


class PostedMessage(PeerMessage, frozen=True, tag="post"):
    """A client sent a message for a connection on the receiver."""

    connection: str
    body: bytes


class ResourceUpdate(PeerMessage, frozen=True, tag="update"):
    """A resource changed."""

    uri: str


class ExtensionBroadcast(PeerMessage, frozen=True, tag="broadcast"):
    """A notification of an extension for the sessions of every worker."""

    extension: str
    """The identifier that a client must have declared."""
    message: bytes


class ItemRemoval(PeerMessage, frozen=True, tag="remove"):
    """A registered item was removed."""

    kind: str
    key: str


class ItemSwitch(PeerMessage, frozen=True, tag="switch"):
    """A registered item was enabled or disabled."""

    kind: str
    key: str
    on: bool
    at: int = 0
    """A stamp (see `Peers.stamp`). The last change wins."""


class WorkerStart(PeerMessage, frozen=True, tag="join"):
    """The sender has just started. It has only the items that its program registers."""


class MissedMessages(PeerMessage, frozen=True, tag="miss"):
    """The sender may have missed messages from other workers."""


class WorkerGreeting(PeerMessage, frozen=True, tag="present"):
    """The sender was running before a worker that has just started."""


class StatsRequest(PeerMessage, frozen=True, tag="ask"):
    """A worker's question to the others. See `WorkerQueries`."""

    number: int
    about: bytes


class StatsReply(PeerMessage, frozen=True, tag="tell"):
    """The reply to a `StatsRequest`."""

    number: int
    answer: bytes


class PartMessage(PeerMessage, frozen=True, tag="part"):
    """A message of a part: ``await host.services.peers.send(worker, PartMessage("shop", body))``.

    Receive it with ``peers.on(PartMessage, receive)``, on every worker. Ignore other parts' messages.
    """

    part: str
    """Name of the part."""
    body: bytes


class StoredMessage(PeerMessage, frozen=True, tag="stored"):
    """A large message for the receiver is stored in the map."""

    key: str


class Receipt(PeerMessage, frozen=True, tag="receipt"):
    """The sender has received a message."""

    stamp: int


Message = (
    RecordUpdate
    | AnswerMessage
    | CancelCall
    | SessionEnd
    | HolderChange
    | StreamTakeover
    | PostedMessage
    | ResourceUpdate
    | ExtensionBroadcast
    | ItemRemoval
    | ItemSwitch
    | WorkerStart
    | MissedMessages
    | WorkerGreeting
    | StatsRequest
    | StatsReply
    | PartMessage
    | StoredMessage
    | Receipt
)


LEEWAY = 60.0
"""Seconds that data sealed by one worker still opens on another after its expiry."""
WINDOW = 300.0
"""Maximum difference in seconds between a message's time and ours. After a change to the store's clock, workers' stamps
differ until every worker has noticed.
"""
PAUSE = 1.0
"""Delay in seconds before a failed store is used again."""
_TOPIC = "workers"
_LABEL = b"millstream worker messages v1"
_MAC_BYTES = 16
_MAX_WAITING = 10_000
_MAX_SEEN = 50_000
MAX_UNRECEIVED = 1_000
"""Maximum messages without a receipt, half of them for one owner."""
_LARGE = 16 * 1024
"""Minimum bytes of a message that is stored in the map."""
RECEIPT_TIMEOUT = 30.0
"""Seconds to wait for a receipt."""

_logger = logging.getLogger("millstream")


class _Envelope(Struct, frozen=True, array_like=True):
    """A message in transit, after its MAC."""

    sender: str
    to: str
    """The receiving worker, or empty for all."""
    stamp: int
    message: Message
    receipt: bool = False
    """Whether the sender waits for a receipt."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Envelope).decode
M = TypeVar("M")


class Peers:
    """The other workers that share the store."""

    def __init__(self, store: Store, values: Sequence[bytes]) -> None:
        """Create the object. No messages arrive before `open`.

        Args:
            store: The shared store.
            values: The server's secrets (see `use`).
        """
        self._store = store
        self.shared: bool = store.shared
        """Whether there are other workers. If not, nothing is sent."""
        self._keys: list[bytes] = []
        self._receivers: dict[type, list[Callable[[Any, str], object]]] = {}
        self._own: set[type] = set()
        """Types of messages that this worker also receives from itself."""
        self._interrupted: list[Callable[[], None]] = []
        self._on_loss: list[Callable[[], None]] = []
        self._worker_checks: list[Callable[[], Awaitable[None]]] = [self._check_receivers]
        self._stamp = 0
        self._outage = LogOnce(
            None,  # not every message is sent again
            "Messages to all workers can't be sent",
            "Messages to other workers can be sent again.",
        )
        self._processed: Recent[tuple[str, int], None] = Recent(_MAX_SEEN)
        """Direct messages, and messages with a significant order. Each is processed once, although a repaired store can
        repeat it.
        """
        self._unreceived: dict[int, tuple[str, asyncio.Future[bool]]] = {}
        """Stamp of a message without a receipt so far -> its receiver, and whether it was received."""
        self._share = Share(MAX_UNRECEIVED)
        self._tasks = Tasks()
        self._outbox: dict[Message, None] = {}
        self._workers_changed = asyncio.Event()
        self._stops: list[Callable[[], None]] = []
        self._warned = False
        self.use(values)

    def use(self, values: Sequence[bytes]) -> None:
        """Sign with the first of these secrets, and accept signatures made with any of them."""
        self._keys = [hmac.digest(value, _LABEL, "sha256") for value in values] if self.shared else []

    # Received messages

    def on(self, kind: type[M], receive: Callable[[M, str], object], *, own: bool = False) -> None:
        """Call `receive(message, worker)` in the event loop for every message of a type from another worker.

        Args:
            kind: The message type.
            receive: The function to call.
            own: Also receive this worker's own messages to all. All workers receive these in the same order.
        """
        self._receivers.setdefault(kind, []).append(receive)
        if own:
            self._own.add(kind)

    def on_interruption(self, forget: Callable[[], None]) -> None:
        """Call `forget` after messages may have been lost. State that depends on them must be read again."""
        self._interrupted.append(forget)

    def on_loss(self, lost: Callable[[], None]) -> None:
        """Call `lost` when the store has lost data and has a new epoch."""
        self._on_loss.append(lost)

    def on_workers(self, look: Callable[[], Awaitable[None]]) -> None:
        """Await `look` after workers join or leave. It's repeated if the store doesn't respond."""
        self._worker_checks.append(look)

    def open(self) -> None:
        """Start receiving. The store must be open."""
        self._stops = [self._store.watch(self._lose)]
        if self.shared:
            self._stops.append(self._store.bus.subscribe(_TOPIC, self._receive, interrupted=self._miss))
            self._stops.append(self._store.workers.watch(self._workers_changed.set))
            outage = LogOnce(
                self._store.troubles,
                "A dead worker's calls and sessions can't be cleaned up; retrying",
                "Dead workers' calls and sessions can be cleaned up again.",
            )
            self._tasks.spawn(run_on(self._workers_changed, self._check_workers, outage))

    async def close(self) -> None:
        """Stop receiving and drop queued messages."""
        for stop in self._stops:
            stop()
        await self._tasks.close()

    def _miss(self) -> None:
        for forget in self._interrupted:
            forget()

    def _lose(self) -> None:
        self._miss()
        for lost in self._on_loss:
            lost()

    async def _check_workers(self) -> None:
        for check in self._worker_checks:
            await check()

    def _receive(self, data: bytes) -> None:
        letter = self._open_letter(data)
        if letter is not None:
            self._stamp = max(self._stamp, letter.stamp)
            match letter.message:
                case StoredMessage(key):
                    self._tasks.spawn(self._fetch(key))
                case Receipt(stamp) if stamp in self._unreceived:
                    self._settle(stamp, received=True)
                case message:
                    self._hand_out(message, letter.sender)
            if letter.receipt:
                self._tasks.spawn(self._acknowledge(letter))

    def _hand_out(self, message: Message, sender: str) -> None:
        for receive in self._receivers.get(type(message), ()):
            try:
                receive(message, sender)
            except Exception:
                _logger.exception("A message from another worker couldn't be processed.")

    async def _fetch(self, key: str) -> None:
        with suppress(LocalError, OSError):
            if data := await self._store.kv.get(key):
                self._receive(data)
                await self._store.kv.delete(key)

    async def _acknowledge(self, letter: _Envelope) -> None:
        with suppress(LocalError, OSError):
            await self.send(letter.sender, Receipt(letter.stamp))

    def _settle(self, stamp: int, *, received: bool) -> None:
        future = self._unreceived[stamp][1]
        if not future.done():
            future.set_result(received)

    async def _check_receivers(self) -> None:
        workers = self._store.workers
        await workers.read()
        for stamp, (worker, _) in self._unreceived.items():
            if worker in workers.dead:
                self._settle(stamp, received=False)

    def _open_letter(self, data: bytes) -> _Envelope | None:
        """Return a valid message from another worker, or from this one if requested, else None."""
        mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(key, body)) for key in self._keys):
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "A message between workers has no valid signature. Check that all workers use the same key."
                )
            return None
        try:
            letter = _decode(body)
        except msgspec.DecodeError:  # message from another version, during a deployment
            return None
        me = self._store.workers.me
        late = abs(letter.stamp / 1e6 - self._store.time()) > WINDOW
        ordered = type(letter.message) in self._own
        if late or (letter.sender == me and not ordered) or (letter.to and letter.to != me):
            return None
        if letter.to or ordered:
            mark = (letter.sender, letter.stamp)
            if mark in self._processed:
                return None
            self._processed.keep(mark, None)
        return letter

    # Sent messages

    def is_me(self, worker: str) -> bool:
        """Return whether a name is or was this worker's."""
        return worker in self._store.workers.names

    def stamp(self) -> int:
        """Return a timestamp in microseconds that's greater than any message's sent or received so far."""
        now = int(self._store.time() * 1e6)
        if self._stamp > now + WINDOW * 1e6:  # the clock was set back so far that no worker would accept the message
            self._stamp = now
        self._stamp = max(self._stamp + 1, now)
        return self._stamp

    async def broadcast(self, message: Message) -> bool:
        """Send a message to all other workers. Return False if the store doesn't respond; messages are only hints."""
        if not self.shared:
            return False
        was_out = self._outage.lasts
        with self._outage:
            await self._store.bus.publish(_TOPIC, self._seal("", message))
            return True
        if not was_out:
            for waiting in list(self._outbox):
                self._hear_alone(waiting)
        return False

    def broadcast_soon(self, message: Message) -> None:
        """Queue a message for all other workers and retry until it's sent. Duplicates in the queue are sent once.

        For types that this worker also receives, a message that can't be sent is received here immediately, and
        possibly again later. If the queue is full, the oldest message is dropped.
        """
        if not self.shared:
            return
        if self._outage.lasts:
            self._hear_alone(message)
        if message in self._outbox:
            return
        if len(self._outbox) >= _MAX_WAITING:
            oldest = next((each for each in self._outbox if type(each) in self._own), next(iter(self._outbox)))
            del self._outbox[oldest]
        self._outbox[message] = None
        self._tasks.spawn_once(self._send_waiting)

    async def _send_waiting(self) -> None:
        while self._outbox:
            del self._outbox[message := next(iter(self._outbox))]
            was_out = self._outage.lasts
            try:
                sent = await self.broadcast(message)
            except Exception:
                _logger.exception("A message to the other workers can't be sent.")
                continue
            if not sent:
                if not was_out:
                    self._hear_alone(message)
                self._outbox = {message: None, **self._outbox}
                await asyncio.sleep(PAUSE)

    def _hear_alone(self, message: Message) -> None:
        if type(message) in self._own:
            self._hand_out(message, self._store.workers.me)

    async def send(self, worker: str, message: Message) -> bool:
        """Send to one worker. Return False if its lease is over or it's unknown.

        Raises:
            LocalError: The store doesn't respond.
        """
        if not self.shared or worker == self._store.workers.me:
            return False
        return await self._store.bus.send(worker, _TOPIC, self._seal(worker, message))

    async def deliver(self, worker: str, message: Message, owner: str) -> bool:
        """Send client data to a worker and wait for the receipt. Return False if its lease is over or it's unknown.

        Args:
            owner: The client's owner, whose share the message uses until then.

        Raises:
            StoreFull: The owner has too many messages to other workers.
            LocalError: The worker or the store doesn't respond.
        """
        if not self.shared or worker == self._store.workers.me:
            return False
        if not self._share.take(owner):
            raise StoreFull("Too many messages are waiting for another worker.")
        stamp = self.stamp()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unreceived[stamp] = worker, future
        try:
            async with asyncio.timeout(RECEIPT_TIMEOUT):
                data = self._seal(worker, message, stamp, receipt=True)
                if len(data) >= _LARGE:
                    key = f"letter:{share_for(owner)}.{secrets.token_hex(16)}"
                    await self._store.kv.put(key, data, WINDOW)
                    data = self._seal(worker, StoredMessage(key), self.stamp())
                return await self._store.bus.send(worker, _TOPIC, data) and await future
        except TimeoutError as exc:
            raise StoreUnavailable("The other worker doesn't respond.") from exc
        finally:
            del self._unreceived[stamp]
            self._share.leave(owner)

    def _seal(self, to: str, message: Message, stamp: int = 0, *, receipt: bool = False) -> bytes:
        body = _encode(_Envelope(self._store.workers.me, to, stamp or self.stamp(), message, receipt))
        return _mac(self._keys[0], body) + body


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_MAC_BYTES]
