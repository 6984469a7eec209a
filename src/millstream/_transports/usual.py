"""The usual way to read an MCP message, for its transports and both eras: one strict decoder, and a tool's own one.

Anything unusual, and anything invalid, is left to the transport's exact path, which begins again with the message's
bytes. A message that this module accepts has the same effect there.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from millstream._protocol.jsonrpc import MALFORMED, MAX_ID, Json, decoder, exceeds_limits, is_utf8
from millstream._protocol.metadata import (
    MAX_CAPABILITIES,
    MAX_DISPLAYED,
    META_NAMES,
    ClientInfo,
    Implementation,
    LogLevel,
    ProgressToken,
)
from millstream._protocol.revisions import ALL, PER_REQUEST, Revision
from millstream._server.calls.call import Call, ReplyChannel
from millstream._server.calls.services import UNLIMITED
from millstream._server.calls.sessions import Session
from millstream._server.control import LIGHT
from millstream._server.dispatch import Dispatcher
from millstream._server.features.tools import Tool

MAX_USUAL = 64 * 1024
"""Maximum size of a usual message, in bytes. The exact path reads a larger one in parts, each with its own bound."""
LISTEN = "subscriptions/listen"
_USUAL = {
    revision.date: frozenset(revision.requests)
    - {"initialize", LISTEN}
    - (frozenset() if revision.handshake else {"resources/read"})  # `Call.name` is its URI
    for revision in ALL
}
"""Date of a revision -> requests that take no more checks than `open_usual` has."""
_NAMED = frozenset(("tools/call", "prompts/get"))
_Displayed = Annotated[str, Meta(max_length=MAX_DISPLAYED)]
_Id = int | Annotated[str, Meta(max_length=MAX_ID // len(r"\ud83c\udf89") - 1)]
"""Short enough in every spelling."""


class UsualClient(Implementation, frozen=True, rename="camel", gc=False):
    name: _Displayed = ""
    version: _Displayed = ""


class UsualMeta(Struct, frozen=True, gc=False, rename=META_NAMES):
    version: str | UnsetType = UNSET
    """Present only in the per-request era."""
    capabilities: Json | UnsetType = UNSET
    client: UsualClient | UnsetType = UNSET
    log_level: LogLevel | UnsetType = UNSET
    token: ProgressToken | UnsetType = UNSET


class UsualParams(
    Struct, frozen=True, gc=False, rename={"meta": "_meta", "responses": "inputResponses", "state": "requestState"}
):
    meta: UsualMeta = UsualMeta()
    name: str = ""
    arguments: Raw = Raw(b"{}")
    responses: dict[str, Raw] | UnsetType = UNSET
    state: UnsetType = UNSET
    """Never present: a state must be verified first, on the exact path."""


class UsualMessage(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    method: str
    id: _Id | UnsetType = UNSET
    """Missing in a notification."""
    params: UsualParams = UsualParams()
    result: UnsetType = UNSET
    """Never present: a message with it isn't a request. The same applies to `error`."""
    error: UnsetType = UNSET


class _Body(Struct, gc=False):
    params: Raw = Raw(b"")


_decode = decoder(UsualMessage)
_decode_body = decoder(_Body)


Sender = tuple[Revision, Session | None, ClientInfo]


def read_usual(body: bytes) -> tuple[UsualMessage, Sender | None] | None:
    """Return a request or notification, or None for an unusual message. In the per-request era, it names its sender."""
    try:
        if len(body) > MAX_USUAL or exceeds_limits(body):
            return None
        message = _decode(body)
    except MALFORMED:
        return None
    params = message.params
    meta = params.meta
    if meta.version is UNSET:
        return message, None
    revision, about, capabilities = PER_REQUEST.get(meta.version), meta.client, meta.capabilities
    if (
        revision is None
        or capabilities is UNSET
        # The exact path shortens large capabilities.
        or (len(body) > MAX_CAPABILITIES and len(body) - len(params.arguments) > MAX_CAPABILITIES)
    ):
        return None
    client = ClientInfo(capabilities, about.name, about.version) if about else ClientInfo(capabilities)
    return message, (revision, None, client)


def _is_text(body: bytes, arguments: Raw, tool: Tool | None) -> bool:
    """Return whether a message is UTF-8. Decoders check only what they read.

    Arguments can be long, so they aren't read twice if the tool's decoder has read all of them.
    """
    if tool is not None and tool.reads_all:
        known = bytes(arguments)
        at = body.find(known[:64])  # Python searches for long texts slowly
        if body.startswith(known, at):
            body = b"%b %b" % (body[:at], body[at + len(known) :])  # a space, because parts of a character could meet
    return is_utf8(body)


def is_unread(dispatcher: Dispatcher, method: str, body: bytes) -> bool:
    """Return whether a notification has no effect, except that it's counted."""
    services, registry = dispatcher.services, dispatcher.registry
    return (
        method.startswith("notifications/")
        and method != "notifications/cancelled"
        and not services.notification_filters
        and services.request_limits is UNLIMITED
        and registry.relayed is None
        and method not in registry.notification_handlers
        and (body.isascii() or is_utf8(body))
    )


def open_usual(
    dispatcher: Dispatcher,
    message: UsualMessage,
    body: bytes,
    sender: Sender,
    origin: Any,
    open_reply: Callable[[Call], ReplyChannel] | None,
) -> Call | None:
    """Return the call for a request, or None if it needs more checks. Its bytes are counted.

    A tool's arguments are decoded here. The handlers of other methods decode their parameters.

    Args:
        origin: The HTTP request or the connection.
    """
    method, params, (revision, session, client) = message.method, message.params, sender
    registry, load, meta = dispatcher.registry, dispatcher.load, params.meta
    tool, arguments, rest = None, None, b""
    if dispatcher.begin is not None:
        return None  # a span covers the reading of arguments
    if method == "tools/call" and registry.relayed is None:
        tool = registry.tools.get(params.name)
        if tool is None or not tool.plain or (tool.task is not None and "extensions" in client.capabilities):
            return None
        try:
            arguments = tool.decode(params.arguments)
        except Exception:  # Includes errors of validators, which the exact path reports.
            return None
    elif method in _USUAL[revision.date] and registry.admits(method, revision):
        if method == "tools/call" and registry.requires(method, params.name):
            return None
        rest = bytes(_decode_body(body).params)
    else:
        return None
    if not (body.isascii() or _is_text(body, params.arguments, tool)):
        return None
    call = Call(  # a 16th keyword argument would make Python build a dict
        revision=revision,
        id=message.id,  # type: ignore[arg-type]  # only requests become calls
        method=method,
        params=rest,
        client=client,
        open_reply=open_reply,
        origin=origin,
        session=session,
        principal=origin.principal,
        headers=origin.headers,
        name=params.name if method in _NAMED else "",
        token=None if meta.token is UNSET else meta.token,
        tool=tool,
        body=b"" if tool is None else body,
        arguments=arguments,
    )
    if not revision.handshake and (meta.log_level or params.responses):
        call.log_level, call.responses = meta.log_level or "", params.responses or None
    # With fewer calls in flight, no caller can exceed its limit.
    if len(dispatcher.calls) >= load.max_each and load.full(call.owner):
        return None
    return call if len(body) <= LIGHT or load.takes(call, len(body)) else None
