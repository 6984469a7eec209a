"""The hub: its log in the store, its routes, WebSocket, and metrics, and the streams of calls.

With ``stream: true``, the progress and result of a call are also sent to the stream of a client,
``/mcp/sse/{client_id}``. The caller passes its client id in the header ``X-Client-Id``, the query ``?client_id=``, the
argument ``client_id``, or ``_meta.clientId``. The first one found is used, or else a new id is created. The response's
``_meta`` contains the id and the URL of the stream. The client's mailbox keeps earlier messages.
"""

import logging
import secrets
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct

from millstream._app.parts import OwnPart
from millstream._http.message import HttpRequest, Response
from millstream._parts import PUBLISH, PartHost, Route
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, LocalError, ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import RequestId, error_message
from millstream._server.calls.call import Call, params_of, value_of
from millstream._server.dispatch import Dispatcher
from millstream.hub import Hub, HubLimits
from millstream.hub._channels import EventTooLarge, InvalidName, check_client_id

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream._telemetry.metrics import Metrics


logger = logging.getLogger("millstream.hub")

HEADER = b"x-client-id"


class HubPart(OwnPart):
    """Opens before the lifespan, which can publish."""

    name: str = "hub"

    async def open(self, host: PartHost) -> None:
        """Open the hub on the host's store.

        Raises:
            ValueError: The settings have the subject as the display name.
        """
        claims = host.settings.display_name_claims
        if "sub" in claims:
            raise ValueError("display_name_claims can't contain 'sub', because only some readers may see subjects.")
        hub = Hub(
            host.store,
            HubLimits.of(host.settings),
            authorize=self.definition.authorize_channel,
            name_claims=claims,
        )
        await hub.open()
        host.stack.push_async_callback(hub.close)
        host.hub = host.services.hub = hub
        host.services.attach_stream = partial(_attach_stream, hub)
        host.report("subscribers", lambda: hub.stats().subscribers, limit=hub.limits.max_connections)
        if host.metrics is not None:
            _measure(host.metrics, hub)
        host.on_http(lambda: self._serve(host, hub))

    def _serve(self, host: PartHost, hub: Hub) -> None:
        # A server without HTTP doesn't need these.
        from millstream._transports.hub_routes import CLIENT_PATH, HubRoutes, keep_event_source  # noqa: PLC0415
        from millstream._transports.websocket import WebSocketRoute  # noqa: PLC0415
        from millstream._web.pages import hub_client  # noqa: PLC0415

        settings, guard = host.settings, host.guard
        hooked = self.definition.authorize_channel is not None

        def may_publish(principal: "Principal | None", address: str, headers: Mapping[bytes, bytes]) -> bool:
            if guard is None:
                return host.is_local(address, headers, False)  # WebSockets need HTTP/1.1
            return hooked or (principal is not None and principal.has((PUBLISH,)))

        def serve(dispatcher: Dispatcher) -> None:
            address, is_front = dispatcher.address, dispatcher is host.dispatcher.served[0]
            socket = WebSocketRoute(
                dispatcher,
                hub if is_front else None,
                host.policy,
                host.streams,
                guard=guard and partial(_admit, host, dispatcher),
                may_publish=may_publish,
                publish_scope="" if guard is None or hooked or not is_front else PUBLISH,
            )
            host.sockets[address.websocket] = socket
            host.on_drain(socket.close)
            host.routes.add(address.websocket, host.route_for(dispatcher, {"GET": socket.plain}))

        host.serve_each(serve)
        handlers = HubRoutes(
            hub,
            host.streams,
            gzip=settings.gzip_streams,
            note=host.services.note,
            is_partial=partial(host.degraded_reasons, any_kind=False),
        )
        scope = "" if hooked else PUBLISH
        add = host.routes.add
        add("/events", Route({"GET": handlers.events}, stream=True, refuse=keep_event_source))
        publish = Route({"POST": handlers.publish}, scope=scope, private=True, message="hub/publish")
        add("/publish", publish)
        add("/members", Route({"GET": handlers.members}))
        add("/hub.js", Route({"GET": hub_client}, public=True, charged=""))
        mailbox = Route({"GET": handlers.client_stream}, stream=True, refuse=keep_event_source)
        host.routes.add_prefix(CLIENT_PATH, mailbox)


async def _admit(host: PartHost, dispatcher: Dispatcher, request: HttpRequest) -> "Principal | Response":
    """Return a caller who may use an address, or the refusal."""
    assert host.guard is not None  # noqa: S101  the caller has looked
    found = await host.guard(request)
    if isinstance(found, Response):
        return found
    request.principal = found
    return host.refuse(dispatcher.address, request) or found


def _measure(metrics: "Metrics", hub: Hub) -> None:
    read, stats = metrics.read, hub.stats
    back = "Subscribers that reconnected, by outcome: a full replay or a gap."
    read("counter", "hub_events_published_total", "Events published by this worker.", lambda: {(): stats().published})
    read("counter", "hub_events_delivered_total", "Events written.", lambda: {(): stats().delivered})
    read(
        "counter",
        "hub_subscribers_disconnected_total",
        "Subscribers that were disconnected.",
        lambda: _by(stats().disconnected),
        ("reason",),
    )
    read("counter", "hub_replay_total", back, lambda: _by(stats().replays), ("outcome",))
    read("gauge", "hub_streams_active", "Subscribers now.", lambda: _by(stats().transports), ("transport",))
    read("gauge", "hub_send_queue_bytes", "Bytes waiting to be sent.", lambda: {(): hub.queued_bytes()})


def _by(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(name,): int(count) for name, count in counts.items()}


def _attach_stream(hub: Hub, call: Call) -> None:
    """Mirror a call to its client's stream, if its arguments contain ``stream: true``.

    Raises:
        ProtocolError: INVALID_PARAMS for an invalid client id, with its location.
    """
    if getattr(call.arguments, "stream", False) is not True:
        return
    place, client_id = _client_id(call)
    try:
        check_client_id(client_id)
    except InvalidName as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid client id in {place}: {exc}", status=400) from exc
    root = call.origin.root_path if isinstance(call.origin, HttpRequest) else ""
    url = f"{root}/mcp/sse/{quote(client_id, safe='')}"
    call.tee = _Mirror(url, hub, client_id, call.principal, call.id)
    call.meta = {**(call.meta or {}), "clientId": client_id, "streamUrl": url}


def _client_id(call: Call) -> tuple[str, str]:
    """Return the location and value of the caller's client id, creating one if there's none."""
    header = (call.headers or {}).get(HEADER, b"").decode("utf-8", "replace").strip()
    argument = getattr(call.arguments, "client_id", "")
    meta = members(value_of(params_of(call).meta)).get("clientId")
    given = (
        ("X-Client-Id", header),
        ("client_id", call.client_id or (argument if isinstance(argument, str) else "")),
        ("_meta.clientId", meta if isinstance(meta, str) else ""),
    )
    return next((each for each in given if each[1]), ("", secrets.token_hex(16)))


class _Mirror(Struct, frozen=True, eq=False):
    """Sends a call's messages to a client's stream, as far as the hub accepts them.

    The caller's own response has priority. To avoid a reference cycle, it doesn't refer to the call.
    """

    url: str
    hub: Hub
    client_id: str
    principal: "Principal | None"
    request_id: RequestId | None

    async def __call__(self, message: bytes) -> None:
        """Send a message."""
        if not message:
            return
        try:
            error = b""
            try:
                await self.hub.send(self.client_id, message.decode(), principal=self.principal)
            except EventTooLarge as exc:
                error = error_message(self.request_id, INTERNAL_ERROR, f"The result is only in the response: {exc}")
            if error:
                await self.hub.send(self.client_id, error.decode(), principal=self.principal)
        except LocalError:
            logger.exception("A message couldn't be sent to the stream of %s", self.client_id)
