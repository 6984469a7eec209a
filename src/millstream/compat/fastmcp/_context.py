"""`Context`: the call as functions of the other libraries see it, on top of our own."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from millstream._protocol.content import Message
from millstream._protocol.errors import LocalError
from millstream._protocol.metadata import LOG_LEVELS
from millstream._server.calls.call import Call
from millstream._server.calls.changes import Change
from millstream._server.calls.context import Context as EngineContext
from millstream._server.calls.session_state import SessionState
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import CoreSchema, is_instance_schema
from millstream.compat.fastmcp._announcing import Announcing
from millstream.compat.fastmcp._elicitation import (
    REFUSALS,
    AcceptedElicitation,
    AcceptedUrlElicitation,
    Form,
    answered,
)
from millstream.compat.fastmcp._injection import ContextMark, RunInThread, current
from millstream.compat.fastmcp._request_meta import meta_of
from millstream.compat.fastmcp._session import ServerSession

if TYPE_CHECKING:
    from starlette.requests import Request

SessionT = TypeVar("SessionT")
LifespanT = TypeVar("LifespanT")
RequestT = TypeVar("RequestT")


class Host(Protocol):
    """The server, as far as a context needs it."""

    def emit(self, change: Change) -> None:
        """Tell clients of a change."""

    async def read_resource(self, uri: Any) -> Any:
        """The contents of a resource."""

    def session_state(self, session: str) -> dict[str, Any]:
        """What functions have kept for a session."""
        ...


_TRANSPORTS = {"http": "streamable-http", "sse": "sse", "stdio": "stdio", "websocket": "websocket"}
"""Our names of transports -> those of the other libraries."""


class RequestContext(Struct, frozen=True):
    """The request behind a call."""

    request_id: Any
    meta: Any
    session: ServerSession
    lifespan_context: Any
    request: Any = None
    protocol_version: str = ""


class OfSession(ContextMark):
    """The session of a context."""

    _fastmcp: Any
    _engine_context: EngineContext | None
    _invented = ""

    @property
    def _engine(self) -> EngineContext:
        if self._engine_context is None:
            raise ValueError("Context is not available outside of a request")
        return self._engine_context

    @property
    def session_id(self) -> str | None:
        """The id of the session; where there is none, None as in the SDK, or one of this call only as in fastmcp."""
        if (session := self.session_key) is None and self._fastmcp is not None and self._fastmcp.ways.invents_sessions:
            self._invented = self._invented or secrets.token_hex(16)
            return self._invented
        return session

    @property
    def session_key(self) -> str | None:
        """What tells sessions apart; None without one."""
        session = self._engine.session
        return None if session is None else session.id


class Telling(ContextMark):
    """The log messages of a context."""

    _fastmcp: Any
    _engine_context: EngineContext | None

    async def log(
        self, first: Any = None, second: Any = None, *, logger_name: str | None = None, extra: Any = None, **named: Any
    ) -> None:
        """Send a log message: ``log(level, message)`` as in the SDK, or ``log(message, level)`` as in fastmcp."""
        if first is None:
            first = named["message"]
        elif second is None and "level" not in named and first in LOG_LEVELS and "message" in named:
            second = named["message"]
        level = named.get("level")
        if level is None:
            first_is_level = first in LOG_LEVELS and second not in LOG_LEVELS and second is not None
            level, message = (first, second) if first_is_level else (second or "info", first)
        else:
            message = first
        await self._say(cast("types.LoggingLevel", level), message, logger_name, extra)

    async def _say(self, level: types.LoggingLevel, message: Any, logger_name: str | None, extra: Any) -> None:
        if self._engine_context is None:
            return
        if extra is not None or (self._fastmcp is not None and self._fastmcp.ways.logs_objects):
            message = {"msg": message, "extra": extra}
        await self._engine_context.log(level, message, logger_name)

    async def debug(self, message: Any, logger_name: str | None = None, extra: Any = None) -> None:
        """`log` at level debug."""
        await self._say("debug", message, logger_name, extra)

    async def info(self, message: Any, logger_name: str | None = None, extra: Any = None) -> None:
        """`log` at level info."""
        await self._say("info", message, logger_name, extra)

    async def warning(self, message: Any, logger_name: str | None = None, extra: Any = None) -> None:
        """`log` at level warning."""
        await self._say("warning", message, logger_name, extra)

    async def error(self, message: Any, logger_name: str | None = None, extra: Any = None) -> None:
        """`log` at level error."""
        await self._say("error", message, logger_name, extra)


class Context(OfSession, Telling, Announcing, Generic[SessionT, LifespanT, RequestT]):
    """The call that runs. Annotate a parameter with this class, and it gets it."""

    def __init__(self, fastmcp: Any = None, *, call: Call | None = None, home: object = None) -> None:
        self._fastmcp = fastmcp
        self._call = call
        self._engine_context = None if call is None else EngineContext(call, home)
        self._session: ServerSession | None = None
        self._own_state: dict[str, Any] = {}

    def __class_getitem__(cls, parameters: Any) -> Any:
        """However many parameters: SDK 1.x has three, 2.x has two."""
        several = (*parameters,) if isinstance(parameters, tuple) else (parameters,)  # pyright: ignore[reportUnknownVariableType]
        return super().__class_getitem__((*several, Any, Any)[:3])  # type: ignore[misc]  # typing's own method

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        """Programs put `pydantic.validate_call` around functions that take one; the SDK's is a model."""
        return is_instance_schema(Context)

    async def __aenter__(self) -> "Context[SessionT, LifespanT, RequestT]":
        """It is the current context inside the block."""
        self._token = current.set(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        current.reset(self._token)

    @property
    def fastmcp(self) -> Any:
        """The server."""
        if self._fastmcp is None:
            raise ValueError("Context is not available outside of a request")
        return self._fastmcp

    mcp_server = fastmcp

    # About the request

    @property
    def request_context(self) -> RequestContext:
        """The request, in detail."""
        engine, lifespan = self._engine, self.lifespan_context
        return RequestContext(engine.request_id, self.meta, self.session, lifespan, self.request, engine.revision)

    @property
    def meta(self) -> Any:
        """`_meta` of the request; None without."""
        return None if self._call is None else meta_of(self._call)

    @property
    def request(self) -> "Request | None":
        """The HTTP request, with its headers; None on other transports."""
        headers = self._engine.headers
        if not headers:
            return None
        from starlette.requests import Request  # noqa: PLC0415  few functions ask

        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}
        return Request(scope)

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers of the request, lower-case names."""
        return self._engine.headers

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self._engine.request_id)

    @property
    def origin_request_id(self) -> str:
        """The same."""
        return self.request_id

    @property
    def client_id(self) -> str | None:
        """`client_id` of the request's `_meta`, or the client that signed in."""
        named = getattr(self.meta, "client_id", None)
        principal = self._engine.principal
        return named or (None if principal is None else principal.client or None)

    @property
    def protocol_version(self) -> str:
        """The date of the protocol's revision."""
        return self._engine.revision

    @property
    def client_capabilities(self) -> types.ClientCapabilities:
        """What the client said that it can do."""
        return types.ClientCapabilities.model_validate(dict(self._engine.client.capabilities))

    @property
    def transport(self) -> str | None:
        """What carried the request."""
        return None if self._call is None else _TRANSPORTS.get(self._call.transport)

    @property
    def session(self) -> ServerSession:
        """The session of the caller."""
        if self._session is None:
            host: Host = self.fastmcp
            engine, call = self._engine, self._call
            assert call is not None  # noqa: S101  `_engine` saw it
            self._session = ServerSession(engine, call, host.emit)
        return self._session

    @property
    def lifespan_context(self) -> Any:
        """What the lifespan gave; an empty dict without one."""
        found = None if self._engine_context is None else self._engine_context.lifespan
        return {} if found is None else found

    async def run_in_thread(self, function: Any, *args: Any) -> Any:
        """Run a plain function in a worker thread of the server."""
        thread: RunInThread = asyncio.to_thread if self._call is None else self._call.services.threads.run
        return await thread(function, *args)

    # Telling

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, where the caller asked for it."""
        if self._engine_context is not None:
            await self._engine_context.progress(progress, total, message)

    async def close_sse_stream(self) -> None:
        """Drop the connection but not the call, where the client can come back for the rest."""
        await self._engine.close_stream()

    # Resources and prompts of the server

    async def read_resource(self, uri: Any) -> Any:
        """The contents of a resource of this server."""
        return await self.fastmcp.read_resource(uri)

    async def list_resources(self) -> Any:
        """The resources of this server."""
        return await self.fastmcp.list_resources()

    async def list_prompts(self) -> Any:
        """The prompts of this server."""
        return await self.fastmcp.list_prompts()

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """The messages of a prompt of this server."""
        return await self.fastmcp.get_prompt(name, arguments)

    # Asking

    async def elicit(
        self,
        message: str,
        schema: Any = None,
        response_type: Any = None,
        *,
        response_title: str | None = None,
        response_description: str | None = None,
    ) -> Any:
        """Ask the person: a pydantic model, a dataclass, a scalar type or choices say for what.

        Returns:
            `AcceptedElicitation` with `data`, `DeclinedElicitation` or `CancelledElicitation`.
        """
        answer = schema if schema is not None else response_type
        form = Form(answer, title=response_title, description=response_description)
        action, content = await answered(self._engine.elicit(message, form.schema))
        return REFUSALS[action]() if action != "accept" else AcceptedElicitation[Any](data=form.read(content or {}))

    async def elicit_url(self, message: str, url: str, elicitation_id: str = "") -> Any:
        """Ask the person to open a URL."""
        action, _ = await answered(self._engine.elicit_url(message, url, id=elicitation_id))
        return REFUSALS[action]() if action != "accept" else AcceptedUrlElicitation()

    async def sample(
        self,
        messages: Any,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        model_preferences: Any = None,
    ) -> Any:
        """Let the client's model continue a conversation; gives the content, for example with `text`."""
        several = [messages] if isinstance(messages, str) else messages
        result = await self.session.create_message(
            [_sampling(each) for each in several],
            max_tokens=512 if max_tokens is None else max_tokens,
            system_prompt=system_prompt,
            temperature=temperature,
            model_preferences=_preferences(model_preferences),
        )
        return result.content

    async def list_roots(self) -> list[types.Root]:
        """The folders that the person opened in the client."""
        return (await self.session.list_roots()).roots

    # State

    async def set_state(self, key: str, value: Any, *, serializable: bool = True) -> None:
        """Keep a value for the session; for the call, where there is no session.

        What JSON gives back as it was, up to 64 KiB for a session, is there at every worker. Anything else stays in
        this process.
        """
        shared = self._shared_state()
        self._state()[key] = value
        if shared is not None and serializable and _survives_json(value):
            with suppress(LocalError):  # it's too large
                await shared.set(key, value)
                self._state().pop(key, None)

    async def get_state(self, key: str) -> Any:
        """The value kept, or None."""
        own, shared = self._state(), self._shared_state()
        return own[key] if key in own or shared is None else await shared.get(key)

    async def delete_state(self, key: str) -> None:
        """Forget a value."""
        self._state().pop(key, None)
        shared = self._shared_state()
        if shared is not None:
            await shared.delete(key)

    def _shared_state(self) -> SessionState | None:
        return None if self._engine_context is None else self._engine_context.session_state

    def _state(self) -> dict[str, Any]:
        session = None if self._engine_context is None else self.session_key
        host: Host = self.fastmcp
        return self._own_state if session is None else host.session_state(session)


def _survives_json(value: Any) -> bool:
    try:
        return bool(msgspec.json.decode(msgspec.json.encode(value)) == value)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return False


def _sampling(value: Any) -> Any:
    return Message("user", value) if isinstance(value, str) else value


def _preferences(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence):
        return types.ModelPreferences(hints=[types.ModelHint(name=each) for each in cast("Sequence[str]", value)])
    return value
