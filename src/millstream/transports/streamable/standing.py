"""The stand-alone stream of a session: hints about changed state, while the client listens. The newest GET wins.

Hints are not logged. A client that resumes hears again of everything that may have changed while it was away.
"""

import secrets
from collections.abc import Iterable

from millstream.http.message import STREAM_HEAD, Request, Sink
from millstream.protocol import sse
from millstream.server.calls.changes import Change, encode_change
from millstream.server.calls.sessions import Session
from millstream.transports.streamable.exchange import Endpoint

_STAND_ALONE = "main"
"""What the stream part of their event ids begins with; the rest tells the streams of one session apart."""


def is_stand_alone(stream: str) -> bool:
    """Whether the stream part of an event id is that of a stand-alone stream; call streams are hexadecimal."""
    return stream.startswith(_STAND_ALONE)


class StandingStreams:
    """The stand-alone streams that are open here, one a session."""

    __slots__ = ("_by_session", "_endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._by_session: dict[str, Sink] = {}

    def close(self, session_id: str) -> None:
        """End the stream of a session, if it has one."""
        sink = self._by_session.pop(session_id, None)
        if sink is not None:
            sink.close()

    async def serve(self, request: Request, session: Session, owner: str, *, resumed: bool) -> None:
        """Open the stream and say what changes until it closes."""
        services = self._endpoint.services
        self.close(session.id)
        sink = self._by_session[session.id] = request.open(200, STREAM_HEAD)
        self._endpoint.streams.add(sink, owner, ("http", session.revision.date))
        stream = f"{services.store.epoch}.{_STAND_ALONE}{secrets.token_hex(8)}"
        counter = 0

        def mark() -> str:
            nonlocal counter
            counter += 1
            return f"{stream}.{counter}"

        subscribed: frozenset[str] = frozenset()

        def watcher(change: Change, message: bytes) -> None:
            if change.kind != "updated" or change.uri in subscribed:
                sink.write(sse.encode_message(message, mark()))

        def resubscribed(uris: list[str]) -> None:
            nonlocal subscribed
            subscribed = frozenset(uris)

        stop = services.changes.watch(watcher)
        services.records.watch(session.id, resubscribed)
        try:
            resubscribed((await services.records.get(session)).subscriptions)
            sink.write(sse.prime(mark(), None) if session.revision.priming else sse.COMMENT)
            for change in self._hints(subscribed) if resumed else ():
                sink.write(sse.encode_message(encode_change(change), mark()))
            await sink.wait_closed()
        finally:
            stop()
            services.records.unwatch(session.id, resubscribed)
            if self._by_session.get(session.id) is sink:
                del self._by_session[session.id]
            sink.close()

    def _hints(self, subscribed: Iterable[str]) -> list[Change]:
        """Everything that may have changed while the client was away."""
        offers = self._endpoint.dispatcher.registry.offers
        kinds = [kind for kind in ("tools", "prompts", "resources") if offers(kind)]
        return [Change(kind) for kind in kinds] + [Change("updated", uri) for uri in sorted(subscribed)]
