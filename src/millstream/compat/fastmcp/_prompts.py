"""Prompts: functions that give messages."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from msgspec import structs

from millstream.compat import _types as types
from millstream.compat._pydantic_parts import BaseModel, to_json
from millstream.compat.fastmcp._conversion import as_wire, is_content
from millstream.compat.fastmcp._functions import OfFunction, call_function, failing, inside
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._signatures import Signature, signature_of
from millstream.compat.fastmcp._ways import SDK, Ways


class Message(BaseModel):
    """One message: ``Message("hello")``, with ``role="assistant"`` where the user does not say it."""

    role: Literal["user", "assistant"] = "user"
    content: Any

    def __init__(self, content: Any, role: Literal["user", "assistant"] | None = None, **more: Any) -> None:
        if isinstance(content, str):
            content = types.TextContent(text=content)
        elif isinstance(content, Mapping):
            content = _block(cast("Mapping[str, Any]", content))
        elif is_content(content) and hasattr(content, "to_content"):
            content = content.to_content()
        elif not is_content(content):
            content = types.TextContent(text=to_json(content, fallback=str).decode())
        super().__init__(content=content, **({} if role is None else {"role": role}), **more)

    def to_mcp_prompt_message(self) -> types.PromptMessage:
        """The message as the protocol has it."""
        return types.PromptMessage(role=self.role, content=self.content)


class UserMessage(Message):
    """What the user says."""


class AssistantMessage(Message):
    """What the model says."""

    role: Literal["user", "assistant"] = "assistant"


def _block(value: Mapping[str, Any]) -> Any:
    return types.PromptMessage.model_validate({"role": "user", "content": dict(value)}).content


class PromptResult:
    """All that a prompt gives: messages, a description, ``_meta``."""

    def __init__(self, messages: Any, description: str | None = None, meta: dict[str, Any] | None = None) -> None:
        items = [Message(messages)] if isinstance(messages, str) else list(messages)
        self.messages: list[Any] = items
        self.description = description
        self.meta = meta


class Prompt(OfFunction):
    """A prompt of a server."""

    def __init__(self, signature: Signature, ways: Ways, **shared: Any) -> None:
        super().__init__(signature, ways, **shared)
        properties = signature.schema.get("properties", {})
        required = set(signature.schema.get("required", ()))
        self.arguments: list[types.PromptArgument] = [
            types.PromptArgument(name=each, description=self._about(properties[each]), required=each in required)
            for each in properties
        ]

    def _about(self, schema: Mapping[str, Any]) -> str | None:
        text: str | None = schema.get("description")
        if self.ways.titles or schema.get("type") == "string":
            return text
        hint = f"Provide as a JSON string matching the following schema: {json.dumps(schema, separators=(',', ':'))}"
        return f"{text}\n\n{hint}" if text else hint

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], name: str | None = None, *, ways: Ways = SDK, **options: Any
    ) -> "Prompt":
        """A prompt of a function.

        Raises:
            InvalidSignature, ValueError: the function cannot be a prompt.
        """
        return cls(signature_of(fn, structs.replace(ways, closed=False), name=name), ways, **options)

    async def render(self, arguments: Mapping[str, Any] | None = None, context: Any = None) -> Any:
        """The messages, or a `PromptResult` with fastmcp's ways. Raises ValueError as `result` does."""
        result = await self.result(arguments, context=context)
        return result.messages if self.ways.pairs else result

    async def result(
        self, arguments: Mapping[str, Any] | None = None, *, context: Any = None, thread: RunInThread | None = None
    ) -> PromptResult:
        """Everything that the function gives.

        Raises:
            ValueError: arguments are missing or wrong, or the function raised.
        """
        given = dict(arguments or {})
        missing = {each.name for each in self.arguments if each.required} - given.keys()
        if missing:
            raise ValueError(f"Missing required arguments: {missing}")
        with inside(context), failing(f"Error rendering prompt {self.name}"):
            value = await call_function(self.signature, self.signature.read(given), thread or asyncio.to_thread)
            return self._result(value)

    def _result(self, value: Any) -> PromptResult:
        if isinstance(value, PromptResult):
            return PromptResult([_message(each, self.ways) for each in value.messages], value.description, value.meta)
        items: list[Any] = list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]
        return PromptResult(
            [_message(each, self.ways) for each in items], meta=self.meta if self.ways.prompt_meta else None
        )

    def to_mcp_prompt(self) -> types.Prompt:
        """The prompt as clients see it."""
        return types.Prompt(
            name=self.name,
            title=self.title,
            description=self.description,
            arguments=[as_wire(each) for each in self.arguments],
            icons=None if self.icons is None else [as_wire(icon) for icon in self.icons],
            _meta=self.meta,
        )


def _message(value: Any, ways: Ways) -> Any:
    if isinstance(value, Message) or (
        isinstance(value, BaseModel) and {"role", "content"} <= set(type(value).model_fields)
    ):
        return value
    if isinstance(value, Mapping) and "content" in value:
        value = cast("Mapping[str, Any]", value)
        if not ways.pairs:
            return Message(value["content"], value.get("role"))
        maker = AssistantMessage if value.get("role") == "assistant" else UserMessage
        return maker(content=value["content"])
    plain = isinstance(value, str) or is_content(value)
    given: Any = cast("object", value) if plain else to_json(value, fallback=str, indent=2).decode()
    return UserMessage(content=given) if ways.pairs else Message(given)
