"""What the dashboard asks for when somebody opens it: history, recent calls, slow readers, of all workers together.

Each worker keeps its own. The one that is asked asks the others, and waits a moment for those that answer. Nothing
travels, and nothing is added up, before somebody asks.
"""

import asyncio
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._server.observing.past import present_past
from millstream._server.observing.recent_calls import Calls, RecentCalls, present_calls
from millstream._server.peer_messages import Asked, Told
from millstream._server.peers import Peers
from millstream._telemetry.history import Gauges, History, Past
from millstream._telemetry.process import resident_bytes
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._server.observing.observer import Observer
    from millstream._web.live import DashboardFeed
    from millstream.hub import Hub, Subscription

PATIENCE: Final = 0.4
"""Seconds to wait for the other workers."""
RANGES: Final = (60, 900, 3_600, 21_600, 86_400)
"""Seconds of history that can be asked for."""
READERS: Final = 30
MAX_WORKERS: Final = 256
"""Answers of more than these aren't waited for."""


class Live(NamedTuple):
    """What serves the dashboard."""

    feed: "DashboardFeed"
    looking: "Looking"


class _Question(Struct, array_like=True, frozen=True):
    about: str
    seconds: int = 60
    method: str = ""
    name: str = ""


class Reader(Struct, array_like=True, frozen=True):
    """An open stream, and how far its reader is behind."""

    transport: str
    who: str
    channels: list[str]
    seconds: float | None
    """Since it was opened, where that is known."""
    waiting: int
    """Bytes that it hasn't taken yet."""


_OF_HUB: Final = frozenset(("events", "websocket"))
"""What the hub knows more of: who reads there, and which channels."""
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_past = msgspec.msgpack.Decoder(Past).decode
_decode_calls = msgspec.msgpack.Decoder(Calls).decode
_decode_readers = msgspec.msgpack.Decoder(list[Reader]).decode


class _Waiting(NamedTuple):
    answers: dict[str, bytes]
    """By worker."""
    expected: set[str]
    """Those that answered the last time."""
    done: asyncio.Event


class Looking:
    """Answers for this worker, and asks the others."""

    __slots__ = ("_calls", "_cpu", "_history", "_hub", "_known", "_numbers", "_observer", "_peers",
                 "_sending", "_streams", "_waiting")  # fmt: skip

    def __init__(
        self,
        peers: Peers,
        observer: "Observer",
        calls: RecentCalls,
        *,
        streams: OpenStreams,
        hub: "Hub",
    ) -> None:
        """It remembers nothing before `run`.

        Args:
            peers: the other workers.
            observer: whose counts make the history.
            calls: the recent ones.
            streams: the open streams of this worker.
            hub: whose subscribers may be slow.
        """
        # Configuration
        self._peers = peers
        self._observer = observer
        self._calls = calls
        self._streams = streams
        self._hub = hub
        # Process
        self._history = History(observer.durations.bounds)
        self._cpu = time.process_time()
        self._numbers = count(1)
        self._waiting: dict[int, _Waiting] = {}
        """By number of the question."""
        self._known: set[str] = set()
        """The workers that answered the last question that they could."""
        self._sending: set[asyncio.Task[Any]] = set()
        peers.on(Asked, self._hear_question)
        peers.on(Told, self._hear_answer)

    async def run(self) -> None:
        """Remember each second, until cancelled. The runtime owns the task."""
        while True:
            now = time.time()
            self.remember(int(now) - 1)
            await asyncio.sleep(1.02 - now % 1)

    def remember(self, second: int) -> None:
        """What was counted since the last time happened in this second."""
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        gauges = Gauges(self._observer.lag(), used, resident_bytes() or 0, len(self._streams))
        self._history.take(second, self._observer.calls(), gauges)

    # What a page asks for

    async def history(self, seconds: int, method: str = "", name: str = "") -> dict[str, Any]:
        """The last so many seconds, as `present_past` gives them; with a method, its own points, too."""
        question = _Question(
            "history", min((each for each in RANGES if each >= seconds), default=RANGES[-1]), method, name
        )
        answers = await self._ask(question)
        return present_past([_decode_past(each) for each in answers], question.seconds)

    async def calls(self) -> dict[str, Any]:
        """The newest calls, and the clients."""
        return present_calls(_decode_calls(each) for each in await self._ask(_Question("calls")))

    async def readers(self) -> dict[str, Any]:
        """The streams whose readers are furthest behind."""
        found = [each for answer in await self._ask(_Question("readers")) for each in _decode_readers(answer)]
        found.sort(key=lambda each: (-each.waiting, -(each.seconds or 0)))
        return {"readers": [msgspec.structs.asdict(each) for each in found[:READERS]]}

    def _answer(self, question: _Question) -> bytes:
        if question.about == "history":
            chosen = (question.method, question.name) if question.method else None
            return _encode(self._history.look(question.seconds, chosen))
        return _encode(self._calls.look() if question.about == "calls" else self._slowest())

    def _slowest(self) -> list[Reader]:
        subscribers = [_reader(each) for each in self._hub.slowest(READERS)]
        streams = [
            Reader(transport, owner, [], round(seconds, 1), waiting)
            for transport, owner, seconds, waiting in self._streams.slowest(READERS)
            if transport not in _OF_HUB
        ]
        return [*subscribers, *streams]

    # Between workers

    async def _ask(self, question: _Question) -> list[bytes]:
        """The answers, our own first.

        All are asked, and those are waited for that answered lately. The first question finds out who there is.
        """
        if not self._peers.shared:
            return [self._answer(question)]
        number = next(self._numbers)
        waiting = self._waiting[number] = _Waiting({}, set(self._known), asyncio.Event())
        try:
            await self._peers.tell(Asked(number, _encode(question)))
            async with asyncio.timeout(PATIENCE):
                await waiting.done.wait()
        except TimeoutError:
            # Of those that haven't answered nothing is shown this time; who still lives is heard of again.
            self._known.intersection_update(waiting.answers)
        finally:
            del self._waiting[number]
        return [self._answer(question), *waiting.answers.values()]

    async def _send(self, worker: str, message: Asked | Told) -> None:
        with suppress(LocalError, OSError):  # the page asks again soon
            await self._peers.send(worker, message)

    def _hear_question(self, asked: Asked, worker: str) -> None:
        try:
            answer = self._answer(_decode_question(asked.about))
        except msgspec.DecodeError:  # of another version, during a deploy
            return
        task = asyncio.get_running_loop().create_task(self._send(worker, Told(asked.number, answer)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _hear_answer(self, told: Told, worker: str) -> None:
        if len(self._known) < MAX_WORKERS:
            self._known.add(worker)
        waiting = self._waiting.get(told.number)
        if waiting is None or len(waiting.answers) >= MAX_WORKERS:
            return
        waiting.answers[worker] = told.answer
        if waiting.expected and waiting.expected <= waiting.answers.keys():
            waiting.done.set()


def _reader(subscriptions: tuple["Subscription", ...]) -> Reader:
    """The one who reads what these subscriptions share."""
    first = subscriptions[0]
    named = (each.member.name or each.member.client_id for each in subscriptions if each.member is not None)
    channels = [channel for each in subscriptions for channel in each.channels]
    return Reader(first.transport, next(named, first.address), channels[:8], None, first.outlet.buffered)
