"""The state behind `Client`: handlers, requests, cache, and shutdown."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from msgspec import Raw

from millstream._copies import NotCopyable
from millstream._http.client import Inflow
from millstream._protocol.errors import HEADER_MISMATCH
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import LOG_LEVELS, Implementation
from millstream._protocol.notifications import (
    ListToolsResult,
    PaginatedRequestParams,
    PaginatedResult,
    SubscriptionFilter,
    ToolDescription,
)
from millstream._protocol.revisions import BY_DATE
from millstream._tasks import cancel_all
from millstream._version import __version__
from millstream.client._errors import ClientError, NotSupported, ServerError, TargetError, client_logger
from millstream.client._questions import QuestionHandler
from millstream.client._requests import (
    NOT_CONNECTED,
    Connection,
    Era,
    OpenSession,
    RawRequest,
    ToolHeaders,
    with_meta,
)
from millstream.client._results import Cache, PaginatedList, read
from millstream.client._server_messages import Change, Notification, OnChange, OnLog, OnProgress, ServerMessages
from millstream.client._targets import Target, find_server
from millstream.client._transports import Options, Transport
from millstream.client._watches import Changes, Watch, WatchingRequests

T = TypeVar("T")
L = TypeVar("L", bound=PaginatedResult)

logger = client_logger(__name__)
decode_tools = foreign_decoder(ListToolsResult, logger.warning)


class Conversation(NotCopyable):
    """A connection to a server for raw messages, such as the ones that gateways forward. A `Client` also has one.

    ``await conversation.requests.ask(RawRequest(method="ping"))`` sends a request and returns the result as JSON.
    ``next(conversation.requests.ids)`` reserves the id of a later `RawRequest`. After a connection is lost, the next
    request reconnects.

    Args:
        target: The server, as for `Client`.
        questions: Answers the server's questions.
        options: Limits and less common settings.
        revision: The only protocol revision to ask for, as a date; None to negotiate one. In a handshake, the server
            may choose another one.
        headers: Headers for every HTTP request.
        timeout: Seconds to wait for a response.
        on_log: Handler for log messages.
        on_change: Handler for changes that a handshake-era server reports.
        observer: Called with each notification, before its handlers.
        about: The client's `clientInfo` as JSON, instead of the name and version of the options.
        reconnects: Whether to replace a lost session with a new one. If False, requests raise `SessionLost` after that.

    Raises:
        TargetError: The target doesn't identify a server, or the revision is unknown.
    """

    def __init__(  # noqa: PLR0913  keyword-only settings
        self,
        target: Target,
        questions: QuestionHandler,
        options: Options,
        *,
        revision: str | None,
        headers: Mapping[str, str],
        timeout: float,
        on_log: OnLog | None = None,
        on_change: OnChange | None = None,
        observer: Callable[[Notification], object] | None = None,
        about: Raw | None = None,
        reconnects: bool = True,
    ) -> None:
        if revision is not None and revision not in BY_DATE:
            raise TargetError(f"Unknown revision {revision}. This client supports {', '.join(BY_DATE)}.")
        self._options = options
        self.questions: QuestionHandler = questions
        self._incoming = ServerMessages(questions, on_log, on_change, options, observer)
        self.requests: WatchingRequests = WatchingRequests(
            place=find_server(target, env=options.env, cwd=None if options.cwd is None else str(options.cwd)),
            options=options,
            questions=questions,
            incoming=self._incoming,
            pinned=BY_DATE[revision] if revision is not None else None,
            headers=headers,
            timeout=timeout,
            inflow=Inflow(),
            era=Era(),
            about=about or Implementation(options.name, options.version or __version__),
            reconnects=reconnects,
            log_level=options.log_level,
        )
        self._tool_headers = ToolHeaders()
        self._cache = Cache(options.max_bytes)
        self._incoming.watchers.add(self._cache.invalidate)
        self._watch_task: asyncio.Task[None] | None = None
        """Keeps the connection open for `on_change`."""

    async def start(self, session: OpenSession | None = None) -> None:
        """Connect and negotiate, even after `close`.

        Args:
            session: The session to resume instead, from `Requests.describe_session`.

        Raises:
            SessionLost: The server doesn't know the session any more.
            ClientError: The server can't be reached.
        """
        self._incoming.background.reopen()
        self._cache.invalidate(Change("again"), None)  # the server may have changed in the meantime
        try:
            if session is None:
                await self.requests.restore(await self.requests.connect(first=True), None)
            else:
                await self.requests.resume(session)
        except BaseException:
            await self.close()
            raise
        if self._incoming.on_change is not None:
            self._watch_task = asyncio.create_task(Watch(_requests=self.requests).run())

    async def close(self) -> None:
        """Close the session, the connections, the process, and every task."""
        try:
            await self._incoming.background.settle(0)
            await cancel_all(self._watch_task)
        finally:  # even if `close` is canceled, to leave no process behind
            try:
                await self.requests.close()
            finally:
                await self._incoming.background.close()

    @property
    def negotiated(self) -> Connection:
        """Return the connection, with the negotiated revision and capabilities. While a new one is being made, return
        the last one.

        Raises:
            ClientError: The client hasn't connected yet.
        """
        connection = self.requests.connection or self.requests.last
        if connection is None:
            raise ClientError(NOT_CONNECTED)
        return connection

    @property
    def transport(self) -> Transport:
        """Transport of the current connection."""
        return self.negotiated.transport

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        progress: OnProgress | None,
        timeout: float,
        *,
        meta: Mapping[str, Any] | None = None,
        declared: bytes = b"",
    ) -> bytes:
        """Return the raw result of a tool call.

        Args:
            tool: Name of the tool.
            arguments: Arguments of the call.
            progress: Handler for progress reports.
            timeout: Seconds to wait, or 0 for the default.
            meta: Members to add to `_meta`.
            declared: `_meta` members as JSON without braces, instead of the connection's default ones.
        """
        ask = RawRequest(
            method="tools/call",
            params=with_meta(encode_call(tool, arguments), encode({**meta})[1:-1] if meta else b""),
            name=tool,
            headers=self._tool_headers.of(tool, arguments),
            timeout=timeout,
            progress=progress,
            meta=declared,
        )
        try:
            return await self.requests.ask(ask)
        except ServerError as exc:
            if exc.code != HEADER_MISMATCH:
                raise
        # The tool's header annotations are unknown or out of date.
        await self.list("tools/list", decode_tools, lambda page: self.learn(page.tools), fresh=True)
        ask.headers = self._tool_headers.of(tool, arguments)
        return await self.requests.ask(ask)

    def learn(self, tools: "list[ToolDescription]") -> "list[ToolDescription]":
        """Return the tools that can be called. Header annotations only matter over Streamable HTTP.

        Args:
            tools: The tools of a page.
        """
        return self._tool_headers.learn(tools) if self.transport.name == "streamable-http" else tools

    async def set_log_level(self, level: str) -> None:
        """Set the log level of the session.

        Args:
            level: Minimum severity, such as ``warning``.

        Raises:
            ValueError: The level is unknown.
            NotSupported: The revision doesn't support a per-session log level.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"Unknown log level {level!r}. Use one of {', '.join(LOG_LEVELS)}.")
        revision = self.negotiated.revision
        if not revision.handshake:
            raise NotSupported(
                f"Revision {revision.date} doesn't support a per-session log level. Set Options(log_level=…)."
            )
        await self.requests.ask(RawRequest(method="logging/setLevel", params=encode({"level": level})))
        self.requests.log_level = level

    def watch(self, *uris: str, tools: bool = False, prompts: bool = False, resources: bool = False) -> Changes:
        """Return a subscription that isn't open yet: ``async with conversation.watch(uri) as changes: …``.

        Args:
            uris: Resources to watch for updates.
            tools: Whether to watch the list of tools.
            prompts: Whether to watch the list of prompts.
            resources: Whether to watch the list of resources. Without any arguments, all three lists are watched.
        """
        everything = not (uris or tools or prompts or resources)
        return Changes(
            SubscriptionFilter(tools or everything, prompts or everything, resources or everything, list(uris)),
            _requests=self.requests,
        )

    # Lists and cached results

    def list(
        self,
        method: str,
        decode: Callable[[bytes], L],
        items: Callable[[L], "list[T]"],
        *,
        fresh: bool,
        offered: Callable[[], bool] | None = None,
    ) -> PaginatedList[T]:
        """Return a paginated list, which is empty if the server lacks the capability, or if `offered` returns False.

        Args:
            method: Method of the list.
            decode: Decodes a page.
            items: Returns the items of a page.
            fresh: Whether to ask the server even if the cached list is still valid.
            offered: Returns whether the server has the list.
        """

        async def page(cursor: str | None) -> tuple[str | None, "list[T]", int]:
            negotiated = self.negotiated
            if not (offered() if offered else negotiated.revision.requests.get(method, "") in negotiated.capabilities):
                return None, [], 0  # the server would respond "method not found"
            ask = RawRequest(method=method, params=encode(PaginatedRequestParams(cursor)), repeatable=True)
            result, size = await self.ask_cached(ask, decode, fresh=fresh)
            return result.next_cursor, items(result), size

        return PaginatedList(page, self._options.max_pages, self._options.max_bytes)

    async def ask_cached(self, ask: RawRequest, decode: Callable[[bytes], Any], *, fresh: bool) -> tuple[Any, int]:
        """Return a result, and the number of bytes received for it, which is 0 if it was in the cache.

        Args:
            ask: The request.
            decode: Decodes the result.
            fresh: Whether to ask the server even if the cached result is still valid.
        """
        found = None if fresh else self._cache.get(ask.method, ask.params)
        if found is not None:
            return found, 0
        raw = await self.requests.ask(ask)
        result = read(ask.method, decode, raw)
        if self._options.cache:
            self._cache.put(ask.method, ask.params, result, result.ttl_ms, len(raw))
        return result, len(raw)


def encode_call(name: str, arguments: Mapping[str, Any], *, as_text: bool = False) -> bytes:
    """Return the parameters of a call.

    Raises:
        TypeError: An argument has no JSON. The text names it.
        ClientError: JSON can't contain the arguments.
    """
    try:
        if as_text:
            arguments = {
                each: value if isinstance(value, str) else encode(value).decode() for each, value in arguments.items()
            }
        return _encode_call(name, arguments)
    except (UnicodeEncodeError, RecursionError) as error:
        why = "are nested too deeply" if isinstance(error, RecursionError) else "have half of a surrogate pair in text"
        raise ClientError(f"The arguments of {name!r} can't be sent as JSON, because they {why}.") from error


def _encode_call(tool: str, arguments: Mapping[str, Any]) -> bytes:
    with suppress(TypeError):
        return encode({"name": tool, "arguments": arguments})
    # Imported here, because few arguments need its support for models and paths.
    widely: Callable[[Any], bytes] = import_module("millstream._server.functions.msgspec_engine").encode
    try:
        return widely({"name": tool, "arguments": arguments})
    except TypeError:
        for name, value in arguments.items():
            with suppress(TypeError):
                widely(value)
                continue
            start = f"The argument {name!r} of {tool!r} can't be sent as JSON"
            if isinstance(value, type):
                text = (
                    f"it's the class {value.__name__}. For the type of the result, write result_type={value.__name__}"
                )
            else:
                kind = type(value).__name__
                text = f"it's a {kind}, or contains such a value. Use builtins, dataclasses, Structs, or models"
            raise TypeError(f"{start}, because {text}.") from None
        raise
