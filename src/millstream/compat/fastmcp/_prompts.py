"""Prompts: functions that return messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec
from pydantic import BaseModel

from millstream._protocol.content import Message as EngineMessage
from millstream._protocol.errors import INVALID_PARAMS
from millstream._server.calls.call import Call
from millstream._server.features import resources
from millstream._server.features.sources import ItemSource
from millstream.compat import types
from millstream.compat.fastmcp._content import is_content, to_blocks, to_text, to_wire
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._exceptions import prefixed_errors, protocol_errors
from millstream.compat.fastmcp._signatures import Signature, signature_of


class Message(BaseModel):
    """One message: ``UserMessage("hello")``, ``AssistantMessage("hi")``."""

    role: Literal["user", "assistant"]
    content: Any

    def __init__(self, content: Any, **more: Any) -> None:
        if isinstance(content, Mapping):
            message = {"role": "user", "content": dict(cast("Mapping[str, Any]", content))}
            content = types.PromptMessage.model_validate(message).content
        super().__init__(content=to_blocks(content)[0], **more)


class UserMessage(Message):
    """A message from the user."""

    role: Literal["user", "assistant"] = "user"


class AssistantMessage(Message):
    """A message from the model."""

    role: Literal["user", "assistant"] = "assistant"


class Prompt:
    """A prompt of a server. Create one with `from_function`."""

    def __init__(
        self,
        signature: Signature,
        *,
        title: str | None = None,
        description: str | None = None,
        icons: Sequence[Any] | None = None,
    ) -> None:
        self.signature = signature
        self.name: str = signature.name
        self.title = title
        self.description: str = signature.description if description is None else description
        self.icons = icons
        properties = signature.schema.get("properties", {})
        required = signature.schema.get("required", ())
        self.arguments: list[types.PromptArgument] = [
            types.PromptArgument(name=name, description=schema.get("description"), required=name in required)
            for name, schema in properties.items()
        ]

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        icons: Sequence[Any] | None = None,
    ) -> "Prompt":
        """Create a prompt from a function.

        Raises:
            InvalidSignature, ValueError: the function's signature isn't supported.
        """
        return cls(signature_of(fn, name), title=title, description=description, icons=icons)

    async def render(self, arguments: Mapping[str, Any] | None = None, context: Any = None) -> list[Any]:
        """Return the messages.

        Raises:
            ValueError: arguments are missing or invalid, or the function raised.
        """
        given = dict(arguments or {})
        missing = {each.name for each in self.arguments if each.required} - given.keys()
        if missing:
            raise ValueError(f"Missing required arguments: {missing}")
        with prefixed_errors(f"Error rendering prompt {self.name}"):
            value = await self.signature.call(self.signature.read(given), context or Context())
            items: list[Any] = list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]
            return [_message(each) for each in items]

    def describe(self) -> dict[str, Any]:
        """Return the prompt as listed to clients."""
        members: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "arguments": [to_wire(each) for each in self.arguments] or None,
            "icons": None if self.icons is None else [to_wire(icon) for icon in self.icons],
        }
        return {name: value for name, value in members.items() if value is not None}

    def item(self, server: Any) -> "PromptItem":
        """Return the prompt for the registry of a server."""

        async def run(arguments: dict[str, Any], call: Call) -> list[EngineMessage]:
            with protocol_errors(INVALID_PARAMS):
                messages = await self.render(arguments, Context(server, call))
            return [
                msgspec.convert({"role": each.role, "content": to_wire(each.content)}, EngineMessage)
                for each in messages
            ]

        schema = {"properties": {each.name: {"type": "string"} for each in self.arguments}}
        return PromptItem(self, ItemSource(self.name, run, dict, schema=schema))


class PromptItem(resources.Prompt):
    """A prompt in the registry."""

    def __init__(self, prompt: Prompt, source: ItemSource) -> None:
        super().__init__(source)
        self._described = prompt.describe()


def _message(value: Any) -> Any:
    if isinstance(value, BaseModel) and {"role", "content"} <= set(type(value).model_fields):
        return value
    if isinstance(value, Mapping) and "content" in value:
        value = cast("Mapping[str, Any]", value)
        return (AssistantMessage if value.get("role") == "assistant" else UserMessage)(content=value["content"])
    return UserMessage(content=value if is_content(value) else to_text(value))


__all__ = ["AssistantMessage", "Message", "Prompt", "UserMessage"]
