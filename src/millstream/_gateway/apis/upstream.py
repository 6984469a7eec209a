"""An API as an upstream: its operations become tools, from its OpenAPI document or its FastAPI application.

The document is untrusted and read again periodically: its size and depth are bounded, its paths and servers can't
leave the base URL, and its references can't leave its folder. Requests use the outbound engine of the client.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from fnmatch import translate
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any
from urllib.parse import urlencode

from msgspec import structs

from millstream import ProtocolError, ToolError
from millstream._gateway.apis.document import Document, Operation, logger, parameter_key
from millstream._gateway.apis.files import DocumentFiles, is_document_below, read_files
from millstream._gateway.apis.items import LOCAL_URL, LocalApp, argument_reader, send_by
from millstream._gateway.apis.reply import ApiReply, check_reply, result_of
from millstream._gateway.apis.request import ApiRequest, build_request, without_pairs
from millstream._gateway.calls.failures import no_response_error, refused_error
from millstream._gateway.calls.items import UpstreamTool
from millstream._gateway.catalog.catalog import MAX_ITEM_BYTES, Catalog, Description, Pins, StoredCatalog
from millstream._gateway.errors import InUse
from millstream._gateway.names import unused_name
from millstream._gateway.options.api import OpenApi, is_application
from millstream._gateway.options.credentials import StaticHeaders
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.rules.results import call_error
from millstream._gateway.upstreams.lists import ListKeeper, reconnect_delay
from millstream._gateway.upstreams.upstream import Gateway, Upstream
from millstream._http.client import Inflow, TooLarge
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import Url
from millstream._override import override
from millstream._protocol.errors import MissingExtra
from millstream._server.calls.call import Call
from millstream._server.functions.engine import encode_result
from millstream._server.pool import Pool
from millstream._text import pluralize
from millstream.client import AccessDenied, ClientError, NotMcp, RequestTimeout, parse_url
from millstream.client._endpoint import Endpoint
from millstream.protocol import NEWEST, encode

_PATH = re.compile(r"/(?!/)[^\x00-\x1f\x7f?#\\]*")


def _api_reply(reply: HttpReply) -> ApiReply:
    """Return a response with its headers as text."""
    headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in reply.headers.items()}
    return ApiReply(reply.status, headers, reply.body)


def _check_folder(folder: str, target: str) -> None:
    """Check that a redirect stays below a folder.

    Raises:
        ValueError: It doesn't.
    """
    if folder and not is_document_below(target, folder):
        raise ValueError("it redirects to a file outside of its folder")


class ApiTool(UpstreamTool):
    """An operation of an API as a tool."""

    upstream: "ApiUpstream"

    def __init__(self, upstream: "ApiUpstream", name: str, own_name: str, description: Description) -> None:
        """See `Upstream.item_classes`."""
        super().__init__(upstream, name, own_name, description, argument_reader(name, description["inputSchema"]))
        self.plain, self.task = False, None
        self.tags = frozenset(upstream.operations[own_name].tags)

    @override
    async def _run(self, arguments: Any, call: Call) -> bytes:
        upstream, own_name = self.upstream, self.own_name
        operation = upstream.operations.get(own_name)  # the document may have changed
        if operation is None:
            raise ToolError("The API no longer has this operation.")
        call.begin()
        reply = await upstream.request(operation, arguments, call, own_name)
        result = result_of(operation, reply)
        meta = b"" if result.meta is None else b',"_meta":%b' % encode(result.meta)
        return b"{%b%b}" % (encode_result(result), meta)


class ApiUpstream(Upstream):
    """One API of a running gateway. It has no MCP connections, and its lists come from the document."""

    lists: "ApiLists"  # pyright: ignore[reportIncompatibleVariableOverride]  set once
    base: Url
    """Base URL of all requests, set before any tool exists."""
    client: Any = None
    """HTTP client of an application in this process."""

    def __init__(self, config: UpstreamConfig, gateway: Gateway) -> None:
        """See `Upstream`."""
        super().__init__(config, gateway, {"tools": ApiTool})
        openapi = config.openapi
        self.openapi: OpenApi = openapi if isinstance(openapi, OpenApi) else OpenApi(document=openapi)
        document = self.openapi.document
        self.address = LOCAL_URL if is_application(document) else self.openapi.base_url or document
        self.catalog = self.lists.catalog = Catalog(
            revision=NEWEST.date, transport="openapi", capabilities={"tools": {}}
        )
        self.operations: dict[str, Operation] = {}
        """Upstream's name -> operation."""
        secrets = config.auth if isinstance(config.auth, StaticHeaders) else StaticHeaders()
        names = (*config.forward_headers, *config.headers, *secrets.headers)
        self.fixed = {(name, "query") for name in secrets.query} | {parameter_key(name, "header") for name in names}
        """Parameters that arguments can't set, because the operator configures them."""
        self._pools: dict[str, ConnectionPool] = {}
        self._places = Pool(config.max_connections, several=gateway.pool.places.several)

    @override
    def _make_lists(self, stored: StoredCatalog, pins: Pins | None) -> ListKeeper[Any]:
        return ApiLists(self, stored, pins)

    @override
    def take_lists(self, found: Catalog, announced: Collection[str]) -> None:
        """See `Upstream`. Hints of methods aren't part of the definitions that are pinned."""
        tools = {
            name: {**each, "annotations": self.operations[name].hints} if name in self.operations else each
            for name, each in found.tools.items()
        }
        super().take_lists(structs.replace(found, tools=tools), announced)

    @override
    async def open(self) -> None:
        """Start reading the document, in the background. An application in this process starts now."""
        application = self.openapi.document
        if is_application(application):
            local = LocalApp(application)
            await self.stack.enter_async_context(local.lifespan())
            self.client = local.client()
            self.stack.push_async_callback(self.client.aclose)
        self.lists.tasks.spawn(self.lists.run())

    @override
    async def close(self) -> None:
        """Close all connections."""
        await super().close()
        for pool in self._pools.values():
            await pool.close()

    async def request(self, operation: Operation, arguments: Mapping[str, Any], call: Call, name: str) -> ApiReply:
        """Call one operation with a caller's credentials and return the response.

        Raises:
            ToolError: There was no usable response.
        """
        credentials, recovered = self.credentials, False
        forwarded = {} if credentials is None else credentials.forwarded_headers(call)
        headers = {"accept": "application/json, */*;q=0.5"} if self.client is None else forwarded
        request = build_request(operation, arguments, headers)
        if self.client is not None:
            return await self._observe(partial(send_by, self.client, request), call, name)
        exchange, places = partial(self._exchange, request, call), self._places
        if not await places.acquire(call.owner):
            raise no_response_error(call, self, InUse(places, call.owner))
        try:
            if credentials is not None:
                await credentials.prepare(call)
            while True:
                try:
                    return await self._observe(exchange, call, name)
                except AccessDenied as exc:
                    if recovered or credentials is None or not await credentials.recover(call, exc):
                        raise self._denied_error(call, exc) from None
                    recovered = True
        finally:
            places.leave(call.owner)

    def _denied_error(self, call: Call, exc: AccessDenied) -> ToolError | ProtocolError:
        """Return the error for a 401 or 403, with the API's own words."""
        error = no_response_error(call, self, exc, words=False)
        text = _api_reply(exc.reply).error_text if isinstance(exc.reply, HttpReply) else ""
        return call_error(call, f"{error} {text}" if exc.status == 401 else text or str(error))

    async def _observe(self, exchange: Callable[[], Awaitable[ApiReply]], call: Call, name: str) -> ApiReply:
        """Return the response to a request of a call and record its outcome.

        Raises:
            AccessDenied: The API rejected the credentials.
            ToolError: The request wasn't sent, or there was no usable response.
        """
        breaker = self.breaker
        if breaker.is_open:
            await self.lists.wait_for_return()
        if refusal := breaker.refusal(call, call.method, name):
            raise refused_error(call, self, refusal)
        started = monotonic()
        try:
            reply = await exchange()
        except AccessDenied:
            breaker.respond(monotonic() - started, call, call.method, name)
            raise
        except ClientError as exc:
            if isinstance(exc, NotMcp) and isinstance(exc.reply, HttpReply):
                breaker.succeed(monotonic() - started, call, call.method, name)
                text = ApiReply(exc.reply.status, {}, b"").error_text  # the address is the operator's
                raise call_error(call, f"{text} - It redirects to another server, or drops the request.") from None
            self.record_failure(exc, call, call.method, name)
            raise no_response_error(call, self, exc) from None
        breaker.succeed(monotonic() - started, call, call.method, name)
        return check_reply(reply)

    async def _exchange(self, request: ApiRequest, call: Call) -> ApiReply:
        """Send a request to a path under the base URL.

        Raises:
            ToolError: The path or a header can't be sent, or the response is a stream.
            ClientError: There was no response.
        """
        config, credentials, url = self.config, self.credentials, parse_url(request.url)
        target = url.target
        auth = None if credentials is None else credentials.auth(credentials.link_key(call))
        if credentials is not None and credentials.query:
            path, _, query = target.partition("?")
            kept = without_pairs(query, credentials.query)
            target = f"{path}?{kept}{'&' if kept else ''}{urlencode(credentials.query)}"
        # Errors show the endpoint's URL, but not arguments and keys.
        headers = {**config.headers, **({} if credentials is None else credentials.forwarded_headers(call))}
        endpoint = Endpoint(
            structs.replace(url, target="/"), headers, self.pool(url, config.max_bytes), auth,
            query={} if credentials is None else credentials.query,
        )  # fmt: skip
        method, body = request.method, request.content or b""
        try:
            async with asyncio.timeout(config.timeout):
                reply = await endpoint.send(
                    method,
                    request.headers,
                    body,
                    repeatable=method in ("GET", "HEAD"),
                    target=target,
                    owner=call.owner,
                    said=call.params or call.body,
                )
        except TimeoutError as exc:
            raise RequestTimeout(f"The API didn't respond within {pluralize(config.timeout, 'second')}.") from exc
        if reply.stream is not None:
            reply.discard()
            raise ToolError("The API responded with a stream, which a tool can't return.")
        return _api_reply(reply)

    @override
    def become(self, config: UpstreamConfig) -> None:
        """See `Upstream`."""
        super().become(config)
        self._places.resize(config.max_connections)
        for each in self._pools.values():
            each.maximum = config.max_connections

    def pool(self, url: Url, max_body: int) -> ConnectionPool:
        """Return the connections to an origin."""
        key = f"{url.origin} {max_body}"
        if key not in self._pools:
            self._pools[key] = ConnectionPool(
                url,
                max_connections=self.config.max_connections,
                max_body=max_body,
                connect_timeout=self.config.connect_timeout,
                inflow=Inflow(self.gateway.arriving, self.name),
                decompress=True,
            )
        return self._pools[key]


class ApiLists(ListKeeper[ApiUpstream]):
    """Reads an API's document, and makes tools from its operations."""

    _digest = b""
    """Digest of the files that the operations were read from."""
    _skipped: Mapping[str, str] = {}
    """See `Document.skipped`, of the last document."""

    @override
    async def run(self) -> None:
        """See `ListKeeper`."""
        while True:
            try:
                await self._read()
                wait = self.config.refresh_seconds * random.uniform(0.75, 1)  # noqa: S311  jitter
            except Exception as exc:  # the document is foreign, and nothing in it may end this task
                is_expected = isinstance(exc, ValueError | ClientError | OSError | MissingExtra)
                reason = str(exc) if is_expected and str(exc) else f"{type(exc).__name__}: {exc}".removesuffix(": ")
                if not is_expected and self.reason != reason:
                    logger.exception("The document of %s can't be read", self.config.name)
                failed = ValueError(reason)  # the API itself may be reachable
                failed.__cause__ = exc
                self.degrade(failed)
                self.failed_reads += 1
                wait = reconnect_delay(self.failed_reads)
            self._refresh.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._refresh.wait()

    @override
    async def find_fault(self) -> ClientError | None:
        """Return why no connection to the API can be opened, or None."""
        try:
            if self._upstream.client is None:
                await self._upstream.pool(self._upstream.base, self.config.max_bytes).check()
        except ClientError as exc:
            return exc
        return None

    async def _read(self) -> None:
        """Read the document and register its operations as tools.

        Raises:
            ValueError: The document can't be used.
            ClientError: The API or the document can't be reached.
        """
        if self._upstream.breaker.is_open and (error := await self.find_fault()) is not None:
            raise error
        source, digest = self._upstream.openapi.document, b""
        url: Url | None = None
        if isinstance(source, str | Path):
            url = parse_url(str(source)) if str(source).startswith(("http://", "https://")) else None
            source = await (
                self._fetch_files(url) if url else asyncio.to_thread(read_files, source, self._document_bytes)
            )
            digest = source.digest
        elif is_application(source):
            try:
                source = source.openapi()
            except Exception as exc:
                raise ValueError(f"The application can't be described ({type(exc).__name__}: {exc}).") from exc
        if not digest or digest != self._digest:
            openapi, is_local = self._upstream.openapi, self._upstream.client is not None
            document = Document(
                source,
                hosts=openapi.hosts,
                output_schemas=openapi.output_schemas or is_local,
                fixed=self._upstream.fixed,
            )
            self._upstream.base = parse_url(LOCAL_URL) if is_local else self._base_of(document.url, url)
            document.base = str(self._upstream.base)
            self._upstream.operations, self._digest = await asyncio.to_thread(self._select, document), digest
        tools = {name: each.describe(name) for name, each in self._upstream.operations.items()}
        await self.publish(structs.replace(self.catalog, tools=tools, taken_at=time()))
        self.recover()

    @property
    def _document_bytes(self) -> int:
        return 2 * self.config.max_catalog_bytes  # it describes more than its tools do

    async def _fetch_files(self, url: Url) -> DocumentFiles:
        """Fetch the document, and the files that it refers to and may refer to.

        Raises:
            ValueError: The document can't be read.
            ClientError: The document can't be reached.
        """
        files = DocumentFiles(str(url), self._document_bytes)
        await asyncio.to_thread(files.add, await self._fetch(url))
        while address := files.wanted:
            try:
                data = await self._fetch_reference(parse_url(address), url)
            except (ValueError, ClientError, TimeoutError) as exc:
                files.refuse(str(exc) or "it didn't arrive in time")
            else:
                await asyncio.to_thread(files.add, data)
        return files

    async def _fetch_reference(self, url: Url, document: Url) -> bytes:
        """Fetch a file that the document refers to, with credentials only if it's below the document's own folder.

        Raises:
            ValueError: The document can't refer to this file, or it can't be read.
            ClientError: The file can't be reached.
        """
        own = document.target.partition("?")[0].rpartition("/")[0] + "/"
        prefixes = [parse_url(each) for each in self._upstream.openapi.references]
        folders = [each.target.rstrip("/") + "/" for each in prefixes if each.origin == url.origin]
        for folder in [own, *folders] if url.origin == document.origin else folders:
            if is_document_below(url.target, folder):
                # At the root, the whole API would be below the folder.
                has_credentials = folder == own != "/" and url.origin == document.origin
                return await self._fetch(url, folder, has_credentials=has_credentials)
        raise ValueError(
            "it isn't a .json, .yaml, or .yml file below the document's folder, or below a folder in references"
        )

    async def _fetch(self, url: Url, folder: str = "", *, has_credentials: bool = True) -> bytes:
        """Fetch a file, with credentials if the API has the same origin.

        Args:
            url: URL of the file.
            folder: Path that redirects can't leave, or empty.
            has_credentials: Whether to send credentials at all.
        """
        same_origin = (
            not self._upstream.openapi.base_url or parse_url(self._upstream.openapi.base_url).origin == url.origin
        )
        has_credentials = has_credentials and same_origin
        credentials = self._upstream.credentials if has_credentials else None
        auth = None if credentials is None or credentials.personal else credentials.auth("")
        limit = self._document_bytes
        pool = self._upstream.pool(url, limit)
        headers: Mapping[str, str] = self.config.headers if has_credentials else {}
        endpoint = Endpoint(url, headers, pool, auth, check_redirect=partial(_check_folder, folder))
        try:
            async with asyncio.timeout(self.config.timeout):
                reply = await endpoint.send("GET", {"accept": "application/json"}, repeatable=True)
        except TooLarge as exc:
            raise ValueError(f"{url} has more than {limit:,} bytes. To allow more, set max_catalog_bytes.") from exc
        reply.discard()
        if reply.status != 200 or reply.stream is not None:
            raise ValueError(f"{url} returned status {reply.status} instead of a document.")
        return reply.body

    def _base_of(self, server: str, origin: Url | None) -> Url:
        """Return the base URL of all requests."""
        text = self._upstream.openapi.base_url or server
        if origin is None or self._upstream.openapi.base_url:
            if not text.startswith(("http://", "https://")):
                raise ValueError(f"The document has no absolute server URL ({text!r}): set base_url.")
            return parse_url(text)
        base = origin.join(text or "/")
        if base.origin != origin.origin:
            raise ValueError(
                f"The document says that the API is at {base.origin}, which isn't the document's own origin. If "
                f"you trust it, set base_url = {str(base)!r}."
            )
        return base

    def _select(self, document: Document) -> dict[str, Operation]:
        """Return the operations to offer, by name."""
        matches = re.compile("|".join(map(translate, self._upstream.openapi.operations or ("*",)))).match
        tags, found, size = set(self._upstream.openapi.tags), dict[str, Operation](), 0
        for operation in document.operations():
            method, path, own_name = operation.method, operation.path, operation.name({})
            if tags and tags.isdisjoint(operation.tags):
                continue
            if not (matches(own_name) or matches(f"{method} {path}")):
                continue
            if not _PATH.fullmatch(path):
                document.skip(method, path, "its path isn't below the API's base URL")
                continue

            name = unused_name(own_name, found)
            if (length := len(encode(operation.describe(name)))) > MAX_ITEM_BYTES:
                document.skip(method, path, "its schema is too large")
                continue
            found[name] = operation
            size += length
            if size > self.config.max_catalog_bytes:
                raise ValueError(
                    f"The tools need more than {self.config.max_catalog_bytes:,} bytes. Use tags to select fewer."
                )
        if document.skipped != self._skipped:
            document.log_skipped(self.config.name)
            self._skipped = document.skipped
        return found
