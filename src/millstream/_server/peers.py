"""Messages between the workers that share a store: to all of them, or to one.

What must not be lost is in the store; a message says that it is there, or asks whoever runs a call to do something.
Each carries a MAC of the server's secret, so nobody who merely writes to the store speaks as a worker. A store that is
not shared has no other workers, and then nothing here costs anything.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._server.peer_messages import Message
from millstream._stores.base import Store

LEEWAY: Final = 60.0
"""Seconds for which what one worker has sealed still opens at another after its time."""
WINDOW: Final = 300.0
"""Seconds by which a message may seem too old or too new. Somebody may have set the store's clock: until each worker
has seen that, what they stamp differs by as much.
"""
PAUSE: Final = 1.0
"""Seconds until a store that failed is asked again."""
_TOPIC: Final = "workers"
_LABEL: Final = b"millstream worker messages v1"
_MAC_BYTES: Final = 16
_MAX_WAITING: Final = 10_000
_MAX_SEEN: Final = 50_000

_logger = logging.getLogger("millstream")


class _Letter(Struct, frozen=True, array_like=True):
    """A message as it travels, behind its MAC."""

    sender: str
    to: str
    """One worker; empty for all."""
    stamp: int
    message: Message


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Letter).decode
M = TypeVar("M")


class Peers:
    """The other workers, as one running server speaks with them."""

    __slots__ = (
        "_changed", "_interrupted", "_keys", "_looking", "_looks", "_lost", "_mute", "_own", "_receivers", "_seen",
        "_sending", "_stamp", "_stops", "_store", "_waiting", "_warned", "shared",
    )  # fmt: skip

    def __init__(self, store: Store, values: Sequence[bytes]) -> None:
        """Nothing is heard before `open`.

        Args:
            store: what the workers share.
            values: the secrets of the server, see `use`.
        """
        # Configuration
        self._store = store
        self.shared: bool = store.shared
        """False: there are no others, and nothing is sent."""
        self._keys: list[bytes] = []
        self._receivers: dict[type, list[Callable[[Any, str], None]]] = {}
        self._own: set[type] = set()
        """Kinds of which this worker's own messages are received, too."""
        self._interrupted: list[Callable[[], None]] = []
        self._lost: list[Callable[[], None]] = []
        self._looks: list[Callable[[], Awaitable[None]]] = []
        # Process
        self._stamp = 0
        self._mute = False
        """The store didn't take the last hint for all workers, and the log says so."""
        self._seen: dict[tuple[str, int], None] = {}
        """Messages to this worker alone, and those of which the order counts: each is taken once, though a store that
        was repaired may give it again.
        """
        self._waiting: dict[Message, None] = {}
        self._sending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._changed = False
        """Workers came or went since the last look."""
        self._stops: list[Callable[[], None]] = []
        self._warned = False
        self.use(values)

    def use(self, values: Sequence[bytes]) -> None:
        """Sign with the first of these secrets from now on, and accept what any of them signed."""
        self._keys = [hmac.digest(value, _LABEL, "sha256") for value in values] if self.shared else []

    # What arrives

    def on(self, kind: type[M], receive: Callable[[M, str], None], *, own: bool = False) -> None:
        """Call `receive(message, worker)` in the loop for every message of a kind from another worker.

        Args:
            kind: what to hear.
            receive: what hears it.
            own: also for what this worker tells all. All workers hear that in one order.
        """
        self._receivers.setdefault(kind, []).append(receive)
        if own:
            self._own.add(kind)

    def on_interruption(self, forget: Callable[[], None]) -> None:
        """Call `forget` after messages may have been lost: whatever they would have said has to be looked up."""
        self._interrupted.append(forget)

    def on_loss(self, lost: Callable[[], None]) -> None:
        """Call `lost` when the store has lost data: its epoch is another one."""
        self._lost.append(lost)

    def on_workers(self, look: Callable[[], Awaitable[None]]) -> None:
        """Await `look` after workers came or went; again, should the store not answer it."""
        self._looks.append(look)

    def open(self) -> None:
        """Begin to listen. The store is open."""
        self._stops = [self._store.watch(self._lose)]
        if self.shared:
            self._stops.append(self._store.bus.subscribe(_TOPIC, self._receive, interrupted=self._miss))
            self._stops.append(self._store.workers.watch(self._look_soon))

    async def close(self) -> None:
        """Stop listening, and drop what nobody waited for."""
        for stop in self._stops:
            stop()
        tasks = [task for task in (self._sending, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sending = self._looking = None

    def _miss(self) -> None:
        for forget in self._interrupted:
            forget()

    def _lose(self) -> None:
        self._miss()
        for lost in self._lost:
            lost()

    def _look_soon(self) -> None:
        self._changed = True
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        failing = False
        while self._changed:
            self._changed = False
            try:
                for look in self._looks:
                    await look()
            except (LocalError, OSError) as failure:
                if not failing:
                    _logger.warning("What a worker left can't be put in order, which is tried again: %s", failure)
                failing = self._changed = True
            if self._changed:
                await asyncio.sleep(PAUSE)
        self._looking = None

    def _receive(self, data: bytes) -> None:
        letter = self._open_letter(data)
        if letter is not None:
            self._stamp = max(self._stamp, letter.stamp)
            self._hand_out(letter.message, letter.sender)

    def _hand_out(self, message: Message, sender: str) -> None:
        for receive in self._receivers.get(type(message), ()):
            try:
                receive(message, sender)
            except Exception:
                _logger.exception("A message of another worker could not be carried out")

    def _open_letter(self, data: bytes) -> _Letter | None:
        """Return a message of another worker, or one of our own that somebody wants to hear; None for what isn't one or
        comes at a wrong time.
        """
        mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(key, body)) for key in self._keys):
            if not self._warned:
                self._warned = True
                _logger.warning("A message between workers has no valid signature: do all of them use the same key?")
            return None
        try:
            letter = _decode(body)
        except msgspec.DecodeError:  # of another version, during a deploy
            return None
        me = self._store.workers.me
        late = abs(letter.stamp / 1e6 - self._store.time()) > WINDOW
        ordered = type(letter.message) in self._own
        if late or (letter.sender == me and not ordered) or (letter.to and letter.to != me):
            return None
        if (letter.to or ordered) and not self._is_new(letter):
            return None
        return letter

    def _is_new(self, letter: _Letter) -> bool:
        mark = (letter.sender, letter.stamp)
        if mark in self._seen:
            return False
        if len(self._seen) >= _MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[mark] = None
        return True

    # What is sent

    def is_me(self, worker: str) -> bool:
        """Return whether a name is that of this worker."""
        return worker == self._store.workers.me

    def stamp(self) -> int:
        """Return a number greater than that of every message sent or received so far; in microseconds."""
        now = int(self._store.time() * 1e6)
        if self._stamp > now + WINDOW * 1e6:  # the clock was set back so far that nobody would take it
            self._stamp = now
        self._stamp = max(self._stamp + 1, now)
        return self._stamp

    async def tell(self, message: Message) -> bool:
        """Tell all other workers; it is a hint, and a store that does not answer isn't an error: then it's False."""
        if not self.shared:
            return False
        try:
            await self._store.bus.publish(_TOPIC, self._seal("", message))
        except (LocalError, OSError) as failure:
            if not self._mute:
                _logger.warning("Nothing can be sent to all workers: %s", failure)
                self._mute = True
                for waiting in list(self._waiting):
                    self._hear_alone(waiting)
            return False
        if self._mute:
            _logger.warning("Messages to all workers can be sent again.")
        self._mute = False
        return True

    def tell_soon(self, message: Message) -> None:
        """Tell all other workers without waiting, and as often as it takes. What waits already goes out once.

        Of the kinds that this worker hears from itself, what can't be sent now is heard here at once, and perhaps again
        when it can. If too much waits, the oldest of these is dropped.
        """
        if not self.shared:
            return
        if self._mute:
            self._hear_alone(message)
        if message in self._waiting:
            return
        if len(self._waiting) >= _MAX_WAITING:
            oldest = next((each for each in self._waiting if type(each) in self._own), next(iter(self._waiting)))
            del self._waiting[oldest]
        self._waiting[message] = None
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        while self._waiting:
            del self._waiting[message := next(iter(self._waiting))]
            heard = self._mute
            try:
                sent = await self.tell(message)
            except Exception:
                _logger.exception("A message to the other workers can't be sent")
                continue
            if not sent:
                if not heard:
                    self._hear_alone(message)
                self._waiting = {message: None, **self._waiting}
                await asyncio.sleep(PAUSE)
        self._sending = None

    def _hear_alone(self, message: Message) -> None:
        if type(message) in self._own:
            self._hand_out(message, self._store.workers.me)

    async def send(self, worker: str, message: Message) -> bool:
        """Send to one worker; False when its lease is over, or there never was such a worker.

        Raises:
            LocalError: the store does not answer.
        """
        if not self.shared or worker == self._store.workers.me:
            return False
        return await self._store.bus.send(worker, _TOPIC, self._seal(worker, message))

    def _seal(self, to: str, message: Message) -> bytes:
        body = _encode(_Letter(self._store.workers.me, to, self.stamp(), message))
        return _mac(self._keys[0], body) + body


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_MAC_BYTES]
