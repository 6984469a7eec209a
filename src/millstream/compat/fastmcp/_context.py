"""`Context`, the current call, and `ServerSession`, its client."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Literal

import msgspec
from msgspec import Struct
from pydantic import BaseModel
from pydantic_core.core_schema import CoreSchema, is_instance_schema
from starlette.requests import Request
from typing_extensions import TypeVar

from millstream import Cancelled, Declined, Message
from millstream import Context as EngineContext
from millstream._app.definition import Definition
from millstream._copies import NotCopyable
from millstream._protocol.metadata import declares
from millstream._server.calls.call import Call, params_of, value_of
from millstream._server.calls.services import ServerChange
from millstream.compat import types
from millstream.compat.fastmcp._outputs import ContextMark, to_wire
from millstream.protocol import Json, is_array, notification_message

T = TypeVar("T")
FormT = TypeVar("FormT", bound=BaseModel)
SessionT = TypeVar("SessionT", default=Any)
LifespanT = TypeVar("LifespanT", default=Any)
RequestT = TypeVar("RequestT", default=Any)


class AcceptedElicitation(BaseModel, Generic[T]):
    """The user accepted; `data` contains the answer."""

    action: Literal["accept"] = "accept"
    data: T


class DeclinedElicitation(BaseModel):
    """The user declined."""

    action: Literal["decline"] = "decline"


class CancelledElicitation(BaseModel):
    """The user dismissed the question."""

    action: Literal["cancel"] = "cancel"


class AcceptedUrlElicitation(BaseModel):
    """The user agreed to open the URL."""

    action: Literal["accept"] = "accept"


ElicitationResult = AcceptedElicitation[T] | DeclinedElicitation | CancelledElicitation
"""Return type of `Context.elicit`."""
_Action = Literal["accept", "decline", "cancel"]
_REFUSALS: dict[_Action, type[DeclinedElicitation | CancelledElicitation]] = {
    "decline": DeclinedElicitation,
    "cancel": CancelledElicitation,
}


class Meta(types.Wire):
    """`_meta` of a request."""

    progressToken: str | int | None = None  # noqa: N815  the SDK's name


class RequestContext(Struct, NotCopyable, frozen=True):
    """The request of a call."""

    request_id: Any
    meta: Any
    session: "ServerSession"
    lifespan_context: Any
    request: Any = None


class ServerSession(NotCopyable):
    """The client of a call. Its methods work until the call ends."""

    def __init__(self, definition: Definition, call: Call) -> None:
        self.engine: EngineContext = EngineContext(call, definition)
        """The call in Millstream's own interface."""
        self.call: Call = call
        self._emit = definition.emit

    @property
    def client_params(self) -> types.Wire:
        """The client's `initialize` parameters."""
        client = self.engine.client
        return types.Wire.model_validate(
            {
                "protocolVersion": self.engine.revision,
                "capabilities": types.ClientCapabilities.model_validate(client.capabilities),
                "clientInfo": types.Implementation(name=client.name, version=client.version),
            }
        )

    def check_client_capability(self, capability: types.ClientCapabilities) -> bool:
        """Return whether the client declared a capability.

        Args:
            capability: The capability, such as ``ClientCapabilities(sampling=SamplingCapability())``.
        """
        return declares(self.engine.client.capabilities, to_wire(capability))

    async def send_log_message(
        self, level: types.LoggingLevel, data: Any, logger: str | None = None, related_request_id: Any = None
    ) -> None:
        """Send a log message.

        Args:
            level: Severity of the message.
            data: Text or JSON data.
            logger: Name of the logger.
            related_request_id: Ignored. Messages always belong to this call.
        """
        await self.engine.log(level, data, logger)

    async def send_progress_notification(
        self,
        progress_token: Any,
        progress: float,
        total: float | None = None,
        message: str | None = None,
        related_request_id: Any = None,
    ) -> None:
        """Report progress of the call. Always uses the request's own token.

        Args:
            progress_token: Ignored. The request's own token is used.
            progress: Progress so far, which must increase with each report.
            total: Value of `progress` at the end, if it's known.
            message: Description of the current work, for the user.
            related_request_id: Ignored. Messages always belong to this call.
        """
        await self.engine.progress(progress, total, message)

    async def send_tool_list_changed(self) -> None:
        """Notify clients that the list of tools has changed."""
        self._emit(ServerChange("tools"))

    async def send_resource_list_changed(self) -> None:
        """Notify clients that the list of resources has changed."""
        self._emit(ServerChange("resources"))

    async def send_prompt_list_changed(self) -> None:
        """Notify clients that the list of prompts has changed."""
        self._emit(ServerChange("prompts"))

    async def send_resource_updated(self, uri: Any) -> None:
        """Notify the subscribers of a resource that it has changed.

        Args:
            uri: URI of the resource.
        """
        self._emit(ServerChange("updated", str(uri)))

    async def send_elicit_complete(self, elicitation_id: str, related_request_id: Any = None) -> None:
        """Notify the client that the user has completed a URL elicitation (2025-11-25).

        Args:
            elicitation_id: Id that was sent with the URL.
            related_request_id: Ignored. Messages always belong to this call.
        """
        if self.call.revision.elicitation_ids:
            params = {"elicitationId": elicitation_id}
            await self.call.send_to_caller(notification_message("notifications/elicitation/complete", params))

    async def elicit_form(
        self,
        message: str,
        requestedSchema: Json,  # noqa: N803  the SDK's name
        related_request_id: Any = None,
    ) -> types.ElicitResult:
        """Ask the user to fill in a form.

        Args:
            message: The question.
            requestedSchema: JSON Schema of the form: an object with text, numbers, booleans, or choices as properties.
            related_request_id: Ignored. Messages always belong to this call.
        """
        action, content = await _ask(self.engine.elicit(message, requestedSchema))
        return types.ElicitResult(action=action, content=content)

    elicit = elicit_form

    async def elicit_url(
        self, message: str, url: str, elicitation_id: str = "", related_request_id: Any = None
    ) -> types.ElicitResult:
        """Ask the user to open a URL.

        Args:
            message: Why the user should open the URL.
            url: The URL.
            elicitation_id: Id for `send_elicit_complete`, or empty if you don't call it.
            related_request_id: Ignored. Messages always belong to this call.
        """
        action, _ = await _ask(self.engine.elicit_url(message, url, id=elicitation_id))
        return types.ElicitResult(action=action)

    async def create_message(
        self,
        messages: Sequence[Any],
        *,
        max_tokens: int,
        system_prompt: str | None = None,
        temperature: float | None = None,
        stop_sequences: Sequence[str] | None = None,
        model_preferences: Any = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        **ignored: Any,
    ) -> types.CreateMessageResult:
        """Have the client's model continue a conversation.

        Args:
            messages: The conversation, as `SamplingMessage` objects.
            max_tokens: Maximum tokens of the reply.
            system_prompt: System prompt for the model.
            temperature: Randomness of the reply. Its range depends on the model.
            stop_sequences: Texts that end the reply.
            model_preferences: Which model to prefer, as `ModelPreferences`.
            tools: Tools that the model can call. The program runs them.
            tool_choice: Whether the model must call a tool, such as ``{"mode": "required"}``.
            ignored: The SDK's other arguments, which have no effect.
        """
        result = await self.engine.sample(
            [msgspec.convert(to_wire(each), Message) for each in messages],
            max_tokens=max_tokens,
            system=system_prompt,
            temperature=temperature,
            stop_sequences=stop_sequences,
            preferences=to_wire(model_preferences),
            tools=None if tools is None else [to_wire(each) for each in tools],
            tool_choice=to_wire(tool_choice),
        )
        wire = msgspec.to_builtins(result)
        return types.CreateMessageResult.model_validate({**wire, "content": _blocks(wire["content"])})

    async def list_roots(self) -> types.ListRootsResult:
        """Return the folders that the user opened in the client."""
        roots = await self.engine.roots()
        return types.ListRootsResult.model_validate({"roots": msgspec.to_builtins(roots)})


def _blocks(value: Any) -> Any:
    if is_array(value):
        return [_blocks(each) for each in value]
    if value.get("type") in ("text", "image", "audio"):
        return types.PromptMessage.model_validate({"role": "assistant", "content": value}).content
    return value


class Context(ContextMark, NotCopyable, Generic[SessionT, LifespanT, RequestT]):
    """The current call. Annotate a parameter with this class to receive it."""

    _COPY_ADVICE = "Pass on what you read from it, such as the request id."

    def __init__(self, fastmcp: Any = None, call: Call | None = None) -> None:
        self._fastmcp = fastmcp
        self._session = None if call is None else ServerSession(fastmcp.engine.definition, call)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        """Support `pydantic.validate_call` for functions with a context parameter."""
        return is_instance_schema(Context)

    @property
    def _engine(self) -> EngineContext:
        return self.session.engine

    @property
    def fastmcp(self) -> Any:  # the program's subclass of `FastMCP`
        """The server."""
        if self._fastmcp is None:
            raise ValueError("Context is not available outside of a request")
        return self._fastmcp

    # The request

    @property
    def request_context(self) -> RequestContext:
        """The request with its `meta`, `session`, `lifespan_context`, and HTTP `request`."""
        engine = self._engine
        lifespan: Any = {} if engine.lifespan is None else engine.lifespan
        request = None
        if engine.headers:
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in engine.headers.items()]
            request = Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw})
        return RequestContext(engine.request_id, self._meta, self.session, lifespan, request)

    @property
    def _meta(self) -> Meta | None:
        call = self.session.call
        found: Json = value_of(params_of(call).meta) or {}
        if call.token is not None:
            found["progressToken"] = call.token
        return Meta.model_validate(found) if found else None

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self._engine.request_id)

    @property
    def client_id(self) -> str | None:
        """The client id from the request's `_meta`, or else from the caller's token."""
        principal = self._engine.principal
        named = getattr(self._meta, "client_id", None)
        return named or (None if principal is None else principal.client or None)

    @property
    def session(self) -> ServerSession:
        """The client."""
        if self._session is None:
            raise ValueError("Context is not available outside of a request")
        return self._session

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """Run a plain function in a worker thread of the server.

        Args:
            function: A function without parameters.
        """
        if self._session is None:
            return await asyncio.to_thread(function)
        call = self._session.call
        value: T = await call.services.threads.run(function, owner=call.owner)
        return value

    # Notifications

    async def log(
        self, level: types.LoggingLevel, message: Any, *, logger_name: str | None = None, extra: Any = None
    ) -> None:
        """Send a log message. If there's an `extra`, send an object with `message` and its members.

        Args:
            level: Severity of the message.
            message: Text or JSON data.
            logger_name: Name of the logger.
            extra: Members to send in addition to the message.
        """
        if self._session is not None:
            data = message if extra is None else {"message": message, **extra}
            await self._engine.log(level, data, logger_name)

    async def debug(self, message: Any, **extra: Any) -> None:
        """Send a log message at level debug.

        Args:
            message: Text or JSON data.
            extra: `logger_name` and `extra`, as in `log`.
        """
        await self.log("debug", message, **extra)

    async def info(self, message: Any, **extra: Any) -> None:
        """Send a log message at level info.

        Args:
            message: Text or JSON data.
            extra: `logger_name` and `extra`, as in `log`.
        """
        await self.log("info", message, **extra)

    async def warning(self, message: Any, **extra: Any) -> None:
        """Send a log message at level warning.

        Args:
            message: Text or JSON data.
            extra: `logger_name` and `extra`, as in `log`.
        """
        await self.log("warning", message, **extra)

    async def error(self, message: Any, **extra: Any) -> None:
        """Send a log message at level error.

        Args:
            message: Text or JSON data.
            extra: `logger_name` and `extra`, as in `log`.
        """
        await self.log("error", message, **extra)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, if the client requested it.

        Args:
            progress: Progress so far, which must increase with each report.
            total: Value of `progress` at the end, if it's known.
            message: Description of the current work, for the user.
        """
        if self._session is not None:
            await self._engine.progress(progress, total, message)

    async def close_sse_stream(self) -> None:
        """Close the call's connection. The call continues, and the client reconnects for its result."""
        await self._engine.close_stream()

    # Questions

    async def read_resource(self, uri: Any) -> Any:  # what a subclass's `read_resource` returns
        """Return the contents of a resource of this server.

        Args:
            uri: URI of a resource, or one that matches a template.
        """
        return await self.fastmcp.read_resource(uri)

    async def elicit(
        self, message: str, schema: type[FormT]
    ) -> AcceptedElicitation[FormT] | DeclinedElicitation | CancelledElicitation:
        """Ask the user to fill in the fields of a model.

        Args:
            message: The question.
            schema: A pydantic model with text, numbers, booleans, or choices as fields.

        Returns:
            `AcceptedElicitation` with `data`, `DeclinedElicitation`, or `CancelledElicitation`.

        Raises:
            TypeError: The model has fields of a type that forms don't support.
        """
        action, data = await _ask(self._engine.elicit(message, schema))
        return AcceptedElicitation[Any](data=data) if action == "accept" else _REFUSALS[action]()

    async def elicit_url(
        self, message: str, url: str, elicitation_id: str = ""
    ) -> AcceptedUrlElicitation | DeclinedElicitation | CancelledElicitation:
        """Ask the user to open a URL.

        Args:
            message: Why the user should open the URL.
            url: The URL.
            elicitation_id: Id for `ServerSession.send_elicit_complete`, or empty if you don't call it.
        """
        action, _ = await _ask(self._engine.elicit_url(message, url, id=elicitation_id))
        return AcceptedUrlElicitation() if action == "accept" else _REFUSALS[action]()

    async def sample(
        self,
        messages: str | Sequence[Any],
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int = 512,
    ) -> Any:  # one content block of the SDK's type, or several
        """Have the client's model continue a conversation and return the content of its reply.

        Args:
            messages: The conversation: text, or texts and `SamplingMessage` objects.
            system_prompt: System prompt for the model.
            temperature: Randomness of the reply. Its range depends on the model.
            max_tokens: Maximum tokens of the reply.
        """
        given = [messages] if isinstance(messages, str) else messages
        result = await self.session.create_message(
            [Message("user", each) if isinstance(each, str) else each for each in given],
            max_tokens=max_tokens,
            system_prompt=system_prompt,
            temperature=temperature,
        )
        return result.content


async def _ask(question: Awaitable[T]) -> tuple[_Action, T | None]:
    """Return the user's action, and the answer if they accepted."""
    try:
        return "accept", await question
    except Declined:
        return "decline", None
    except Cancelled:
        return "cancel", None
