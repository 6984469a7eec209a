"""Forwarding a call to an upstream of either era: questions, progress, logs, cancellation, errors, and results.

| client | upstream | questions |
|---|---|---|
| handshake | handshake | sent to the client on the stream of its call (see `_relay`) |
| handshake | per-request | `input_required` becomes requests to the client. The answers go back with the state |
| per-request | handshake | the call is parked until the client's retry (see `_parked_calls`) |
| per-request | per-request | `input_required` is passed on, with its state sealed again |
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Collection, Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from millstream import Cancelled, Declined, ProtocolError, ToolError, __version__
from millstream._http.client import UnsendableRequest
from millstream._override import override
from millstream._protocol.errors import (
    HEADER_MISMATCH,
    REQUIRES_CAPABILITIES,
    RESOURCE_NOT_FOUND,
    UNSUPPORTED_VERSION,
    URL_ELICITATION_REQUIRED,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    VERSION_KEY,
    Implementation,
    declares,
)
from millstream._protocol.notifications import ElicitResult, EmptyResult, InputRequest, InputRequiredResult
from millstream._protocol.seal import InputRequired
from millstream._server.calls.call import Call
from millstream._server.control import release_arguments, too_many_streams
from millstream._server.dispatch import RelayedError
from millstream._tasks import is_canceled, retry_delay
from millstream._transports.open_streams import unknown_session
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    RequestTimeout,
    ServerError,
    SessionLost,
    TargetError,
    Task,
    TooLarge,
    TooMuchArriving,
)
from millstream.client._endpoint import redact_error, try_again
from millstream.client._requests import NO_HANDSHAKE
from millstream.client._transports import get_secrets
from millstream.client.lowlevel import RawRequest
from millstream.gateway._links import InUse, Link, NoCredentials
from millstream.gateway._names import PATH, GatewayLoop, extend_path
from millstream.gateway._parked_calls import CALL_OVER, ParkedCall, TaggedRecord, Ticket
from millstream.gateway._relay import (
    MAX_OPEN_QUESTIONS,
    ForwardedQuestion,
    ForwardedStream,
    Recipient,
    Relay,
    can_ask,
    declare,
    logger,
    name_sender,
    project_answer,
    project_question,
)
from millstream.gateway._results import NoResponse, call_error
from millstream.gateway._upstream import NAME, Upstream
from millstream.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MALFORMED,
    NEWEST_HANDSHAKE,
    SUBSCRIPTION_KEY,
    TASKS,
    Json,
    Revision,
    ToolUnavailable,
    decode_object,
    decoder,
    encode,
)


class RevisionsDiffer(Exception):
    """A call can't be passed on unchanged, because the upstream has chosen another revision."""


_MAX_LINKS_PER_KEY, _MAX_HTTP_LINKS_PER_KEY = 64, 8
"""Maximum concurrent connections for the calls with one key. A separate connection shows which call a question belongs
to. On Streamable HTTP, fewer are needed, because most questions name their call.
"""
_MAX_SAVED_RESULT = 16 * 1024
"""Maximum size of a result that is saved while its call asks another question, in bytes."""
_COPIES = 3
"""Number of copies that a subscription keeps of its parameters."""
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 5.0
_MAX_CACHED_META = 1024
_INPUT_REQUIRED, _TASK_MARKER = b'"input_required"', b'"task"'
_CANNOT_ASK = re.compile(
    rb"': this transport context has no back-channel for server-initiated requests\."  # Python, fastmcp
    rb"|cannot be sent while serving a request on (?:that revision|protocol version)"  # TypeScript, Go
    rb"|server-to-client requests are not allowed on protocol "  # Rust
    rb"|server-initiated requests are not supported in protocol version "  # mcp-go
)
"""SDK errors for a tool that asks in the per-request era. Texts that only mention such requests don't match."""
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

_decode_type = foreign_decoder(EmptyResult)
_decode_required = foreign_decoder(InputRequiredResult)
_decode_task = foreign_decoder(Task)
_decode_elicit = decoder(ElicitResult)


class _Rounds(TaggedRecord):
    """State that a per-request-era upstream expects back."""

    state: str | None
    keys: list[str]


class _Urls(TaggedRecord):
    """Questions that ask the user to open URLs, by key."""

    questions: Json


class _SavedResult(TaggedRecord):
    result: Raw


class StoredTask(TaggedRecord):
    """An upstream's task, stored between two client requests or two runs of the gateway's own task."""

    id: str
    asked_keys: list[str]
    """Keys of the questions that the client has received."""


_State = Ticket | _Rounds | _Urls | StoredTask | _SavedResult


class _ToolResult(Struct, rename="camel"):
    is_error: bool = False


class _Elicitations(Struct):
    """Data of an error that asks the user to open URLs."""

    elicitations: list[Json]


_decode_state = msgspec.json.Decoder(tuple[str, _State]).decode
"""Decodes the upstream's name and the state of a forwarded call, which are sealed between its client's requests."""
_decode_tool_result = decoder(_ToolResult)


def forward(
    call: Call,
    upstream: Upstream,
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
    if _is_plain(call) and (link := upstream.find_plain_link(call)) is not None:
        return forward_plainly(call, upstream, link, ask, call.raw_meta())
    return forward_exactly(call, upstream, ask)


def _is_plain(call: Call) -> bool:
    """Return whether the client expects only the result of the call, and this is the call's first request."""
    return not (
        call.revision.handshake
        or call.tee is not None
        or call.log_level
        or call.rounds is not None
        or call.responses
        or (call.services.forwarded_extensions and call.client.extensions)
    )


async def forward_plainly(  # noqa: C901  one frame for each call
    call: Call, upstream: Upstream, link: Link, ask: RawRequest, meta: bytes, *, verbatim: bool = False
) -> bytes:
    """Forward a call that is one request and one result on both sides, on the link of `Upstream.find_plain_link`.

    Args:
        call, upstream, link, ask: The client's call, the target, a connection to it, and the request.
        meta: The `_meta` of the call.
        verbatim: Whether the client speaks the upstream's revision, so everything is passed on unchanged.
    """
    requests, relays = link.conversation.requests, link.relays
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
        relays.plain_calls[ask.id] = call
    try:
        current = requests.connection
        if current is None or current.transport.lost:
            result = await requests.ask(ask)
        else:
            result = await requests.send(current, ask)
        breaker.succeed(monotonic() - started, call, method, name)
        if _INPUT_REQUIRED in result and not verbatim and (required := _input_required(result)) is not None:
            raise _ForwardedCall(call, upstream, ask, source=source).pass_on(required)
    except (ServerError, AccessDenied) as exc:
        breaker.succeed(monotonic() - started, call, method, name)
        raise _ForwardedCall(call, upstream, ask, source=source, verbatim=verbatim).convert_error(exc) from None
    except ClientError as exc:
        raise await _fail(call, upstream, link, exc, ask) from None
    finally:
        link.calls -= 1
        if places is not None:
            places.leave(owner)
        if verbatim:
            del relays.plain_calls[ask.id]
            if isinstance(relay := relays.recipients.pop(ask.id, None), Relay):
                await relay.outbox.settle()
    return result


def _plain_meta(call: Call, upstream: Upstream, source: Revision, raw: bytes, *, verbatim: bool) -> bytes:
    """Return `_meta` for the upstream, cached because most of a client's requests share it."""
    key, cache = (raw, source.date, verbatim), upstream.plain_metas
    meta_bytes = cache.get(key)
    if meta_bytes is None:
        meta_bytes = _meta(call, upstream, source, upstream.abilities(call), verbatim=verbatim)
        if len(raw) <= _MAX_CACHED_META:
            cache.keep(key, meta_bytes)
    return meta_bytes


def _meta(
    call: Call, upstream: Upstream, source: Revision, abilities: bytes, level: str = "", *, verbatim: bool = False
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
    if source.handshake or verbatim:
        return encode(members)[1:-1]
    tasks = call.method == "tools/call" and upstream.has_tasks
    client = _GATEWAY
    if upstream.config.forward_client and (call.client.name or CLIENT_KEY in found):
        client = bytes(found.get(CLIENT_KEY, b"")) or encode(Implementation(call.client.name, call.client.version))
    members[CLIENT_KEY] = Raw(client)
    return b"%b,%b" % (_envelope(source, abilities, level, tasks=tasks), encode(members)[1:-1])


async def forward_exactly(  # noqa: C901, PLR0912  one frame for each call
    call: Call, upstream: Upstream, ask: RawRequest, *, verbatim: bool = False, recovered: bool = False
) -> bytes:
    """Forward a call. If it's denied, the user may connect an account or grant more scopes, once."""
    credentials, denied, method, name = upstream.credentials, None, ask.method, ask.name
    if credentials is not None and not recovered:
        await credentials.prepare(call)
    level, requested_level = await _find_log_level(call)
    forwarding = _ForwardedCall(call, upstream, ask, level=level, verbatim=verbatim)
    link, previous, breaker = None, forwarding.previous, upstream.breaker
    if isinstance(previous, _SavedResult):
        return bytes(previous.result)
    if previous is None and (refusal := breaker.refusal(call, method, name)):
        raise refused_error(call, upstream, refusal)
    started, answered = monotonic(), False
    try:
        if isinstance(previous, Ticket):
            work: Awaitable[bytes] = upstream.gateway.parked_calls.resume(forwarding, previous)
        else:
            link = await _connect(call, upstream, forwarding.abilities, name)
            link.calls += 1
            source = link.conversation.negotiated.revision
            if verbatim and source is not call.revision:
                raise RevisionsDiffer
            if requested_level and source.handshake and not verbatim:
                await _set_level(upstream, link, requested_level)
            ask.meta = _meta(call, upstream, source, forwarding.abilities, level, verbatim=verbatim)
            work = forwarding.run(link)
        result = await forwarding.outbox.settle_after(work)
        answered = True
        if not (
            (_cannot_ask(result) or _NEEDS_EXTENSION in result) and _try_other_era(call, upstream, link, ask, result)
        ):
            forwarding.finish(result)
            return result
    except ServerError as exc:
        answered = True
        if not _try_other_era(call, upstream, link, ask, encode({"isError": True, "data": [exc.message, exc.data]})):
            raise forwarding.convert_error(exc) from None
    except AccessDenied as exc:
        answered, denied = True, exc
    except ClientError as exc:
        raise await _fail(call, upstream, link, exc, ask) from None
    finally:
        if link is not None:
            link.calls -= 1
        if answered:
            breaker.succeed(monotonic() - started, call, method, name)
    if denied is not None:
        if recovered or credentials is None or not await credentials.recover(call, denied):
            raise no_response_error(call, upstream, denied)
        recovered = True
    return await forward_exactly(call, upstream, ask, verbatim=verbatim, recovered=recovered)


async def forward_stream(call: Call, upstream: Upstream, params: bytes) -> bytes:  # noqa: C901  one frame for each
    """Pass on `subscriptions/listen` until either side ends it and return the raw result.

    Raises:
        RevisionsDiffer: The gateway has to serve the subscription, because the upstream can't be reached in the
            client's revision, or serves enough of them.
        ProtocolError: The upstream's error, or the subscription was lost.
    """
    owner, services, links = call.owner, call.services, upstream.links
    if not links.streams.take(owner):
        raise RevisionsDiffer
    with contextlib.ExitStack() as ends:
        ends.callback(links.streams.leave, owner)
        try:
            if upstream.credentials is not None:
                await upstream.credentials.prepare(call)
            link = await _connect(call, upstream, b"", "")
        except ClientError:
            raise RevisionsDiffer from None
        source = link.conversation.negotiated.revision
        if source is not call.revision:
            raise RevisionsDiffer
        if not services.streams.take(owner):
            raise too_many_streams(services.streams.count(owner))
        ends.callback(services.streams.leave, owner)
        services.client_memory.take(owner, size := _COPIES * len(params))
        ends.callback(services.client_memory.bytes.leave, owner, size)
        requests, streams = link.conversation.requests, link.relays.streams
        meta = _meta(call, upstream, source, upstream.abilities(call), verbatim=True)
        ask = RawRequest(
            method=call.method, params=params, meta=meta, timeout=math.inf, rounds=False, owner=owner,
            id=next(requests.ids),
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


async def _fail(
    call: Call, upstream: Upstream, link: Link | None, exc: ClientError, ask: RawRequest
) -> ToolError | ProtocolError:
    """Return the error for a call without a response.

    If the client's session at the upstream has ended, a relay also ends the client's session here, and the client
    initializes again. A client that's bound to a connection finds out only from the error. With a catalog, the next
    call opens another session, and the error explains that the upstream's state is lost.
    """
    lost, session = isinstance(exc, SessionLost), call.session
    if link is not None and link.key.own and (lost or link.conversation.transport.lost):
        upstream.links.end(link)
    elif not lost:
        session = None
    if lost:
        upstream.refresh_after_loss()
    else:
        upstream.record_failure(exc, call, ask.method, ask.name)
    if upstream.relays and session is not None and session.record is None:
        await call.services.records.bury(session, max(1.0, session.expires_at - call.services.clock()))
        call.services.end_session(session.id)
        if isinstance(exc, SessionLost):
            found = unknown_session()
            return ProtocolError(found.code, found.message, status=found.status, head=_NO_STORE)
    return no_response_error(call, upstream, exc)


_NO_STORE = b"cache-control: no-store\r\n"
"""Headers of the error about an ended session, which keeps its status in every revision."""


def _try_other_era(call: Call, upstream: Upstream, link: Link | None, ask: RawRequest, result: bytes) -> bool:
    """Switch to the other era if a call failed because of its era. Return whether the call can be sent again, because
    the upstream didn't start it.

    Raises:
        ToolError, ProtocolError: The upstream couldn't ask, and may have done something.
    """
    try:
        if link is None or not _decode_tool_result(result).is_error:
            return False
        sent = encode(msgspec.json.decode(ask.params))
    except MALFORMED:
        return False
    if _cannot_ask(sent) or _NEEDS_EXTENSION in sent or TASKS.encode() in sent:
        return False  # the error may quote its caller
    if (
        link.key.own
        and ask.name not in upstream.task_tools
        and (TASKS.encode() in result or _NEEDS_EXTENSION in result)
    ):
        upstream.task_tools.add(ask.name)
        return call.method == "tools/call"
    if _cannot_ask(result) and (remedy := upstream.ask_by_handshake(link)):
        raise call_error(call, f"The server {upstream.name!r} couldn't ask a question. {remedy}")
    return False


def _cannot_ask(message: bytes) -> bool:
    """Return whether a message contains an SDK's error. Only a few large messages need the slower search."""
    return b" request" in message and _CANNOT_ASK.search(message) is not None


async def _connect(call: Call, upstream: Upstream, abilities: bytes, name: str) -> Link:
    key, links = upstream.key(call, abilities, name), upstream.links
    if key.own:
        if (link := await upstream.open_own(call, key)) is not None:
            return link
        key = upstream.key(call, abilities, name)
    try:
        link = await links.open(key, call.owner)
    except NO_HANDSHAKE:
        if not key.handshake:
            raise
        upstream.has_handshake = False  # for a shared process
        link = await links.open(upstream.key(call, abilities, name), call.owner)
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


async def _set_level(upstream: Upstream, link: Link, level: str) -> None:
    """Set a handshake-era upstream's log level to the lowest that any call on a shared connection needs."""
    relays = link.relays
    if "logging" not in upstream.catalog.capabilities or (
        relays.level and LOG_LEVELS.index(level) >= LOG_LEVELS.index(relays.level)
    ):
        return
    relays.level = level
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


class _ForwardedCall(Relay):
    """A call that's forwarded to an upstream, with the state that the client's retries carry."""

    previous: _State | None = None
    _link: Link

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        ask: RawRequest,
        *,
        level: str = "",
        source: Revision = NEWEST_HANDSHAKE,
        verbatim: bool = False,
    ) -> None:
        """Read the call's saved state.

        Args:
            call, upstream: See `forward`.
            ask: The request to the upstream.
            level: Minimum level of log messages for the client, or empty for none.
            verbatim: See `forward`.
            source: Revision of the connection. `run` replaces it; parked calls wait at upstreams of the handshake era.

        Raises:
            ProtocolError: The state belongs to another upstream.
        """
        super().__init__(call, upstream.abilities(call), level, upstream.policy.redactor(ask.method, ask.name))
        self.verbatim = verbatim
        self._upstream = upstream
        self._ask = ask
        self._source = source
        self._slot = f"gateway {ask.method} {ask.name}"
        raw = call.saved_value(self._slot)
        if raw is not None:
            name, self.previous = _decode_state(raw)
            if name != upstream.name:
                raise ProtocolError(INVALID_PARAMS, CALL_OVER)

    @override
    def end_request(self, questions: Mapping[str, Any], state: _State) -> InputRequired:
        """See `Relay.end_request`."""
        self._save(state)
        return InputRequired(questions)

    def finish(self, result: bytes) -> None:
        """Save the result of a finished call, because the tool may ask another question and then run again."""
        if self.previous is not None and len(result) <= _MAX_SAVED_RESULT:
            self._save(_SavedResult(Raw(result)))

    def _save(self, state: _State) -> None:
        """Save a state for the next run of the call."""
        self.call.save_value(self._slot, encode((self._upstream.name, state)))

    def run(self, link: Link) -> Awaitable[bytes]:
        """Return the raw result."""
        self._link, self._source = link, link.conversation.negotiated.revision
        self._send = partial(_send, link, self._ask)
        if self.verbatim:
            return self._send(self)
        if self._source.handshake:
            return self._send(self) if self.call.revision.handshake else self._forward_parked()
        has_tasks = self._ask.method == "tools/call" and self._upstream.has_tasks
        return self._run_with_task() if has_tasks else self._run_rounds()

    def _answers(self, keys: Collection[str]) -> Json:
        """Return the client's answers to questions."""
        return {key: raw for key, raw in (self.call.responses or {}).items() if key in keys}

    # Handshake-era upstreams

    async def _forward_parked(self) -> bytes:
        """Forward a call that gets the answers to its questions in the client's next request."""
        if isinstance(self.previous, _Urls):
            self._check_urls(self.previous)
        if not can_ask(self.abilities):
            return await self._send(self)
        calls, size = self._upstream.gateway.parked_calls, len(self._ask.params)
        return await calls.run(ParkedCall(self, self._source, size, self._send, calls), self)

    def _check_urls(self, previous: _Urls) -> None:
        """Check that the user agreed to open every URL that the upstream requested."""
        answers = self.call.responses or {}
        for key, question in previous.questions.items():
            if key not in answers:
                raise self.end_request({key: question}, previous)
            try:
                action = _decode_elicit(bytes(answers[key])).action
            except MALFORMED as exc:
                raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question['method']}") from exc
            if action != "accept":
                text = "The user declined to open the URL." if action == "decline" else "The user dismissed the URL."
                raise (Declined if action == "decline" else Cancelled)(text)

    # Per-request-era upstreams

    async def _run_rounds(self) -> bytes:
        """Forward a call in rounds.

        A client is asked on the stream of its call, or in the per-request era, by the call's result.
        """
        call, members, loop = self.call, self._earlier_rounds(), asyncio.get_running_loop()
        latest = loop.time() + self._upstream.config.timeout
        for number in range(1, call.services.settings.max_rounds + 1):
            result = await self._send(self, encode(members)[1:-1])
            required = _input_required(result)
            if required is None:
                return result
            if not call.revision.handshake:
                raise self.pass_on(required)
            members = {}
            if required.input_requests:
                questions = self._questions(required.input_requests)
                members["inputResponses"] = {key: await self._answer(each) for key, each in questions.items()}
                latest = loop.time() + self._upstream.config.timeout
            elif loop.time() > latest:
                raise RequestTimeout("The upstream postponed its response for too long.")
            else:
                await asyncio.sleep(retry_delay(number, _FIRST_WAIT, _LONGEST_WAIT))
            if required.request_state is not None:
                members["requestState"] = required.request_state
        raise InvalidResponse("The upstream asked too many times without returning a result.")

    def _earlier_rounds(self) -> Json:
        """Return the members of parameters that continue the earlier rounds of a client."""
        call, before = self.call, self.previous
        if not isinstance(before, _Rounds):
            return {"inputResponses": dict(call.responses)} if call.responses and not call.state else {}
        answers = self._answers(before.keys)
        members: Json = {"inputResponses": answers} if answers else {}
        return members if before.state is None else {**members, "requestState": before.state}

    async def _answer(self, question: ForwardedQuestion) -> Raw:
        try:
            return project_answer(question, await self.ask(question), self._source)
        except ProtocolError as exc:
            raise call_error(
                self.call, f"The server asked the client, but didn't get an answer: {exc.message}", ToolError
            ) from exc

    # Tasks of upstreams

    async def _run_with_task(self) -> bytes:
        """Forward a call that may become a task of the upstream and wait for that task.

        A client that supports tasks gets a task of the gateway. It stores the id of the upstream's task, so it survives
        questions and can continue in another worker.
        """
        call = self.call
        if isinstance(task := self.previous, StoredTask):
            if answers := self._answers(task.asked_keys):
                await self._ask_task("tasks/update", task.id, {"inputResponses": answers})
            return await self._follow_task(task)
        result = await self._run_rounds()
        created = _created_task(result)
        if created is None:
            return result
        task = StoredTask(created.task_id, [])
        if call.can_start_task:
            self._save(task)
            call.start_task()
        return await self._follow_task(task)

    async def _follow_task(self, stored: StoredTask) -> bytes:
        call, message, count = self.call, "", 0
        try:
            while True:
                task = _read_task(await self._ask_task("tasks/get", stored.id, {}))
                if task.over:
                    if task.status == "cancelled":
                        raise ToolError("The server canceled the task.")
                    try:
                        return task.raw_outcome()
                    except ServerError as exc:
                        redact_error(exc, get_secrets(self._link.conversation.transport))
                        raise
                if task.status_message and task.status_message != message:
                    message, count = task.status_message, count + 1
                    self.progress(count, None, message)
                new = {key: each for key, each in task.input_requests.items() if key not in stored.asked_keys}
                if new:
                    stored.asked_keys += new
                    questions = self._questions(new)
                    if not call.revision.handshake:
                        raise self.end_request({key: each.request for key, each in questions.items()}, stored)
                    answers = {key: await self._answer(each) for key, each in questions.items()}
                    await self._ask_task("tasks/update", stored.id, {"inputResponses": answers})
                await asyncio.sleep(task.pause)
        except asyncio.CancelledError:
            if not call.halted:  # the client canceled; a stopping worker leaves the task running
                with contextlib.suppress(ClientError, TimeoutError):
                    async with asyncio.timeout(_LONGEST_WAIT):
                        await self._ask_task("tasks/cancel", stored.id, {})
            raise

    def _ask_task(self, method: str, task_id: str, params: Mapping[str, Any]) -> Awaitable[bytes]:
        body, meta = encode({"taskId": task_id, **params}), self._ask.meta
        ask = RawRequest(method=method, params=body, name=task_id, meta=meta, repeatable=True, rounds=False)
        return self._link.conversation.requests.ask(ask)

    def pass_on(self, required: InputRequiredResult) -> InputRequired:
        """Return the exception that ends the client's request with the questions from an upstream's result."""
        questions = {key: each.request for key, each in self._questions(required.input_requests).items()}
        return self.end_request(questions, _Rounds(required.request_state, list(questions)))

    def _questions(self, requests: Mapping[str, InputRequest]) -> dict[str, ForwardedQuestion]:
        """Convert the upstream's questions to the client's revision.

        Raises:
            ToolError, ProtocolError: The upstream asks something that the client didn't declare.
        """
        if len(requests) > MAX_OPEN_QUESTIONS:
            raise InvalidResponse(f"The upstream asked {len(requests)} questions at once.")
        sender = self._upstream.sender
        try:
            return {
                key: project_question(each.method, bytes(each.params), self, self._source, sender)
                for key, each in requests.items()
            }
        except ProtocolError as exc:
            raise call_error(
                self.call, f"The server asked something that this client can't answer: {exc.message}", ToolError
            ) from exc

    def convert_error(self, exc: ServerError | AccessDenied) -> BaseException:
        """Return the upstream's own error in the client's revision."""
        call = self.call
        if isinstance(exc, AccessDenied):
            return no_response_error(call, self._upstream, exc)
        if self.verbatim:
            return RelayedError(exc.code, exc.message, exc.data)
        if exc.code == URL_ELICITATION_REQUIRED:
            return self._convert_url_error(exc)
        if call.method == "resources/read" and exc.code == INVALID_PARAMS and not self._source.handshake:
            return ProtocolError(RESOURCE_NOT_FOUND, exc.message, exc.data)
        if exc.code in (HEADER_MISMATCH, UNSUPPORTED_VERSION):  # about the gateway's request, not about the client's
            return ProtocolError(INTERNAL_ERROR, exc.message)
        return ProtocolError(exc.code, exc.message, exc.data)

    def _convert_url_error(self, exc: ServerError) -> BaseException:
        """Return the error that asks the user to open URLs first."""
        call, policy, sender = self.call, self._upstream.policy, self._upstream.sender
        try:
            urls = msgspec.convert(exc.data, _Elicitations).elicitations[:MAX_OPEN_QUESTIONS]
        except msgspec.ValidationError:
            urls = []
        if "elicitation" not in policy.questions:
            return call_error(call, exc.message, ToolError)
        if call.revision.url_error:
            named = [{**each, "message": name_sender(sender, each.get("message", ""))} for each in urls]
            return ProtocolError(exc.code, exc.message, {"elicitations": named})
        declared = declare(self.abilities, call.revision)
        if not call.revision.handshake and urls and declares(declared, {"elicitation": {"url": {}}}):
            try:
                questions = {
                    f"url{number}": project_question(
                        "elicitation/create", encode({**each, "mode": "url"}), self, call.revision, sender
                    ).request
                    for number, each in enumerate(urls, 1)
                }
            except ProtocolError:
                return no_response_error(call, self._upstream, exc)
            return self.end_request(questions, _Urls(questions))
        addresses = " ".join(str(each.get("url", "")) for each in urls)
        return call_error(call, f"{exc.message} Open this URL first, then try again: {addresses}".strip(), ToolError)


async def _send(link: Link, ask: RawRequest, recipient: Recipient, extra: bytes = b"") -> bytes:
    """Send a request once, with `extra` members in its parameters.

    A parked call holds only this coroutine, and no reference to its client's request.
    """
    requests, relays, places, owner, answered = link.conversation.requests, link.relays, link.places, ask.owner, False
    params = ask.params
    if extra:
        params = b"%b%b%b}" % (params[:-1], b"" if params == b"{}" else b",", extra)
    if places is not None and not await places.acquire(owner):
        raise InUse(places, owner)
    request_id = next(requests.ids)
    relays.recipients[request_id] = recipient
    link.calls += 1
    try:
        progress = recipient.progress if recipient.wants_progress else None
        result = await requests.ask(structs.replace(ask, params=params, progress=progress, id=request_id))
        answered = True
        return result
    except ServerError:
        answered = True
        raise
    finally:
        relays.leave(request_id, answered=answered)
        if places is not None:
            places.leave(owner)
        link.calls -= 1
        link.last_used = monotonic()


def _input_required(result: bytes) -> InputRequiredResult | None:
    """Return the questions in a result, or None if there aren't any.

    Raises:
        InvalidResponse: The result is malformed.
    """
    try:
        if _INPUT_REQUIRED not in result or _decode_type(result).result_type != "input_required":
            return None
        found = _decode_required(result)
    except MALFORMED as exc:
        raise InvalidResponse("The upstream sent a malformed question.") from exc
    if not found.input_requests and found.request_state is None:
        raise InvalidResponse("The upstream requires input, but sent neither questions nor a state.")
    return found


def _created_task(result: bytes) -> Task | None:
    """Return the task that a call became, or None for every other result.

    Raises:
        InvalidResponse: It can't be read.
    """
    try:
        return _read_task(result) if _TASK_MARKER in result and _decode_type(result).result_type == "task" else None
    except MALFORMED:
        return None


def _read_task(result: bytes) -> Task:
    """Return the task in a result.

    Raises:
        InvalidResponse: It can't be read.
    """
    try:
        return _decode_task(result)
    except MALFORMED as exc:
        raise InvalidResponse(f"The upstream's task can't be read: {exc}.") from exc


# Errors


def refused_error(call: Call, upstream: Upstream, refusal: str) -> ToolError | ProtocolError:
    """Return the error for a call that isn't sent. See `Breaker.refusal`."""
    text = f"The server {upstream.name!r} behind this gateway {refusal}"
    return ToolUnavailable(text) if call.method == "tools/call" else NoResponse(INTERNAL_ERROR, text)


def no_response_error(
    call: Call, upstream: Upstream, exc: ClientError, *, words: bool = True
) -> ToolError | ProtocolError:
    """Return the error for a call without a usable response. It doesn't reveal addresses or credentials.

    Args:
        call: The call.
        upstream: The upstream.
        exc: The reason why there was no response.
        words: Whether to add the reason that came with an HTTP status.
    """
    logger.warning("%s %s of the upstream %s failed: %s", call.method, call.name, upstream.name, exc)
    has_replied = exc.reply is not None if isinstance(exc, AccessDenied) else exc.status
    if has_replied and words:
        return refused_error(call, upstream, _describe_status(upstream, exc))
    more = _CONNECTION_ERRORS if upstream.processes is None else _PROCESS_ERRORS
    text = next((text for kind, text in (*_ERRORS, *more) if isinstance(exc, kind)), _INVALID)
    return refused_error(call, upstream, text.format(exc=exc))


def _describe_status(upstream: Upstream, exc: ClientError) -> str:
    """Describe an upstream's HTTP error and how to fix it."""
    reason = f": {exc.detail}." if exc.detail else "."
    again = try_again(exc)
    if exc.status == HTTPStatus.UNAUTHORIZED or (exc.status == HTTPStatus.FORBIDDEN and not exc.detail):
        has_credentials = upstream.credentials is not None or bool(upstream.config.headers)
        text = _DENIED if has_credentials else "requires credentials. Its operator has to add them."
        reason = f" It responded with status {exc.status}{reason}"
    else:
        text = f"responded with status {exc.status}"
    return f"{text}{reason} {again}".rstrip()


_DENIED = "rejected the gateway's credentials. Its operator has to replace them."
_NO_EFFECT = "so the call wasn't sent. Try again in a minute."
_EFFECT = "The call may have taken effect. Check before you call again."
_Texts = tuple[tuple[type[ClientError], str], ...]
_PROCESS_ERRORS: _Texts = (
    (ConnectFailed, f"can't be started, {_NO_EFFECT}"),
    (TargetError, "can't be started, so the call wasn't sent. Its operator has to correct the command."),
    (ConnectionLost, f"exited during the call. {_EFFECT}"),
)
_CONNECTION_ERRORS: _Texts = (
    (ConnectFailed, f"can't be reached, {_NO_EFFECT}"),
    (ConnectionLost, f"closed the connection during the call. {_EFFECT}"),
)
_ERRORS: _Texts = (
    (SessionLost, "has ended its session with you and lost its state. Call again to start a new one."),
    (InUse, "is busy, not down: you're using {exc.holding}. Try again when one of your calls has ended."),
    (RequestTimeout, f"didn't respond in time. {_EFFECT} A smaller request may succeed."),
    (NoCredentials, "needs credentials that the gateway can't get at the moment. Try again in a minute."),
    (AccessDenied, _DENIED),
    (UnsendableRequest, "didn't get this call. {exc.message}"),
    (TooMuchArriving, f"is sending too much data at once: {{exc.holding}}. {_EFFECT} Try again later."),
    (TooLarge, f"sent a response that's too large. {_EFFECT} Ask for less."),
)
_INVALID = "sent an invalid response. Trying again probably won't help; see the gateway's log for the reason."
