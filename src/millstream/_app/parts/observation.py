"""The observer of calls: metrics, the message log, and traces."""

import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from millstream._app.parts import OwnPart
from millstream._parts import Host
from millstream._protocol.handshake import Handshake
from millstream._protocol.principal import Principal
from millstream._server.calls.message_observer import SESSION_OVER, ObserveMessage
from millstream._server.calls.sessions import Session
from millstream._server.observability.tracing import load_spans

if TYPE_CHECKING:
    from millstream._server.observability.observer import Observer

_MAX_NAME = 1024


class ObservationPart(OwnPart):
    """Observes calls and messages. Opens after the lifespan, which may set up traces."""

    name: str = "observation"
    needs: Collection[str] = ("lifespan",)

    async def open(self, host: Host) -> None:
        """Start observing, if metrics, the message log, or traces are on."""
        definition = self.definition
        access_log, spans = definition.settings.access_log, load_spans(definition.version)
        if not access_log and spans is None and host.metrics is None:
            return
        from millstream._server.observability.observer import Observer  # noqa: PLC0415  only where something is observed
        from millstream._server.observability.tracing import Tracer  # noqa: PLC0415
        from millstream._telemetry.messages import MessageLog  # noqa: PLC0415

        host.observer = observer = Observer(
            host.registry.tools,
            log=MessageLog(sys.stderr) if access_log else None,
            tracing=Tracer(spans) if spans is not None else None,
            metrics=host.metrics,
            connections=host.streams.by_kind,
        )
        host.observe(observer.__call__)
        host.dispatcher.begin = observer.begin
        host.services.note = _note_to(observer)
        host.report("sessions", observer.sessions)
        host.on_close(observer.close)
        host.run(observer.run())


def _note_to(observer: "Observer") -> ObserveMessage:
    """Return a function that reports messages that don't become calls."""
    from millstream._telemetry.messages import AccessRecord  # noqa: PLC0415  only where something is observed
    from millstream._telemetry.metrics import OTHER  # noqa: PLC0415

    def note(
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        opening: Handshake | None = None,
    ) -> None:
        if method == SESSION_OVER:
            if session is not None:
                observer.session_ended(session.id)
            return
        # Neither has been validated yet, and lines wait for their batch.
        method, target = method[:_MAX_NAME] or OTHER, target[:_MAX_NAME]
        message = AccessRecord(time.time(), method, target, status, transport=transport)
        about = session or opening
        if about is not None:
            message.client, message.client_version = about.client.name, about.client.version
            message.revision = about.revision.date
        if session is not None:
            message.session = session.id
        if principal is not None:
            message.principal = principal.id
        observer.message(message)

    return note
