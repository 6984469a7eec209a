"""An API as an upstream: its operations become tools, from its OpenAPI document or its FastAPI application.

The document is untrusted and read again periodically: its size and depth are bounded, and its paths and servers can't
leave the base URL. Requests use the outbound engine of the client.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import translate
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
from msgspec import Struct, structs

from millstream import ToolError
from millstream._override import override
from millstream.client import AccessDenied, Auth, ClientError, RequestTimeout
from millstream.gateway._bridge import no_response_error, refused_error
from millstream.gateway._catalog import MAX_ITEM_BYTES, Catalog, Description
from millstream.gateway._credentials import StaticHeaders
from millstream.gateway._credentials.source import UpstreamCredentials
from millstream.gateway._links import MAX_HTTP_CALLS, InUse, http_places
from millstream.gateway._openapi import (
    ApiRequest,
    Document,
    OpenApi,
    Operation,
    OperationTool,
    build_request,
    check_response,
    client_of_app,
    has_dot_segment,
    is_application,
    result_of,
    send_by,
    unused_name,
    without_properties,
)
from millstream.gateway._upstream import Gateway, Upstream, UpstreamConfig, reconnect_delay
from millstream.http import ConnectionPool, Endpoint, Inflow, Url, parse_url
from millstream.parts import Call, Tool, encode_result
from millstream.protocol import NEWEST, encode, exceeds_limits

logger = logging.getLogger("millstream.gateway")

MAX_DEPTH = 64
MAX_OPERATIONS = 1000
_OK = 200
_PATH = re.compile(r"/(?!/)[^\s?#\\]*")
_HEADER = re.compile(r"[A-Za-z0-9_-]+")


class ApiError(Exception):
    """The API can't be used; the message is for the operator."""


class ApiResponse(Struct):
    """A response of an API, with the interface that `result_of` expects."""

    status_code: int
    headers: dict[str, str]
    content: bytes
    reason_phrase: str = ""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Decode a JSON body.

        Raises:
            ValueError: The body isn't JSON, or is nested too deeply.
        """
        if exceeds_limits(self.content, MAX_DEPTH):
            raise ValueError("The body is nested too deeply.")
        return msgspec.json.decode(self.content)


class ApiUpstream(Upstream):
    """One API of a running gateway. It has no MCP connections, and its lists come from the document."""

    def __init__(self, config: UpstreamConfig, gateway: Gateway) -> None:
        """See `Upstream`."""
        super().__init__(config, gateway)
        openapi = config.openapi
        self.openapi: OpenApi = openapi if isinstance(openapi, OpenApi) else OpenApi(document=openapi)
        self.address = self.openapi.base_url or self.openapi.document
        self.is_application = is_application(self.openapi.document)
        self.operations: dict[str, Operation] = {}
        """Upstream's name -> operation."""
        self._forwarder = UpstreamCredentials(config.name, [name.lower() for name in config.forward_headers])
        static_headers = config.auth.headers if isinstance(config.auth, StaticHeaders) else {}
        names = (*config.forward_headers, *config.headers, *static_headers)
        self._fixed_headers = {name.lower().replace("_", "-") for name in names}
        """Headers that arguments can't set, because the operator configures them."""
        self._digest = b""
        """Digest of the text that the operations were read from."""
        self._skipped: frozenset[str] = frozenset()
        """Operations that the last document has but that aren't offered."""
        self._base: Url | None = None
        self._client: Any = None
        """HTTP client of an application in this process."""
        self._pools: dict[str, ConnectionPool] = {}
        self._places = http_places(several=gateway.pool.places.several)

    @override
    async def open(self) -> None:
        """Start reading the document, in the background. An application in this process starts now."""
        if self.is_application:
            application = self.openapi.document
            context = getattr(getattr(application, "router", None), "lifespan_context", None)
            if context is not None:
                await self._stack.enter_async_context(context(application))
            self._client = client_of_app(application)
            self._stack.push_async_callback(self._client.aclose)
        self._task = asyncio.get_running_loop().create_task(self._run())

    @override
    async def close(self) -> None:
        """Close all connections."""
        await super().close()
        for pool in self._pools.values():
            await pool.close()

    def make_item(self, kind: str, upstream: Upstream, name: str, own_name: str, description: Description) -> Tool:
        """Return the tool of an operation."""

        async def run(arguments: Any, call: Call) -> bytes:
            operation = self.operations.get(own_name)  # the document may have changed
            if operation is None:
                raise ToolError("The API no longer has this operation.")
            return b"{%b}" % encode_result(
                result_of(operation, await self.request(operation, arguments, call, own_name))
            )

        return OperationTool(name, run, description, self.operations[own_name].tags)

    async def request(self, operation: Operation, arguments: Mapping[str, Any], call: Call, name: str) -> Any:
        """Call one operation with the credentials of a caller, and return the response.

        Raises:
            ToolError: There was no usable response.
        """
        if self._client is not None:
            request = build_request(operation, arguments, self._forwarder.forwarded_headers(call))
            return await self._observe(partial(send_by, self._client, request), call, name)
        request = build_request(operation, arguments)
        if not await self._places.acquire(call.owner):
            raise no_response_error(call, self, InUse(self._places, call.owner))
        try:
            return await self._send(request, call, name)
        finally:
            self._places.leave(call.owner)

    async def _send(self, request: ApiRequest, call: Call, name: str) -> Any:
        assert self._base is not None  # noqa: S101  set before any tool exists
        credentials, auth = self.credentials, None
        if credentials is not None:
            await credentials.prepare(call)
            auth = credentials.auth(credentials.link_key(call))
        endpoint = self._endpoint(self._base, self.config.headers, auth, self.config.max_bytes)
        exchange = partial(self._exchange, endpoint, request, call.owner)
        try:
            return await self._observe(exchange, call, name)
        except AccessDenied as exc:
            if credentials is not None and await credentials.recover(call, exc):
                return await self._observe(exchange, call, name)
            raise no_response_error(call, self, exc) from None

    async def _observe(self, exchange: Callable[[], Awaitable[Any]], call: Call, name: str) -> Any:
        """Return the response to a request of a call, and record its outcome.

        Raises:
            AccessDenied: The API rejected the credentials.
            ToolError: The request wasn't sent, or there was no usable response.
        """
        breaker = self.breaker
        if refusal := breaker.refusal(call, call.method, name):
            raise refused_error(call, self, refusal)
        started = monotonic()
        try:
            response = await exchange()
        except AccessDenied:
            breaker.succeed(monotonic() - started, call, call.method, name)
            raise
        except ClientError as exc:
            self.record_failure(exc, call, call.method, name)
            raise no_response_error(call, self, exc) from None
        breaker.succeed(monotonic() - started, call, call.method, name)
        return check_response(response)

    async def _exchange(self, endpoint: Endpoint, request: ApiRequest, owner: str) -> ApiResponse:
        """Send a request to a path below the base URL.

        Raises:
            ToolError: The path or a header can't be sent, or the response is a stream.
            ClientError: There was no response.
        """
        if has_dot_segment(request.target.partition("?")[0]):
            raise ToolError("An argument would change the path.")
        target = endpoint.url.target.partition("?")[0].rstrip("/") + request.target
        fields = {"accept": "application/json, */*;q=0.5"}
        for name, value in request.headers.items():
            if not value.isprintable() or not value.isascii():
                raise ToolError(f"The header {name} contains characters that aren't allowed in headers.")
            fields[name.lower()] = value
        extra = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        method = request.method
        try:
            async with asyncio.timeout(self.config.timeout):
                reply = await endpoint.send(
                    method, extra, request.content or b"", repeatable=method in ("GET", "HEAD"), target=target,
                    owner=owner,
                )  # fmt: skip
        except TimeoutError as exc:
            raise RequestTimeout(f"The API didn't respond within {self.config.timeout:g} seconds.") from exc
        if reply.stream is not None:
            reply.discard()
            raise ToolError("The API responded with a stream, which a tool can't return.")
        received = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers.items()}
        return ApiResponse(reply.status, received, reply.body)

    # The document

    @override
    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._refresh()
                failures, wait = 0, self.config.refresh_seconds * random.uniform(0.75, 1)  # noqa: S311  jitter
            except (ApiError, ClientError, OSError) as exc:
                self._degrade(ApiError(str(exc) or type(exc).__name__))  # the API itself may be reachable
                failures += 1
                wait = reconnect_delay(failures)
            self._refresh_event.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._refresh_event.wait()

    @override
    async def _check(self) -> None:
        """Open the breaker while the API accepts no connections."""
        failures = 0
        while (error := await self._find_fault()) is not None:
            self._degrade(error)
            failures += 1
            await asyncio.sleep(reconnect_delay(failures))
        if self.breaker.is_open:
            self.breaker.is_open = False
            self._refresh_event.set()

    @override
    async def _find_fault(self) -> ClientError | None:
        """Return why no connection to the API can be opened, or None."""
        if self._base is not None:
            try:
                await self._pool(self._base, self.config.max_bytes).check()
            except ClientError as exc:
                return exc
        return None

    async def _refresh(self) -> None:
        digest, document, origin = await self._read()
        if document is not None:
            operations = await asyncio.to_thread(self._select, document)
            if self._client is None:
                self._base = self._base_of(document.url, origin)
            self.operations, self._digest = operations, digest
        tools = {name: each.describe(name) for name, each in self.operations.items()}
        await self._offer(Catalog(revision=NEWEST.date, tools=tools, capabilities={"tools": {}}, taken_at=time()))
        self._recover()

    async def _read(self) -> tuple[bytes, Document | None, Url | None]:
        """Return the digest of the document's text, the document unless it's unchanged, and its URL."""
        digest, document, origin = b"", self.openapi.document, None
        if is_application(document):
            document = document.openapi()
        elif isinstance(document, str | Path):
            if isinstance(document, str) and document.startswith(("http://", "https://")):
                origin = parse_url(document)
                data = await self._fetch(origin)
            else:
                try:
                    data = await asyncio.to_thread(Path(document).read_bytes)
                except OSError as exc:
                    raise ApiError(f"The document {document} can't be read: {exc.strerror}. Check its path.") from exc
            if len(data) > self.config.max_catalog_bytes:
                raise ApiError(f"The document is larger than {self.config.max_catalog_bytes:,} bytes.")
            digest = sha256(data).digest()
            if digest == self._digest:
                return digest, None, origin
            if reason := exceeds_limits(data, MAX_DEPTH):
                raise ApiError(f"The document has {reason}.")
            try:
                document = msgspec.json.decode(data)
            except msgspec.DecodeError as exc:
                raise ApiError(f"The document isn't JSON ({exc}): convert YAML first.") from exc
        try:
            return digest, Document(document), origin
        except ValueError as exc:
            raise ApiError(str(exc)) from exc

    async def _fetch(self, url: Url) -> bytes:
        """Fetch the document, with credentials if the API has the same origin."""
        same_origin = not self.openapi.base_url or parse_url(self.openapi.base_url).origin == url.origin
        credentials = self.credentials if same_origin else None
        auth = None if credentials is None or credentials.personal else credentials.auth("")
        endpoint = self._endpoint(url, self.config.headers if same_origin else {}, auth, self.config.max_catalog_bytes)
        async with asyncio.timeout(self.config.timeout):
            reply = await endpoint.send("GET", "accept: application/json\r\n", repeatable=True)
        reply.discard()
        if reply.status != _OK or reply.stream is not None:
            raise ApiError(f"{url} returned status {reply.status} instead of a document.")
        return reply.body

    def _base_of(self, server: str, origin: Url | None) -> Url:
        """Return the base URL of all requests."""
        text = self.openapi.base_url or server
        if origin is None or self.openapi.base_url:
            if not text.startswith(("http://", "https://")):
                raise ApiError(f"The document has no absolute server URL ({text!r}): set base_url.")
            return parse_url(text)
        base = origin.join(text or "/")
        if base.origin != origin.origin:
            raise ApiError(
                f"The document says that the API is at {base.origin}, which isn't the document's own origin. If "
                f"you trust it, set base_url = {str(base)!r}."
            )
        return base

    def _endpoint(self, url: Url, headers: Mapping[str, str], auth: Auth | None, max_body: int) -> Endpoint:
        return Endpoint(url, headers, self._pool(url, max_body), auth)

    def _pool(self, url: Url, max_body: int) -> ConnectionPool:
        key = f"{url.origin} {max_body}"
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = ConnectionPool(
                url,
                max_connections=MAX_HTTP_CALLS,
                max_body=max_body,
                connect_timeout=self.config.connect_timeout,
                inflow=Inflow(self.gateway.arriving, self.config.name),
            )
        return pool

    def _select(self, document: Document) -> dict[str, Operation]:
        """Return the operations to offer, by name."""
        matches = re.compile("|".join(map(translate, self.openapi.operations or ("*",)))).match
        tags, found, size = set(self.openapi.tags), dict[str, Operation](), 0
        for operation in document.operations():
            method, path, own_name = operation.method, operation.path, operation.name({})
            if tags and tags.isdisjoint(operation.tags):
                continue
            if not (matches(own_name) or matches(f"{method} {path}")):
                continue
            if not _PATH.fullmatch(path) or has_dot_segment(path):
                document.skip(method, path, "its path isn't below the API's base URL")
                continue
            if len(found) >= MAX_OPERATIONS:
                raise ApiError(f"The document has more than {MAX_OPERATIONS:,} operations. Select some by tags.")
            restricted = self._restrict(operation)
            if restricted is None:
                document.skip(method, path, "its schema is too large")
                continue
            name = unused_name(own_name, found)
            found[name] = restricted
            size += len(encode(restricted.describe(name)))
            if size > self.config.max_catalog_bytes:
                raise ApiError(
                    f"The tools take more than {self.config.max_catalog_bytes:,} bytes. Select some by tags."
                )
        document.log_skipped(self.config.name, self._skipped)
        self._skipped = frozenset(document.skipped)
        return found

    def _restrict(self, operation: Operation) -> Operation | None:
        """Return an operation without the headers that arguments can't set; None if its schema is too large.

        Each schema contains copies of the definitions that it refers to, so a small document can produce very large
        ones.
        """
        hidden = frozenset(
            name
            for name, each in operation.arguments.items()
            if each.place in ("header", "cookie")
            and (
                ("cookie" if each.place == "cookie" else each.name.lower().replace("_", "-")) in self._fixed_headers
                or _HEADER.fullmatch(each.name) is None
            )
        )
        if hidden:
            operation = structs.replace(
                operation,
                arguments={name: each for name, each in operation.arguments.items() if name not in hidden},
                input_schema=without_properties(operation.input_schema, hidden),
            )
        if len(encode(operation.output_schema)) > MAX_ITEM_BYTES // 2:
            operation = structs.replace(operation, output_schema=None)
        return operation if len(encode(operation.input_schema)) <= MAX_ITEM_BYTES // 2 else None
