"""`resources/list`, `resources/templates/list`, `resources/read`, `resources/subscribe`, `resources/unsubscribe`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from millstream._protocol.errors import INVALID_PARAMS, INVALID_REQUEST, RESOURCE_NOT_FOUND, ProtocolError, shorten
from millstream._protocol.notifications import ReadResourceRequestParams, ResourceRequestParams
from millstream._server.calls.access import check_scopes
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import Session, SessionRecord
from millstream._server.dispatch import Handler
from millstream._server.features.completion_lookup import MAX_URI, find_readable
from millstream._server.features.registry import Registry
from millstream._server.features.resources import Resource, Template
from millstream._server.functions.arguments import ArgumentError
from millstream._server.handlers.list_pages import list_page, sees
from millstream._server.handlers.params import read, take_rounds

_read_decoder = msgspec.json.Decoder(ReadResourceRequestParams)
_uri_decoder = msgspec.json.Decoder(ResourceRequestParams)


class ResourceHandlers:
    """Handlers of the resource methods."""

    def __init__(self, registry: Registry, services: Services) -> None:
        self._registry = registry
        self._services = services
        services.read_resource = self.read_inside

    def table(self) -> Mapping[str, Handler]:
        return {
            "resources/list": self.list,
            "resources/templates/list": self.list_templates,
            "resources/read": self.read,
            "resources/subscribe": self.subscribe,
            "resources/unsubscribe": self.unsubscribe,
        }

    async def list(self, call: Call) -> bytes:
        return list_page(self._registry, "resources", call)

    async def list_templates(self, call: Call) -> bytes:
        return list_page(self._registry, "templates", call)

    async def read(self, call: Call) -> bytes:
        params = read(_read_decoder, call)
        call.name = params.uri
        take_rounds(call, params)
        source, arguments = self._find(params.uri, call)
        value = await source.run(arguments, call)
        if value is None:
            raise _not_found(params.uri)
        return source.encode(value, params.uri, call)

    async def read_inside(self, uri: str, call: Call) -> Any:
        """Return the value of a resource, for a function that serves a call."""
        source, arguments = self._find(uri, call)
        value = await source.run(arguments, call)
        if value is None:
            raise _not_found(uri)
        return source.unwrap(value)

    def _find(self, uri: str, call: Call) -> tuple[Resource | Template, Any]:
        found, variables = find_readable(self._registry, uri, partial(sees, call))
        if found is None:
            raise _not_found(uri)
        check_scopes(call, found.scopes)
        try:
            return found, found.read(variables)
        except ArgumentError as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid resource URI: {exc}", {"uri": uri}) from exc

    async def subscribe(self, call: Call) -> bytes:
        """Subscribe the session to changes of one resource."""
        uri = read(_uri_decoder, call).uri

        def add(record: SessionRecord) -> SessionRecord | None:
            if uri in record.subscriptions:
                return None
            if len(record.subscriptions) >= self._services.settings.max_subscriptions:
                raise ProtocolError(INVALID_REQUEST, "Too many subscriptions in this session. Unsubscribe from some.")
            self._find(uri, call)
            self._services.changes.check_room(call.owner, (uri,))
            return msgspec.structs.replace(record, subscriptions=[*record.subscriptions, uri])

        await self._services.records.change(_session(call), add)
        self._follow(_session(call))
        await self._services.changes.wait_until_followed((uri,))
        return b""

    async def unsubscribe(self, call: Call) -> bytes:
        """End the session's subscription to one resource."""
        uri = read(_uri_decoder, call).uri

        def drop(record: SessionRecord) -> SessionRecord | None:
            if uri not in record.subscriptions:
                return None
            return msgspec.structs.replace(record, subscriptions=[each for each in record.subscriptions if each != uri])

        await self._services.records.change(_session(call), drop)
        self._follow(_session(call))
        return b""

    def _follow(self, session: Session) -> None:
        """Follow the subscriptions of a connection's session. Streamable HTTP sessions have a stream for this."""
        if session.record is not None:
            self._services.changes.follow(session.id, session.owner, session.record.subscriptions)


def _session(call: Call) -> Session:
    if call.session is None:
        raise ProtocolError(INVALID_REQUEST, "Subscriptions need a session. Initialize first, and send its id.")
    return call.session


def _not_found(uri: str) -> ProtocolError:
    return ProtocolError(RESOURCE_NOT_FOUND, "Resource not found", {"uri": shorten(uri, MAX_URI)})
