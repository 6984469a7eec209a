"""The caller's session as programs for the other libraries see it: what can be sent to it and asked of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from millstream._protocol.content import Message
from millstream._protocol.json_schema import is_array
from millstream._protocol.jsonrpc import notification_message
from millstream._protocol.metadata import declares
from millstream._server.calls.call import Call
from millstream._server.calls.changes import Change
from millstream._server.calls.context import Context as EngineContext
from millstream.compat import _types as types
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._elicitation import answered


class ServerSession:
    """One client. It answers for as long as the call that it came with runs."""

    def __init__(self, engine: EngineContext, call: Call, emit: Callable[[Change], None]) -> None:
        self.engine: EngineContext = engine
        """Our own context of the call."""
        self._call = call
        self._emit = emit

    @property
    def client_params(self) -> types.Wire:
        """What the client said about itself when it connected."""
        client = self.engine.client
        return types.Wire.model_validate(
            {
                "protocolVersion": self.engine.revision,
                "capabilities": client.capabilities,
                "clientInfo": types.Implementation(name=client.name, version=client.version),
            }
        )

    def check_client_capability(self, capability: Any) -> bool:
        """Whether the client declared a capability."""
        return declares(self.engine.client.capabilities, as_wire(capability))

    # Telling

    async def send_log_message(
        self, level: types.LoggingLevel, data: Any, logger: str | None = None, related_request_id: Any = None
    ) -> None:
        """Send a log message."""
        await self.engine.log(level, data, logger)

    async def send_progress_notification(
        self,
        progress_token: Any,
        progress: float,
        total: float | None = None,
        message: str | None = None,
        related_request_id: Any = None,
    ) -> None:
        """Report progress of the call; the token is always that of its request."""
        await self.engine.progress(progress, total, message)

    async def send_tool_list_changed(self) -> None:
        """Tell clients that the list of tools is another one."""
        self._emit(Change("tools"))

    async def send_resource_list_changed(self) -> None:
        """Tell clients that the list of resources is another one."""
        self._emit(Change("resources"))

    async def send_prompt_list_changed(self) -> None:
        """Tell clients that the list of prompts is another one."""
        self._emit(Change("prompts"))

    async def send_resource_updated(self, uri: Any) -> None:
        """Tell subscribers of a resource that it changed."""
        self._emit(Change("updated", str(uri)))

    async def send_elicit_complete(self, elicitation_id: str, related_request_id: Any = None) -> None:
        """Tell the client that what the person did at a URL is done (2025-11-25)."""
        if self._call.revision.elicitation_ids:
            params = {"elicitationId": elicitation_id}
            await self._call.say(notification_message("notifications/elicitation/complete", params))

    # Asking

    async def elicit_form(
        self,
        message: str,
        requestedSchema: dict[str, Any],  # noqa: N803  the SDK's name
        related_request_id: Any = None,
    ) -> types.ElicitResult:
        """Ask the person to fill in a form."""
        action, content = await answered(self.engine.elicit(message, requestedSchema))
        return types.ElicitResult(action=action, content=content)

    elicit = elicit_form

    async def elicit_url(
        self, message: str, url: str, elicitation_id: str = "", related_request_id: Any = None
    ) -> types.ElicitResult:
        """Ask the person to open a URL."""
        action, _ = await answered(self.engine.elicit_url(message, url, id=elicitation_id))
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
        **more: Any,
    ) -> types.CreateMessageResult:
        """Let the client's model continue a conversation."""
        result = await self.engine.sample(
            [msgspec.convert(as_wire(each), Message) for each in messages],
            max_tokens=max_tokens,
            system=system_prompt,
            temperature=temperature,
            stop_sequences=stop_sequences,
            preferences=as_wire(model_preferences),
            tools=None if tools is None else [as_wire(each) for each in tools],
            tool_choice=as_wire(tool_choice),
        )
        wire: Mapping[str, Any] = msgspec.to_builtins(result)
        return types.CreateMessageResult.model_validate({**wire, "content": _contents(wire["content"])})

    async def list_roots(self) -> types.ListRootsResult:
        """The folders that the person opened in the client."""
        roots = await self.engine.roots()
        return types.ListRootsResult.model_validate({"roots": msgspec.to_builtins(roots)})


def _contents(value: Any) -> Any:
    if is_array(value):
        return [_contents(each) for each in value]
    if value.get("type") in ("text", "image", "audio"):
        return types.PromptMessage.model_validate({"role": "assistant", "content": value}).content
    return value
