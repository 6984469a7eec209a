"""Forwarding a call to an upstream of either era: questions, progress, logs, cancellation, errors, and results.

| client | upstream | questions |
|---|---|---|
| handshake | handshake | sent to the client on the stream of its call (see `CallRecipient`) |
| handshake | per-request | `input_required` becomes requests to the client. The answers go back with the state |
| per-request | handshake | the call waits for the client's retry (see `ParkedCalls`) |
| per-request | per-request | `input_required` is passed on, with its state sealed again |
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Mapping
from functools import lru_cache
from time import monotonic

import msgspec
from msgspec import Raw, Struct, structs

from millstream import ProtocolError, ToolError, __version__
from millstream._gateway.calls.failures import no_response_error, refused_error
from millstream._gateway.calls.forwarded_call import INPUT_REQUIRED, ForwardedCall, SavedResult, input_required
from millstream._gateway.errors import EndedHere, EndedThere, InUse
from millstream._gateway.log import logger
from millstream._gateway.loops import PATH, GatewayLoop, extend_path
from millstream._gateway.messages.route import Way, choose_way
from millstream._gateway.messages.router import CallRecipient, ForwardedStream
from millstream._gateway.questions.abilities import can_ask, declare
from millstream._gateway.rules.results import call_error
from millstream._gateway.upstreams.links import Link
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._gateway.upstreams.upstream import NAME
from millstream._http.client import UnsendableRequest
from millstream._protocol.errors import REQUIRES_CAPABILITIES
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    VERSION_KEY,
    Implementation,
)
from millstream._server.calls.call import Call
from millstream._server.control import release_arguments, too_many_streams
from millstream._server.dispatch import RelayedError
from millstream._tasks import is_canceled
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ServerError,
    SessionLost,
    TargetError,
)
from millstream.client._recovery import NO_HANDSHAKE, has_only_session
from millstream.client.lowlevel import RawRequest
from millstream.protocol import (
    MALFORMED,
    SUBSCRIPTION_KEY,
    TASKS,
    Json,
    Revision,
    decode_object,
    decoder,
    encode,
)

_MAX_LINKS_PER_KEY, _MAX_HTTP_LINKS_PER_KEY = 64, 8
"""Maximum concurrent connections for the calls with one key. A separate connection shows which call a question belongs
to. On Streamable HTTP, fewer are needed, because most questions name their call.
"""
_NOT_SENT = ConnectFailed, SessionLost, TargetError, UnsendableRequest
"""Errors of a single request that the upstream didn't process."""
_MAX_NAME = 200
"""Maximum characters of the name of an item that needs the newer era, because it's remembered."""
_COPIES = 3
"""Number of copies that a subscription keeps of its parameters."""
_MAX_CACHED_META = 1024
_CANNOT_ASK = re.compile(
    rb"': this transport context has no back-channel for server-initiated requests\."  # Python, fastmcp
    rb"|cannot be sent while serving a request on (?:that revision|protocol version)"  # TypeScript, Go
    rb"|server-to-client requests are not allowed on protocol "  # Rust
    rb"|server-initiated requests are not supported in protocol version "  # mcp-go
    rb"|per-request legacy serving cannot receive server-to-client requests"  # TypeScript, without sessions
)
"""SDK errors for a tool that asks in the per-request era, or without a session. Texts that only mention such requests
don't match.
"""
_NEEDS_EXTENSION = f"{REQUIRES_CAPABILITIES} extensions".encode()
"""Part of the handshake-era error of a Millstream tool that needs tasks. Other servers name the extension."""
_CONNECTION_META = frozenset(
    {
        VERSION_KEY,
        CAPABILITIES_KEY,
        CLIENT_KEY,
        LOG_LEVEL_KEY,
        SUBSCRIPTION_KEY,
        "progressToken",
        "io.modelcontextprotocol/related-task",
    }
)
"""`_meta` members that belong to the client's own connection."""


class _ToolResult(Struct, rename="camel"):
    is_error: bool = False


_decode_tool_result = decoder(_ToolResult)


def forward(
    call: Call,
    upstream: McpUpstream,
    method: str,
    params: bytes,
    name: str,
    *,
    headers: Mapping[str, str] = {},
) -> Awaitable[bytes]:
    """Send a request to an upstream and return the raw JSON object of its result.

    Args:
        call: The client's call.
        upstream: The target.
        method: Method of the request.
        params: Encoded parameters.
        name: Upstream's name of the tool or prompt, or URI of the resource.
        headers: Additional HTTP headers.

    Raises:
        InputRequired: The upstream asks a question, which the client answers with its next request.
        NoResponse: There was no response, for methods other than ``tools/call``.
        ProtocolError: The upstream's own error, or for methods other than ``tools/call``, the lack of a response.
        ToolError: There was no response, or the upstream requires a capability that the client lacks.
    """
    ask = RawRequest(method=method, params=params, name=name, headers=headers, rounds=False, owner=call.owner)
    ask.said = call.params or call.body  # before rules add to it
    runs_again = call.parked is None or call.parked.may_run_again
    if runs_again and (link := upstream.find_plain_link(call, Way.PASS)) is not None:
        return forward_plainly(call, upstream, link, ask, call.raw_meta())
    return forward_exactly(call, upstream, ask)


async def forward_plainly(  # noqa: C901, PLR0912  one frame for each call
    call: Call, upstream: McpUpstream, link: Link, ask: RawRequest, meta: bytes, *, verbatim: bool = False
) -> bytes:
    """Forward a call that is one request and one result on both sides, on the link of `Upstream.find_plain_link`.

    Args:
        call, upstream, link, ask: The client's call, the target, a connection to it, and the request.
        meta: The `_meta` of the call.
        verbatim: Whether the client speaks the upstream's revision, so everything is passed on unchanged.
    """
    requests, router = link.conversation.requests, link.router
    source = call.revision if verbatim else link.conversation.negotiated.revision
    ask.meta = _plain_meta(call, upstream, source, meta, verbatim=verbatim)
    breaker, method, name = upstream.breaker, ask.method, ask.name
    if breaker.records and (refusal := breaker.refusal(call, method, name)):
        raise refused_error(call, upstream, refusal)
    owner, places = ask.owner, link.places
    if places is not None and not (places.take(owner) or await places.acquire(owner)):
        raise no_response_error(call, upstream, InUse(places, owner))
    link.calls += 1
    started = link.last_used = monotonic()
    if verbatim:
        ask.id = next(requests.ids)
        router.plain_calls[ask.id] = call
    try:
        current = requests.connection
        if current is None or current.transport.lost:
            result = await requests.ask(ask)
        else:
            try:
                result = await requests.send(current, ask)
            except ClientError as exc:
                result = await requests.send_again(current, ask, exc)
        link.failures = 0
        breaker.succeed(monotonic() - started, call, method, name)
        if INPUT_REQUIRED in result and not verbatim and (required := input_required(result)) is not None:
            raise ForwardedCall(call, upstream, ask, source=source).pass_on(required)
    except (ServerError, AccessDenied) as exc:
        record = breaker.respond if isinstance(exc, AccessDenied) else breaker.succeed
        record(monotonic() - started, call, method, name)
        upstream.suspect(link, exc)
        raise ForwardedCall(call, upstream, ask, source=source, verbatim=verbatim).convert_error(exc) from None
    except ClientError as exc:
        if not _replaces_session(call, upstream, link, exc):
            raise await _fail(call, upstream, link, exc, ask) from None
        result = b""
    finally:
        link.calls -= 1
        if places is not None:
            places.leave(owner)
        if verbatim:
            del router.plain_calls[ask.id]
            if isinstance(recipient := router.recipients.pop(ask.id, None), CallRecipient):
                await recipient.outbox.settle()
    if not result:
        ask.id = 0
        return await forward_exactly(call, upstream, ask, verbatim=verbatim)
    return result


def _plain_meta(call: Call, upstream: McpUpstream, source: Revision, raw: bytes, *, verbatim: bool) -> bytes:
    """Return `_meta` for the upstream, cached because most of a client's requests share it."""
    key, cache = (raw, source.date, verbatim), upstream.plain_metas
    meta_bytes = cache.get(key)
    if meta_bytes is None:
        meta_bytes = _meta(call, upstream, source, upstream.abilities(call), verbatim=verbatim)
        if len(raw) <= _MAX_CACHED_META:
            cache.keep(key, meta_bytes)
    return meta_bytes


def _meta(
    call: Call, upstream: McpUpstream, source: Revision, abilities: bytes, level: str = "", *, verbatim: bool = False
) -> bytes:
    """Return the `_meta` members for the upstream: the path, and the client's members, except those about its
    connection.

    Raises:
        ToolError, ProtocolError: The call has come back to this gateway.
    """
    try:
        found = decode_members(call.raw_meta() or b"{}")
    except MALFORMED:
        found = {}
    own = source.handshake or (verbatim and VERSION_KEY in found)  # a REST call has no envelope
    hidden = ("progressToken",) if verbatim else _CONNECTION_META
    members = {key: value for key, value in found.items() if key not in hidden}
    try:
        if not upstream.is_program:  # the upstream leads to no other gateway
            members[PATH] = extend_path(members.get(PATH), upstream.gateway.id)
    except GatewayLoop:
        # Refuse only this call: the client controls the path, and must not block the upstream for others.
        raise call_error(
            call, f"The call runs in a loop: the server {upstream.name!r} leads back to this gateway."
        ) from None
    if own:
        if CLIENT_KEY in members and not upstream.config.forward_client:
            members[CLIENT_KEY] = Raw(_GATEWAY)
        return encode(members)[1:-1]
    tasks = call.method == "tools/call" and upstream.has_tasks and not verbatim
    client = _GATEWAY
    if upstream.config.forward_client and (call.client.name or CLIENT_KEY in found):
        client = bytes(found.get(CLIENT_KEY, b"")) or encode(Implementation(call.client.name, call.client.version))
    members[CLIENT_KEY] = Raw(client)
    return b"%b,%b" % (_envelope(source, abilities, level, tasks=tasks), encode(members)[1:-1])


async def forward_exactly(  # noqa: C901, PLR0912, PLR0915  one frame for each call
    call: Call, upstream: McpUpstream, ask: RawRequest, *, verbatim: bool = False, recovered: bool = False
) -> bytes:
    """Forward a call. If it's denied, the user may connect an account or grant more scopes, once."""
    credentials, denied, method, name = upstream.credentials, None, ask.method, ask.name
    if credentials is not None and not recovered:
        await credentials.prepare(call)
    level, requested_level = await _find_log_level(call)
    forwarding = ForwardedCall(call, upstream, ask, level=level, verbatim=verbatim)
    link, previous, breaker = None, forwarding.previous, upstream.breaker
    if isinstance(previous, SavedResult):
        return bytes(previous.result)
    if previous is None and breaker.is_open:
        await upstream.lists.wait_for_return()
    if previous is None and (refusal := breaker.refusal(call, method, name)):
        raise refused_error(call, upstream, refusal)
    started, answered = monotonic(), False
    try:
        link = await connect(call, upstream, forwarding.abilities, name)
        link.calls += 1
        source = link.conversation.negotiated.revision
        way = choose_way(call.revision, source, is_relayed=verbatim)
        if verbatim and way is not Way.VERBATIM:
            return b""
        if requested_level and source.handshake and not verbatim:
            await _set_level(upstream, link, requested_level)
        ask.meta = _meta(call, upstream, source, forwarding.abilities, level, verbatim=verbatim)
        result = await forwarding.outbox.settle_after(forwarding.run(link, way))
        answered, link.failures = True, 0
        if not (
            (_cannot_ask(result) or _NEEDS_EXTENSION in result) and _try_other_era(call, upstream, link, ask, result)
        ):
            forwarding.finish(result)
            return result
    except (ServerError, AccessDenied) as exc:
        answered, denied = True, exc if isinstance(exc, AccessDenied) else None
        upstream.suspect(link, exc)
        if isinstance(exc, ServerError) and not _try_other_era(
            call, upstream, link, ask, encode({"isError": True, "data": [exc.message, exc.data]})
        ):
            raise forwarding.convert_error(exc) from None
        if denied is not None and forwarding.replays:
            call.begin(begun=False)  # the upstream didn't run it
    except ClientError as exc:
        if call.claim is not None and isinstance(exc, _NOT_SENT) and not forwarding.has_response:
            call.claim.begun = False
        if not _replaces_session(call, upstream, link, exc):
            raise await _fail(call, upstream, link, exc, ask) from None
    finally:
        if link is not None:
            link.calls -= 1
            upstream.links.leave(link)
        if answered:
            record = breaker.succeed if denied is None else breaker.respond
            record(monotonic() - started, call, method, name)
    if denied is not None:
        if recovered or credentials is None or not await credentials.recover(call, denied):
            raise no_response_error(call, upstream, denied)
        recovered = True
    return await forward_exactly(call, upstream, ask, verbatim=verbatim, recovered=recovered)


async def forward_stream(call: Call, upstream: McpUpstream, params: bytes) -> bytes:  # noqa: C901  one frame for each
    """Pass on `subscriptions/listen` until either side ends it and return the raw result. It's empty if the gateway has
    to serve the subscription, because the upstream can't be reached in the client's revision, or serves enough of them.

    Raises:
        ProtocolError: The upstream's error, or the subscription was lost.
    """
    owner, services, links = call.owner, call.services, upstream.links
    if upstream.route(call).once or not links.streams.take(owner):
        return b""
    with contextlib.ExitStack() as ends:
        ends.callback(links.streams.leave, owner)
        try:
            if upstream.credentials is not None:
                await upstream.credentials.prepare(call)
            link = await connect(call, upstream, b"", "")
        except ClientError:
            return b""
        source = link.conversation.negotiated.revision
        if source is not call.revision:
            return b""
        if not services.streams.take(owner):
            raise too_many_streams(services.streams.count(owner))
        ends.callback(services.streams.leave, owner)
        services.client_memory.take(owner, size := _COPIES * len(params))
        ends.callback(services.client_memory.bytes.leave, owner, size)
        requests, streams = link.conversation.requests, link.router.streams
        meta = _meta(call, upstream, source, upstream.abilities(call), verbatim=True)
        ask = RawRequest(
            method=call.method, params=params, meta=meta, timeout=math.inf, rounds=False, owner=owner,
            id=next(requests.ids), said=call.params,
        )  # fmt: skip
        call.params = b""  # the stream can be open for a day
        release_arguments(call, services.bodies)
        work = asyncio.ensure_future(requests.ask(ask))

        def end() -> None:
            work.cancel()

        stream = streams[ask.id] = ForwardedStream(call, end)
        ends.callback(streams.pop, ask.id)
        link.calls += 1
        ends.callback(lambda: setattr(link, "calls", link.calls - 1))
        services.endings.add(end)
        ends.callback(services.endings.discard, end)
        ends.callback(call.open_reply_channel().on_close(end))
        try:
            result = decode_object(await stream.outbox.settle_after(work))
        except asyncio.CancelledError:
            if is_canceled():
                raise
            result = {"resultType": "complete"}  # this server is ending the stream
        except ServerError as exc:
            raise RelayedError(exc.code, exc.message, exc.data) from None
        except (ClientError, *MALFORMED) as exc:
            logger.debug("%s: a client's subscription was lost: %s", upstream.name, exc)
            raise refused_error(call, upstream, "has ended the subscription. Subscribe again.") from None
        return encode({**result, "_meta": stream.mark(result)})


def _replaces_session(call: Call, upstream: McpUpstream, link: Link | None, exc: ClientError) -> bool:
    """Return whether a request whose session was lost can be sent again, in a new one. People don't see the errors of
    such requests, so the next call says that the state is lost.
    """
    links = upstream.links
    if link is None or not link.has_caller or not _is_unseen(call) or isinstance(exc, EndedHere):
        return False
    # Several such requests can lose a session together. If the next session was lost, too, this one fails.
    if not link.ended and not (isinstance(exc, SessionLost) and link.key.session not in links.lost):
        return False
    links.lose(link)
    upstream.lists.refresh_after_loss()
    return True


def _is_unseen(call: Call) -> bool:
    """Return whether people don't see the error of a request, because libraries send it."""
    return call.method == "ping" or call.method.endswith("/list")


async def _fail(
    call: Call, upstream: McpUpstream, link: Link | None, exc: ClientError, ask: RawRequest
) -> ToolError | ProtocolError:
    """Return the error for a call without a response. If the client's session at the upstream has ended, the error says
    that its state is lost, and the next call opens another one. Most clients wouldn't recover from the status 404.
    """
    if isinstance(exc, EndedHere):
        if isinstance(exc, EndedThere):
            upstream.lists.refresh_after_loss()
            return no_response_error(call, upstream, SessionLost(exc.message))
        return call_error(call, _ENDED_HERE.format(upstream.name))
    lost = isinstance(exc, SessionLost)
    ended = link if link is not None and link.has_caller and (lost or link.is_lost) else None
    if ended is not None and _is_unseen(call):
        upstream.links.lose(ended)
    elif ended is not None:
        await upstream.links.forget(ended)  # the caller learns it now
    if lost:
        upstream.lists.refresh_after_loss()
    else:
        upstream.record_failure(exc, call, ask.method, ask.name)
        if ended is None:
            upstream.suspect(link, exc)
    return no_response_error(call, upstream, exc, ended=ended is not None)


_ENDED_HERE = (
    "This gateway has restarted, or has closed your session with the server {0!r} for another reason, so the session "
    "has lost its state. Call again to start a new one."
)


def _try_other_era(call: Call, upstream: McpUpstream, link: Link | None, ask: RawRequest, result: bytes) -> bool:
    """Switch to the other era if a call failed because of its era. Return whether the call can be sent again, because
    the upstream didn't start it.

    Raises:
        ToolError, ProtocolError: The upstream couldn't ask, and may have done something.
    """
    try:
        if link is None or link.ended or not _decode_tool_result(result).is_error:
            return False
        sent = encode(msgspec.json.decode(ask.params))
    except MALFORMED:
        return False
    if _cannot_ask(sent) or _NEEDS_EXTENSION in sent or TASKS.encode() in sent:
        return False  # the error may quote its caller
    needed = (call.method, ask.name)
    if link.key.own and len(ask.name) <= _MAX_NAME and needed not in upstream.newer_calls:
        needs_task = call.method == "tools/call" and (TASKS.encode() in result or _NEEDS_EXTENSION in result)
        if needs_task or (
            not link.conversation.transport.has_session and _cannot_ask(result) and can_ask(upstream.abilities(call))
        ):
            upstream.newer_calls.keep(needed, None)
            return True
    if _cannot_ask(result) and (remedy := upstream.ask_by_handshake(link)):
        raise call_error(call, f"The server {upstream.name!r} couldn't ask a question. {remedy}")
    return False


def _cannot_ask(message: bytes) -> bool:
    """Return whether a message contains an SDK's error. Only a few large messages need the slower search."""
    return b" request" in message and _CANNOT_ASK.search(message) is not None


async def connect(  # noqa: C901, PLR0912  each refusal has its own next step
    call: Call, upstream: McpUpstream, abilities: bytes, name: str
) -> Link:
    """Return the connection of a call, opening it if necessary.

    Args:
        call: The client's call.
        abilities: See `McpUpstream.key`.
        name: See `McpUpstream.key`.

    Raises:
        ClientError: The upstream can't be reached.
    """
    key, links, began = upstream.key(call, abilities, name), upstream.links, call.started or monotonic()
    if key.own:
        if (link := await upstream.open_own(call, key)) is not None:
            if not _is_unseen(call):
                await links.check(link, began)
            return link
        key = upstream.key(call, abilities, name)
    try:
        if key.call:
            return await links.open_once(key, call.owner)
        link = await links.open(key, call.owner)
        if not _is_unseen(call):
            await links.check(link, began)
    except NO_HANDSHAKE as exc:
        if has_only_session(exc):
            key = upstream.share_session(call, exc)
        elif key.handshake:
            upstream.lose_handshake()
            key = upstream.key(call, abilities, name)
        else:
            raise
        link = await links.open(key, call.owner)
    if link.calls and not key.affinity and key.capabilities and can_ask(abilities):
        # Calls without a session don't depend on one connection. A connection per call separates the questions, because
        # many servers send them on a stream that doesn't identify the call.
        streams = link.conversation.transport.name == "streamable-http"
        for number in range(1, _MAX_HTTP_LINKS_PER_KEY if streams else _MAX_LINKS_PER_KEY):
            other = structs.replace(key, affinity=f"#{number}")
            try:
                found = await links.open(other, call.owner)
            except ClientError as exc:
                logger.debug("%s: another connection couldn't be opened: %s", upstream.name, exc)
                break
            if not found.calls:
                return found
    return link


async def _find_log_level(call: Call) -> tuple[str, str]:
    """Return the effective minimum log level for the client, and the level that it set."""
    if call.revision.log_level_per_request:
        return call.log_level, call.log_level
    services, session, requested = call.services, call.session, ""
    if session is not None and (session.record is not None or services.records.may_exist(session)):
        requested = (await services.records.get(session)).log_level
    return requested or services.settings.client_log_level, requested


async def _set_level(upstream: McpUpstream, link: Link, level: str) -> None:
    """Set a handshake-era upstream's log level to the lowest that any call on a shared connection needs."""
    router = link.router
    if "logging" not in upstream.catalog.capabilities or (
        router.level and LOG_LEVELS.index(level) >= LOG_LEVELS.index(router.level)
    ):
        return
    router.level = level
    try:
        await link.conversation.set_log_level(level)
    except ServerError as exc:
        logger.debug("%s doesn't support log levels: %s", upstream.name, exc)


_GATEWAY = encode(Implementation(NAME, __version__))


@lru_cache(256)
def _envelope(source: Revision, abilities: bytes, level: str, *, tasks: bool) -> bytes:
    declared = declare(abilities, source)
    if tasks:
        declared["extensions"] = {**declared.get("extensions", {}), TASKS: {}}
    members: Json = {VERSION_KEY: source.date, CAPABILITIES_KEY: declared}
    if level:
        members[LOG_LEVEL_KEY] = level
    return encode(members)[1:-1]
