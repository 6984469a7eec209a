"""The stand-alone stream of a session, which carries hints about changed state. The newest GET wins.

Hints aren't logged. A client that resumes gets hints about everything that may have changed while it was away.
"""

import secrets
from collections.abc import Iterable

from millstream._http.message import STREAM_HEAD, HttpRequest, Response, Sink
from millstream._protocol import sse
from millstream._protocol.metadata import ClientInfo
from millstream._server.calls.services import (
    ANY_UPDATE,
    Broadcast,
    ServerChange,
    Services,
    affected_uris,
    encode_change,
    expiry_of,
)
from millstream._server.calls.sessions import Session, SessionRecord
from millstream._server.peers import SessionEnd, StandaloneTakeover
from millstream._transports.refusals import TOO_MANY_STREAMS
from millstream._transports.streamable.exchange import EMPTY_STREAM, StreamableEndpoint

_STAND_ALONE = "main"
"""The prefix of the stream part of event ids. The rest is unique within the session."""
_MAX_HELD = 1_000


def is_standalone(stream: str) -> bool:
    """Return whether the stream part of an event id belongs to a stand-alone stream. Call streams are hexadecimal."""
    return stream.startswith(_STAND_ALONE)


class _StandaloneStream:
    """One stand-alone stream."""

    __slots__ = (
        "_client", "_counter", "_early", "_follow", "_held", "_newer", "_owner", "_principal", "_services",
        "_sink", "_stream", "id", "loaded", "over", "placed", "subscribed",
    )  # fmt: skip

    def __init__(self, stream: str, client: ClientInfo, services: Services, request: HttpRequest) -> None:
        self._client = client
        self._services = services
        self._owner = request.owner
        self._principal = request.principal
        self._follow = services.changes.follow
        self._sink: Sink | None = None
        """None until the other workers are notified."""
        self._early: list[bytes] = []
        """Messages to write then."""
        self._stream = stream
        self._counter = 0
        self._held: list[tuple[ServerChange, bytes]] | None = []
        """Updates that arrived while the subscriptions were being read."""
        self._newer = False
        """Whether a newer record is being read."""
        self.id: int = secrets.randbits(63)
        """The id that other workers know."""
        self.placed = False
        """Whether this worker has received its own takeover. Later ones are newer."""
        self.over = False
        """Whether the session has ended or has another stream."""
        self.loaded = False
        """Whether the subscriptions have been loaded once."""
        self.subscribed: frozenset[str] = frozenset()

    def mark(self) -> str:
        """Return the next event id."""
        self._counter += 1
        return f"{self._stream}.{self._counter}"

    def open(self, sink: Sink) -> None:
        """Start writing to the client's connection."""
        self._sink = sink
        for message in self._early:
            self.write(message)
        self._early.clear()

    def close(self) -> None:
        """Stop writing to the client's connection."""
        if not self.over:
            self._follow(self.id, self._owner, ())
        self.over = True
        if self._sink is not None:
            self._sink.close()

    def write(self, message: bytes) -> None:
        """Write a notification."""
        if self._sink is not None:
            filters = self._services.notification_filters
            if filters is None or (message := filters.filter_outgoing(message, self._principal)):
                self._sink.write(sse.encode_message(message, self.mark()))
        elif len(self._early) < _MAX_HELD:
            self._early.append(message)

    def watcher(self, change: ServerChange, message: bytes) -> None:
        """Write a change that the session has subscribed to."""
        if change.kind == "updated" and self._held is not None:
            # Include current subscriptions, because the record being read may end them.
            if len(self._held) >= _MAX_HELD:
                self._held[:] = [(ANY_UPDATE, b"")]
            self._held.append((change, message))
        elif change.kind != "updated":
            if not isinstance(change, Broadcast) or change.reaches(self._client):
                self.write(message)
        else:
            self._update(change, message)

    def _update(self, change: ServerChange, message: bytes) -> None:
        for uri in affected_uris(change, self.subscribed):
            self.write(message if uri == change.uri else encode_change(ServerChange("updated", uri)))

    def begin(self, record: SessionRecord) -> None:
        """Use the record from when the stream opened, unless a newer one has arrived or is being read."""
        if not self.loaded and not self._newer:
            self.update_record(record)

    def update_record(self, record: SessionRecord | None) -> None:
        """Update the subscriptions, which another worker may have changed, or end the stream with its session."""
        self._newer = record is None
        if record is None:
            self._held = [] if self._held is None else self._held
            return
        self.loaded = True
        self.subscribed = frozenset(record.subscriptions)
        if not self.over:
            self._follow(self.id, self._owner, self.subscribed)
        held, self._held = self._held or [], None
        for change, message in held:
            self._update(change, message)
        if record.ended:
            self.close()


class StandaloneStreams:
    """The stand-alone streams on this worker, one per session."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._by_session: dict[str, _StandaloneStream] = {}
        services = endpoint.services
        services.peers.on(StandaloneTakeover, self._on_takeover, own=True)
        services.peers.on_interruption(self._place_all)
        services.peers.on(SessionEnd, lambda message, worker: self.close(message.session))
        services.peers.on_loss(self.close_all)

    def close(self, session_id: str) -> None:
        """End the stream of a session, if it has one."""
        found = self._by_session.pop(session_id, None)
        if found is not None:
            found.close()

    def close_all(self) -> None:
        """End all streams, because the store lost the sessions' state. Clients reconnect."""
        for session_id in list(self._by_session):
            self.close(session_id)

    def _on_takeover(self, message: StandaloneTakeover, _worker: str) -> None:
        """Process a takeover. All workers receive takeovers in the same order, and the last one wins."""
        found = self._by_session.get(message.session)
        if found is None:
            return
        if message.id == found.id:
            found.placed = True
        elif found.placed:
            self.close(message.session)

    def _place_all(self) -> None:
        """Stop waiting for takeover messages that may have been lost."""
        for standing in self._by_session.values():
            standing.placed = True

    async def serve(self, request: HttpRequest, session: Session, *, resumed: bool) -> Response | None:
        """Open the stream and send changes until it closes."""
        services, peers = self._endpoint.services, self._endpoint.services.peers
        self.close(session.id)
        stream = f"{services.store.epoch}.{_STAND_ALONE}{secrets.token_hex(8)}"
        standing = _StandaloneStream(stream, session.client, services, request)
        self._by_session[session.id] = standing
        stop = services.changes.watch(standing.watcher)
        services.records.watch(session.id, standing.update_record)
        try:
            # This runs before the client can send a request, because other workers learn of later streams afterward.
            if not await peers.tell(StandaloneTakeover(session.id, standing.id)):
                standing.placed = True
            if standing.over:
                return EMPTY_STREAM
            if self._endpoint.streams.full(request):  # many may have waited for that
                return TOO_MANY_STREAMS
            sink = request.open(200, STREAM_HEAD)
            until = expiry_of(request.principal)
            self._endpoint.streams.add(sink, request, ("http", session.revision.date), until=until)
            standing.open(sink)
            record = await services.records.get(session)
            sink.write(sse.prime(standing.mark(), None) if session.revision.priming else sse.COMMENT)
            standing.begin(record)
            for change in self._hints(standing.subscribed or record.subscriptions) if resumed else ():
                standing.write(encode_change(change))
            await sink.wait_closed()
        finally:
            stop()
            services.records.unwatch(session.id, standing.update_record)
            if self._by_session.get(session.id) is standing:
                del self._by_session[session.id]
            standing.close()
        return None

    def _hints(self, subscribed: Iterable[str]) -> list[ServerChange]:
        """Return everything that may have changed while the client was away."""
        offers = self._endpoint.dispatcher.registry.offers
        kinds = [kind for kind in ("tools", "prompts", "resources") if offers(kind)]
        return [ServerChange(kind) for kind in kinds] + [ServerChange("updated", uri) for uri in sorted(subscribed)]
