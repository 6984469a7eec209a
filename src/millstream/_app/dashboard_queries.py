"""Data for the dashboard, of all workers together: figures, history, recent calls, and slow readers.

Each worker keeps its own data. The worker that serves a dashboard queries the others, waits briefly for their replies,
and adds them up. Without a dashboard, nothing is sent.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from heapq import nlargest
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct, structs

from millstream._parts import UpstreamReports
from millstream._protocol.errors import LocalError
from millstream._server.observability.call_history import history_values
from millstream._server.observability.figures import Figures, dashboard_values
from millstream._server.observability.recent_calls import RecentCalls, WorkerCalls, call_values
from millstream._server.peer_messages import StatsReply, StatsRequest
from millstream._server.peers import Peers
from millstream._tasks import Tasks
from millstream._telemetry.history import STEPS, Gauges, History, HistoryWindow
from millstream._telemetry.process import resident_bytes
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._server.observability.observer import Observer
    from millstream.hub import Hub, Subscription

PATIENCE = 0.4
"""Seconds to wait for the other workers."""
READERS = 30
MAX_WORKERS = 256
"""Maximum workers whose replies are used."""
MAX_CHANNELS = 100
"""Maximum channels per worker, those with the most subscribers."""
_SAME = 0.5
"""Seconds for which the figures of this worker are cached, because rates are computed since the last query."""
FRESH = 5.0
"""Seconds for which the figures of a silent worker are still shown."""


class _Question(Struct, array_like=True, frozen=True):
    about: str
    seconds: int = 60
    method: str = ""
    name: str = ""


class ReaderRow(Struct, array_like=True, frozen=True):
    """An open stream, and how far its reader is behind."""

    transport: str
    who: str
    channels: list[str]
    seconds: float | None
    """Seconds since it was opened, if known."""
    waiting: int
    """Bytes that it hasn't read yet."""


_OF_HUB = frozenset(("events", "websocket"))
"""Transports whose readers and channels the hub tracks."""
_FIGURES = 0
"""Request number for replies that are used whenever they arrive."""
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_figures = msgspec.msgpack.Decoder(Figures).decode
_decode_past = msgspec.msgpack.Decoder(HistoryWindow).decode
_decode_calls = msgspec.msgpack.Decoder(WorkerCalls).decode
_decode_any = msgspec.msgpack.Decoder().decode
_decode_readers = msgspec.msgpack.Decoder(list[ReaderRow]).decode


class _PendingReplies(NamedTuple):
    answers: dict[str, bytes]
    """Replies by worker."""
    expected: set[str]
    """Workers that replied last time."""
    done: asyncio.Event


class DashboardQueries:
    """Answers queries for this worker, and queries the others."""

    def __init__(
        self,
        peers: Peers,
        observer: "Observer",
        calls: RecentCalls,
        *,
        streams: OpenStreams,
        hub: "Hub",
        me: str,
        upstreams: UpstreamReports | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the queries; `run` starts recording.

        Args:
            peers: messages between workers.
            observer: source of the counts.
            calls: recent calls.
            streams: open streams of this worker.
            hub: returns the hub with the subscribers.
            me: name of this worker.
            upstreams: returns reports on the upstreams of a gateway.
            clock: monotonic clock in seconds.
        """
        # Configuration
        self._peers = peers
        self._observer = observer
        self._calls = calls
        self._streams = streams
        self._hub = hub
        self._upstreams = upstreams
        self._me = me
        self._clock = clock
        # State
        self._taken: tuple[float, Figures] | None = None
        """Latest figures of this worker, and when they were taken."""
        self._figures: dict[str, tuple[float, Figures]] = {}
        """Latest figures of the other workers, and when they arrived."""
        self._history = History(observer.durations.bounds)
        self._cpu = time.process_time()
        self._numbers = count(1)
        self._waiting: dict[int, _PendingReplies] = {}
        """Pending requests by number."""
        self._known: set[str] = set()
        """Workers that replied to the last request."""
        self._replies = Tasks()
        peers.on(StatsRequest, self._reply_to)
        peers.on(StatsReply, self._take_reply)

    async def run(self) -> None:
        """Record counts each second until canceled. The runtime owns the task."""
        while True:
            now = time.time()
            self.remember(int(now) - 1)
            await asyncio.sleep(1.02 - now % 1)

    def remember(self, second: int) -> None:
        """Record the counts since the last call as those of this second."""
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        gauges = Gauges(self._observer.lag(), used, resident_bytes() or 0, len(self._streams))
        self._history.take(second, self._observer.calls(), gauges)

    # Queries of the pages

    async def measure(self) -> None:
        """Query the figures of the other workers; `snapshot` includes their replies."""
        now = self._clock()
        self._figures = {name: each for name, each in self._figures.items() if now - each[0] <= FRESH}
        await self._peers.tell(StatsRequest(_FIGURES, _encode(_Question("figures"))))

    def snapshot(self, *, store: Any = None) -> dict[str, Any]:
        """Return the sums over all workers, and a row for each."""
        figures = {name: each for name, (_, each) in self._figures.items()}
        return dashboard_values({**figures, self._me: self._own()}, self._me, store=store)

    def _own(self) -> Figures:
        """Return the figures of this second, computed once for all dashboards."""
        now = self._clock()
        if self._taken is None or now - self._taken[0] >= _SAME:
            self._taken = now, self._observer.figures(hub=structs.asdict(self._hub.stats()))
        return self._taken[1]

    async def history(self, seconds: int, method: str = "", name: str = "") -> dict[str, Any]:
        """Return the last so many seconds, as in `history_values`; with a method, its own points, too."""
        question = _Question(
            "history", min((each for each in STEPS if each >= seconds), default=max(STEPS)), method, name
        )
        answers = await self._ask(question)
        return history_values([_decode_past(each) for each in answers.values()], question.seconds)

    async def calls(self) -> dict[str, Any]:
        """Return the most recent calls, with their clients and errors."""
        return call_values(_decode_calls(each) for each in (await self._ask(_Question("calls"))).values())

    async def readers(self) -> dict[str, Any]:
        """Return the streams whose readers are furthest behind."""
        found = [
            each for answer in (await self._ask(_Question("readers"))).values() for each in _decode_readers(answer)
        ]
        found.sort(key=lambda each: (-each.waiting, -(each.seconds or 0)))
        return {"readers": [structs.asdict(each) for each in found[:READERS]]}

    async def upstreams(self) -> list[dict[str, Any]]:
        """Return state and statistics of each upstream of the gateway, of all workers together."""
        from millstream.gateway._page import merge_reports  # noqa: PLC0415  only where there is a gateway

        return merge_reports(_decode_any(each) for each in (await self._ask(_Question("upstreams"))).values())

    async def _answer(self, question: _Question) -> bytes:
        if question.about == "figures":
            return _encode(_with_few_channels(self._own()))
        if question.about == "upstreams":
            return _encode([] if self._upstreams is None else self._upstreams.describe())
        if question.about == "history":
            chosen = (question.method, question.name) if question.method else None
            return await asyncio.to_thread(lambda: _encode(self._history.look(question.seconds, chosen)))
        if question.about == "calls":
            return _encode(self._calls.look())
        return _encode(self._slowest())

    def _slowest(self) -> list[ReaderRow]:
        subscribers = [_reader(each) for each in self._hub.slowest(READERS)]
        streams = [
            ReaderRow(transport, owner, [], round(seconds, 1), waiting)
            for transport, owner, seconds, waiting in self._streams.slowest(READERS)
            if transport not in _OF_HUB
        ]
        return [*subscribers, *streams]

    # Between workers

    async def _ask(self, question: _Question) -> dict[str, bytes]:
        """Return the replies by worker, our own first.

        All workers are queried, but it waits only for those that replied last time; the first request discovers them.
        """
        if not self._peers.shared:
            return {self._me: await self._answer(question)}
        number = next(self._numbers)
        waiting = self._waiting[number] = _PendingReplies({}, set(self._known), asyncio.Event())
        try:
            await self._peers.tell(StatsRequest(number, _encode(question)))
            async with asyncio.timeout(PATIENCE):
                await waiting.done.wait()
        except TimeoutError:
            self._known.intersection_update(waiting.answers)
        finally:
            del self._waiting[number]
        return {self._me: await self._answer(question), **waiting.answers}

    def _reply_to(self, request: StatsRequest, worker: str) -> None:
        self._replies.spawn(self._reply(request, worker))

    async def _reply(self, request: StatsRequest, worker: str) -> None:
        # The other worker may have another version or be gone; its page will ask again.
        with suppress(LocalError, OSError, msgspec.DecodeError):
            answer = await self._answer(_decode_question(request.about))
            await self._peers.send(worker, StatsReply(request.number, answer))

    def _take_reply(self, reply: StatsReply, worker: str) -> None:
        if reply.number == _FIGURES:
            with suppress(msgspec.DecodeError):  # from another version, during a deployment
                if len(self._figures) < MAX_WORKERS or worker in self._figures:
                    self._figures[worker] = self._clock(), _decode_figures(reply.answer)
            return
        if len(self._known) < MAX_WORKERS:
            self._known.add(worker)
        waiting = self._waiting.get(reply.number)
        if waiting is None or len(waiting.answers) >= MAX_WORKERS:
            return
        waiting.answers[worker] = reply.answer
        if waiting.expected and waiting.expected <= waiting.answers.keys():
            waiting.done.set()


def _with_few_channels(figures: Figures) -> Figures:
    """Limit the number of channels in a message, because there may be one per client."""
    hub = figures.hub
    if hub is None or len(hub["channels"]) <= MAX_CHANNELS:
        return figures
    channels: Mapping[str, int] = hub["channels"]
    largest = nlargest(MAX_CHANNELS, channels.items(), key=lambda item: (item[1], item[0]))
    return structs.replace(figures, hub={**hub, "channels": dict(largest)})


def _reader(subscriptions: tuple["Subscription", ...]) -> ReaderRow:
    """Return the reader of the stream that these subscriptions share."""
    first = subscriptions[0]
    named = (each.member.name or each.member.client_id for each in subscriptions if each.member is not None)
    channels = [channel for each in subscriptions for channel in each.channels]
    return ReaderRow(first.transport, next(named, first.address), channels[:8], None, first.outlet.buffered)
