"""Streamable HTTP: each request is a POST, and its reply is JSON or an event stream. This module also has HTTP+SSE, its
predecessor.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports and 2026-07-28. A broken stream of the
handshake era is resumed with `Last-Event-ID`. In the per-request era, a request is lost with its stream, and closing
the stream cancels it.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Collection, Mapping
from functools import lru_cache

from msgspec import Struct, field

from millstream._confidential import Confidential
from millstream._http.client import Body, UnsendableRequest
from millstream._http.client.connection import HttpReply
from millstream._override import override
from millstream._protocol.errors import ProtocolError
from millstream._protocol.foreign import read_foreign
from millstream._protocol.jsonrpc import Envelope, encode, read_result
from millstream._protocol.metadata import encode_value
from millstream._protocol.redaction import find_query_secrets, leave_out, secret_parts
from millstream._protocol.revisions import Revision
from millstream._recent import Recent
from millstream._tasks import Tasks, cancel_reason, has_failed
from millstream._text import pluralize
from millstream.client._endpoint import Endpoint, PostHead, problem_detail, redact_error, try_again, with_reply
from millstream.client._errors import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    SessionLost,
)
from millstream.client._transports import (
    DuplexTransport,
    EventReader,
    Listener,
    Options,
    SkipLog,
    StreamReopened,
    TransportRequest,
    answered_id,
    messages_in,
    one_line,
    send_cancellation,
)

_IDENTITY = {"Accept-Encoding": "identity"}
"""Header that disables compression. Without it, any coding is acceptable (RFC 9110 §12.5.3)."""
_ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json", **_IDENTITY}
_ACCEPT_EVENTS = {"Accept": "text/event-stream", **_IDENTITY}
_NO_SESSION = re.compile(
    rb"(?i)(?:no valid|invalid|unknown|expired)[a-z ]{0,12} session|no active session"
    rb"|session (?:id )?(?:not found|expired|does not exist)|server not initialized"
)
_MAX_REASON = 16 * 1024
"""Maximum size of an error's body to search for words, in bytes."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
_ATTEMPTS = 5
"""Maximum attempts to resume a stream without receiving anything new."""
_STREAM_TIMEOUT = 1.0
"""Seconds that the first call waits for the stand-alone stream. Some servers delay its headers to the first event."""
_INITIALIZED_TIMEOUT = 10.0
"""Maximum seconds to wait for the response to ``notifications/initialized``."""
_MAX_KIND = 64
_MAX_HEADS, _MAX_KEPT_NAME = 16, 128
"""Maximum heads that a connection keeps, and maximum characters of the name in one."""
_is_method = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z/:@-]+").fullmatch
_is_plain = re.compile(r"[!-<>-~][!-~]*").fullmatch
"""Names that `encode_value` returns unchanged."""
_DELETE_TIMEOUT = 2.0
"""Timeout of a session's DELETE request, in seconds."""


class StreamableTransport(Confidential, Struct, eq=False):
    """An endpoint, and its session if a handshake-era server creates one."""

    _endpoint: Endpoint
    _listener: Listener
    _background: Tasks
    _max: int
    _skip: SkipLog = field(default_factory=SkipLog)
    _revision: Revision | None = None
    _session: str = ""
    _cookies: Mapping[str, str] = {}
    """Header with the cookies that were set along with the session's id."""
    _fixed: Mapping[str, str] = field(default_factory=lambda: _ACCEPT)
    """Headers of each POST after the negotiation."""
    _heads: Recent[tuple[str, str], PostHead] = field(default_factory=lambda: Recent(_MAX_HEADS))
    """Method and name -> the encoded headers of such requests."""
    _readers: dict[int, EventReader] = {}
    """Open streams of calls, by request id."""
    _stream_task: asyncio.Task[None] | None = None
    lost: bool = False
    """Whether the session has expired, as reported by the stand-alone stream. With HTTP, there's no connection to
    lose."""
    name = "streamable-http"

    async def open(self) -> None:
        """Do nothing, because the first request connects."""

    def resize(self, connections: int) -> None:
        """Change the maximum number of open connections."""
        self._endpoint.pool.maximum = connections

    def set_revision(self, revision: Revision) -> None:
        """Send the version header from now on, without a session in the per-request era."""
        self._revision = revision
        if not revision.handshake:
            self._session, self._cookies = "", {}
            if self._stream_task is not None:
                self._stream_task.cancel()
        self._fixed = {**_ACCEPT, **self._about(revision)}
        self._heads.clear()

    async def exchange(self, request: TransportRequest) -> Envelope:
        """POST a request and wait for the response."""
        try:
            reply = await self._endpoint.send(
                "POST",
                self._head(request),
                request.body,
                repeatable=request.repeatable,
                owner=request.owner,
                said=request.said,
            )
            if reply.final_url is not None:
                self._endpoint.url = reply.final_url  # skip the redirect from now on
            if request.method == "initialize":
                value = reply.header(b"mcp-session-id")
                self._session = value if value.isascii() and value.isprintable() and " " not in value else ""
                self._cookies = self._endpoint.cookies(reply) if self._session else {}
            if reply.stream is None:
                return self._answer(request, reply)
            _check_coding(reply)
            return await self._follow(request, reply.stream)
        except ClientError as exc:
            denial = exc.reply if isinstance(exc, AccessDenied) and not exc.challenge else None
            if isinstance(denial, HttpReply) and self._has_lost_session(denial):
                raise self._error(denial) from exc
            redact_error(exc, leave_out(request.said, self.secrets))
            raise
        except asyncio.CancelledError as exc:
            revision = self._revision  # in the per-request era, closing the connection is enough
            if request.method != "initialize" and revision is not None and revision.handshake:
                self._background.spawn(send_cancellation(self, self._listener, request.id, cancel_reason(exc)))
            raise

    async def send(self, message: bytes, method: str) -> None:
        """POST a notification or a response."""
        headers = {**self._fixed}
        if method:
            headers["Mcp-Method"] = check_method(method)
        # A server that closes each connection could not be initialized otherwise.
        repeatable = method == "notifications/initialized"
        sending = self._endpoint.send("POST", headers, message, repeatable=repeatable)
        if repeatable:
            # A server that doesn't know the notification, or never responds to it, can still be used. If the session
            # has ended, the next request fails. A person may be signing in, so the notification isn't canceled.
            sent = self._background.spawn(_discard_reply(sending))
            sent.add_done_callback(has_failed)
            await asyncio.wait((sent,), timeout=_INITIALIZED_TIMEOUT)
            if sent.done():
                sent.result()
        else:
            reply = await _discard_reply(sending)
            if reply.status >= 400:
                raise self._error(reply)
        if method == "notifications/initialized" and self._revision is not None and self._revision.event_ids:
            stands = asyncio.Event()
            self._stream_task = self._background.spawn(self._keep_stream_open(stands))
            # Messages outside of a call's stream are lost unless this stream is open before the first call.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STREAM_TIMEOUT):
                    await stands.wait()

    @property
    def session(self) -> tuple[str, Mapping[str, str]]:
        """Id of the session, and the header with its cookies."""
        return self._session, self._cookies

    def resume(self, session: str, cookies: Mapping[str, str]) -> None:
        """Use a session that an earlier connection has left open, before `set_revision`."""
        self._session, self._cookies = session, cookies

    def open_stream(self) -> None:
        """Open the stand-alone stream of a resumed session. Its listener learns that it may have missed messages."""
        if self._revision is not None and self._revision.event_ids:
            self._stream_task = self._background.spawn(self._keep_stream_open(asyncio.Event(), attempts=1))

    def leave_session(self) -> None:
        """Leave the session open on the server when this is closed."""
        self._session, self._cookies = "", {}

    def end(self, fault: ClientError) -> None:
        """Note that the session has ended.

        Args:
            fault: Why it has ended.
        """
        self.lost = True
        self._listener.on_interruption(self, fault)

    @property
    def secrets(self) -> Collection[str]:
        """The credentials that requests contain, and the session."""
        return self._endpoint.secrets.union({self._session}, *map(secret_parts, self._cookies.values()))

    @property
    def has_session(self) -> bool:
        """Whether the server has created a session. Without one, a handshake-era server can't ask questions."""
        return bool(self._session)

    def _head(self, request: TransportRequest) -> Mapping[str, str] | PostHead:
        """Return the headers of a request, encoded if most requests of their kind have equal ones."""
        method, name = request.method, request.name
        if request.revision is not None or request.params or len(name) > _MAX_KEPT_NAME or method == "initialize":
            return self._headers(request)
        head = self._heads.get((method, name))
        if head is None or head.url is not self._endpoint.url:
            head = self._endpoint.encode_post(self._headers(request))
            self._heads.keep((method, name), head)
        return head

    def _headers(self, request: TransportRequest) -> dict[str, str]:
        method, name, revision = request.method, request.name, request.revision
        headers = {**self._fixed, "Mcp-Method": method if _is_method(method) else check_method(method)}
        if method == "initialize":
            headers = {**_ACCEPT, "Mcp-Method": method}
        elif revision is not None:
            headers |= self._about(revision)
        if name:
            headers["Mcp-Name"] = name if _is_plain(name) else encode_value(name)
        headers.update(request.params)
        return headers

    def _about(self, revision: Revision | None) -> Mapping[str, str]:
        version = _version_header(revision)
        return {**version, "Mcp-Session-Id": self._session, **self._cookies} if self._session else version

    def _answer(self, request: TransportRequest, reply: HttpReply) -> Envelope:
        """Return the response from a reply that isn't a stream."""
        body = reply.body
        if b"\n" in body or b"\r" in body:
            body = one_line(body)
        if reply.status == 200 and (message := read_result(body, request.id)) is not None:
            return message
        if reply.status in (202, 204) and not reply.body:
            raise InvalidResponse(
                f"The server responded to {request.method} with status {reply.status}, which is for notifications."
            )
        may_answer = reply.status < 300 and reply.media_type == "application/json"
        if self._has_lost_session(reply) or not (may_answer or reply.body.lstrip().startswith(b"{")):
            raise self._error(reply)
        try:
            messages = self._read(reply.body, request.id)
        except ProtocolError as exc:
            if reply.status >= 300:
                raise self._error(reply) from exc
            _check_coding(reply)
            raise InvalidResponse(f"The server sent an invalid response. {exc.message}.") from exc
        message = next((each for each in messages if each.is_answer and each.id == request.id), messages[0])
        # Errors about invalid requests have no id, or an arbitrary one.
        if not message.is_answer or (message.id != request.id and not (message.error and reply.status >= 400)):
            raise InvalidResponse(
                f"The server responded to {request.method} with the id {message.id!r:.64} instead of {request.id}."
            )
        for each in messages:
            if not each.is_answer:
                self._listener.receive(each, self, request.id)
        return message

    def _read(self, body: bytes, request_id: int) -> list[Envelope]:
        """Return the messages in a body. Those of a batch that can't be decoded are skipped.

        Raises:
            ProtocolError: The response can't be decoded.
        """
        items, found = messages_in(body), list[Envelope]()
        for item in items:
            try:
                found.append(read_foreign(item))
            except ProtocolError as exc:
                if answered_id(item) == request_id or (item is items[-1] and not found):
                    raise
                self._skip(exc.message, item)
        return found

    def _has_lost_session(self, reply: HttpReply) -> bool:
        """Return whether the server doesn't know the session. Many respond with 400 or 401 instead of 404."""
        return bool(self._session) and (
            reply.status in (404, 410)
            or (reply.status in (400, 401) and _NO_SESSION.search(reply.body[:_MAX_REASON]) is not None)
        )

    def _error(self, reply: HttpReply) -> ClientError:
        url = self._endpoint.url
        if self._has_lost_session(reply):
            return SessionLost("The session has expired on the server.")
        if reply.is_temporary:
            return status_error(reply, url.origin, ConnectionLost)
        if self._revision is not None and reply.status >= 400:
            return status_error(reply, url.origin)
        kind = "a web page" if reply.media_type == "text/html" else reply.media_type[:_MAX_KIND] or "nothing"
        words = "" if reply.media_type == "text/html" else problem_detail(reply)
        words = words or ("" if kind == "application/json" else f" and {kind}, not JSON")
        what, advice = f"{url} isn't an MCP endpoint: it responded with {reply.status}{words}.", ""
        if reply.status in (404, 405) or kind == "a web page":
            usual = f"Most servers use /mcp: try {url.origin}/mcp"
            advice = usual if url.target in ("", "/") else "Check the path: most servers use /mcp."
        error = NotMcp(what, remedy=advice)
        return with_reply(error, reply) if reply.status >= 400 else error

    # Streams

    async def _follow(self, request: TransportRequest, stream: Body) -> Envelope:
        """Read a stream until the response arrives, resuming the stream if it breaks."""
        reader = self._readers[request.id] = EventReader(self._max, self._skip, request.id)
        try:
            while reader.response is None:
                reader.attach(stream)
                try:
                    return await self._answer_on(reader, request)
                except ConnectionLost as exc:
                    stream = await self._resume(reader, exc)
            stream.close()
            return reader.response
        finally:
            del self._readers[request.id]
            reader.close()

    async def _answer_on(self, reader: EventReader, request: TransportRequest) -> Envelope:
        """Return the response, after passing earlier messages to the listener."""
        while (message := await reader.message()) is not None:
            if not message.is_answer:
                self._listener.receive(message, self, request.id)
            elif message.id == request.id or (message.id is None and message.error):
                return message
            else:
                self._skip("Response with an unknown id", encode(message.id))
        raise ConnectionLost(f"The server ended the stream of {request.method} before its response.")

    async def _resume(self, reader: EventReader, why: ConnectionLost) -> Body:
        revision = self._revision
        if not reader.last_event_id or revision is None or not revision.event_ids:
            raise why
        while reader.attempts < _ATTEMPTS:
            await asyncio.sleep(reader.wait(_FIRST_WAIT, _LONGEST_WAIT))
            reader.attempts += 1
            try:
                reply = await self._get(reader.last_event_id)
            except (ConnectFailed, ConnectionLost):
                continue
            if reply.stream is not None and reply.status == 200:
                return reply.stream
            if reply.status < 500:
                break  # the server doesn't support resuming
        raise why

    async def _get(self, last_event_id: str = "") -> HttpReply:
        headers = {**_ACCEPT_EVENTS, **self._about(self._revision)}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id.encode().decode("latin-1")  # UTF-8, per WHATWG HTML
        return await self._endpoint.send("GET", headers, repeatable=True)

    async def _keep_stream_open(self, stands: asyncio.Event, attempts: int = 0) -> None:
        """Keep the stand-alone stream open. Servers without one respond with 405."""
        reader = EventReader(self._max, self._skip)
        reader.attempts = attempts
        wanted = self._listener.subscribed
        now = asyncio.get_running_loop().time
        since = now()
        try:
            while await self._read_standalone_stream(reader, stands):
                if wanted.is_set() and now() - since > _LONGEST_WAIT:
                    reader.attempts = 0  # proxies close idle connections
                if reader.attempts >= _ATTEMPTS - 1 and not wanted.is_set():
                    await wanted.wait()
                    reader.attempts = 0
                else:
                    await asyncio.sleep(reader.wait(_FIRST_WAIT, _LONGEST_WAIT))
                reader.attempts += 1
                since = now()
        finally:
            stands.set()
            reader.close()

    async def _read_standalone_stream(self, reader: EventReader, stands: asyncio.Event) -> bool:
        """Read a connection until it ends. Return False if the server has no such stream, or the session has
        expired."""
        try:
            await self._read_once(reader, stands)
        except ClientError as exc:
            gone = isinstance(exc, SessionLost)
            if isinstance(exc, (ConnectFailed, ConnectionLost)) and not gone:
                return True
            if not stands.is_set():
                return False
            reader.attempts = _ATTEMPTS  # stop retrying until there's a new subscriber
            if gone:
                self.end(exc)
            else:
                self._listener.on_interruption(self, exc)
            return not gone
        return True

    async def _read_once(self, reader: EventReader, stands: asyncio.Event) -> None:
        reply = await self._get(reader.last_event_id)
        if reply.is_temporary and (stands.is_set() or self._listener.subscribed.is_set()):
            raise self._error(reply)
        if reply.status == 409 and (stands.is_set() or reader.attempts):
            raise ConnectionLost("The server still has the previous stream open.")
        if reply.stream is None or reply.status != 200:
            raise SessionLost("The session has expired on the server.")
        if reader.attempts:
            self._listener.on_interruption(self, StreamReopened("A stream was reopened."))
            if not reader.last_event_id:
                self._listener.on_interruption(self, None)
        stands.set()
        reader.attach(reply.stream)
        while (message := await reader.message()) is not None:
            if not message.is_answer:
                self._listener.receive(message, self)
            elif isinstance(message.id, int) and (caller := self._readers.get(message.id)) is not None:
                caller.set_response(message)  # the request's own stream broke, and some servers send the response here

    # Shutdown

    async def close(self) -> None:
        """End the session and close the connections."""
        if self._stream_task is not None:
            self._stream_task.cancel()
        try:
            if self._session and not self.lost:
                async with asyncio.timeout(_DELETE_TIMEOUT):
                    await self._endpoint.send("DELETE", self._about(self._revision), repeatable=False)
        except (ClientError, TimeoutError):
            pass  # sessions of such servers expire
        finally:
            await self._endpoint.close()


def status_error(reply: HttpReply, origin: str, kind: type[ClientError] = NotMcp) -> ClientError:
    """Return the error for a status: ``status_error(reply, url.origin, ConnectionLost)``."""
    again, verb = try_again(with_reply(kind(""), reply)), "failed" if reply.is_temporary else "responded"
    what = f"The server at {origin} {verb} with status {reply.status}{problem_detail(reply)}."
    return with_reply(kind(what, remedy=again), reply)


def check_method(method: str) -> str:
    """Return a JSON-RPC method as the value of `Mcp-Method`.

    Raises:
        UnsendableRequest: It isn't made of tokens (RFC 9110 §5.6.2), slashes, colons, and at signs. The specification
            doesn't decode `Mcp-Method`, so a method can't be encoded.
    """
    if _is_method(method) is None:
        raise UnsendableRequest(f"The method {method!r:.100} contains characters that aren't allowed in headers.")
    return method


@lru_cache
def _version_header(revision: Revision | None) -> Mapping[str, str]:
    return {"MCP-Protocol-Version": revision.date} if revision is not None and revision.header else {}


async def _discard_reply(sending: Awaitable[HttpReply]) -> HttpReply:
    reply = await sending
    reply.discard()
    return reply


def _check_coding(reply: HttpReply) -> None:
    """Check that the body isn't compressed with anything other than gzip and deflate.

    Raises:
        InvalidResponse: The body is compressed.
    """
    coding = reply.header(b"content-encoding").lower()
    if coding not in ("", "identity"):
        reply.discard()
        raise InvalidResponse(f"The server compressed its response with {coding[:_MAX_KIND]!r}, which can't be read.")


class HttpSseTransport(DuplexTransport):
    """One event stream, which announces the address for POSTs."""

    name = "http+sse"

    def __init__(
        self,
        endpoint: Endpoint,
        listener: Listener,
        background: Tasks,
        options: Options,
    ) -> None:
        super().__init__(listener, background)
        self._endpoint = endpoint
        self._options = options
        self._messages = ""
        """Path and query for POSTs."""
        self._cookies: Mapping[str, str] = {}
        self._revision: Revision | None = None

    @override
    async def open(self) -> None:
        """Open the stream and wait for the address.

        Raises:
            NotMcp: There's no stream, or it doesn't announce an address.
            ConnectFailed: The server didn't respond in time.
        """
        url, seconds = self._endpoint.url, self._options.connect_timeout
        reply = None
        named: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                reply = await self._endpoint.send("GET", _ACCEPT_EVENTS, repeatable=True)
                if reply.is_temporary:
                    raise status_error(reply, url.origin, ConnectionLost)
                if reply.stream is None or reply.status != 200:
                    refused = NotMcp(f"{url} has no event stream: it responded with status {reply.status}.")
                    raise with_reply(refused, reply)
                if reply.final_url is not None:
                    self._endpoint.url = reply.final_url
                self._cookies = self._endpoint.cookies(reply)
                self._background.spawn(self._read(reply.stream, named))
                await named
        except TimeoutError as exc:
            if reply is None:
                raise ConnectFailed(f"{url.origin} didn't respond within {pluralize(seconds, 'second')}.") from exc
            raise NotMcp(f"{url} opens an event stream, but doesn't send MCP's endpoint event.") from exc

    async def _read(self, stream: Body, named: asyncio.Future[None]) -> None:
        reader = EventReader(self._options.max_bytes, self.skip)
        url = self._endpoint.url
        fault: ClientError = NotMcp(f"{url} closes its event stream immediately.")
        reader.attach(stream)
        try:
            while (event := await reader.event()) is not None:
                if event.event == "endpoint" and not self._messages:
                    target = url.join(event.data)
                    if target.origin != url.origin:  # credentials are only sent to this origin
                        raise NotMcp(f"{url} tells clients to send messages to another server, {target.origin}.")
                    self._messages = target.target
                    if not named.done():
                        named.set_result(None)
                elif event.event == "message" and event.data:
                    self.receive(event.data.encode())
                if self.fault is not None:
                    break
        except ClientError as exc:
            self.end(exc)
            fault = exc
        finally:
            self.end(ConnectionLost("The server closed the event stream."))
            reader.close()
            if not named.done():
                named.set_exception(fault)
                named.exception()

    @property
    @override
    def secrets(self) -> Collection[str]:
        """The credentials that requests contain, and the session."""
        found = self._endpoint.secrets | find_query_secrets(self._messages)
        return found.union(*map(secret_parts, self._cookies.values()))

    @override
    def set_revision(self, revision: Revision) -> None:
        """Send the version header from now on, if the revision has one."""
        self._revision = revision

    @override
    async def _write(self, message: bytes) -> None:
        headers = {**_ACCEPT, **self._cookies, **_version_header(self._revision)}
        reply = await self._endpoint.send("POST", headers, message, repeatable=False, target=self._messages)
        reply.discard()
        if reply.status >= 300:
            # A server that has restarted doesn't know the stream's session, and hasn't processed the message.
            kind = SessionLost if reply.status == 404 else ConnectionLost
            raise status_error(reply, self._endpoint.url.origin, kind)

    @override
    async def close(self) -> None:
        """Close the stream, which ends the session."""
        self.end(ConnectionLost("The client was closed."))
        await self._endpoint.close()
