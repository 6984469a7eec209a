"""The interface between an agent and a model, and the included model: providers of pydantic-ai.

A model takes a request and returns text and then one reply. Messages and tools have the format of OpenAI's chat
completions, which other APIs support as well (https://platform.openai.com/docs/api-reference/chat).

`LanguageModel` uses the model classes of pydantic-ai, which only this module imports. The agent keeps its own
conversation, approvals, and retries, so each round is one direct request to the model
(https://ai.pydantic.dev/direct/).
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from millstream.agent._events import (
    ConfigurationError,
    ContextWindowExceeded,
    ModelAuthError,
    ModelError,
    ModelRateLimited,
    ModelRefused,
    ModelServerError,
    ModelUnreachable,
)
from millstream.protocol import Json, is_object

if TYPE_CHECKING:
    from pydantic_ai import exceptions as failures
    from pydantic_ai import messages as wire
    from pydantic_ai.models import Model as ProviderModel

Message = Json


class ToolCall(Struct, frozen=True):
    """An unchecked tool call by the model: the name may be unknown, and the arguments malformed.

    Example:
        ``for call in reply.tool_calls: print(call.name)``
    """

    id: str
    name: str
    arguments: str


class ModelResponse(Struct, frozen=True):
    """The model's complete output of one round. ``yield ModelResponse(text="Hello")``"""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str = "stop"
    """``stop``, ``length`` (out of tokens), ``content_filter``, or ``tool_calls``."""
    tokens: int = 0
    """Tokens of the prompt and the reply, or 0 if the API doesn't count them."""
    details: Json = {}
    """Thoughts and signatures that some APIs require with the results. The agent keeps them in the message."""


class ModelRequest(Struct, frozen=True, kw_only=True):
    """A request to the model. ``async def stream(self, request: ModelRequest): ...``"""

    messages: Sequence[Message]
    tools: Sequence[Json] = ()
    max_tokens: int = 0
    """Maximum tokens of the reply. 0 leaves it to the model."""
    temperature: float | None = None
    stop: Sequence[str] = ()


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """Name of the model at its API."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | ModelResponse, None]:
        """Yield chunks of the text, then the complete reply.

        Args:
            request: The conversation, the tools, and the limits of the reply.

        Raises:
            ModelError: There's no complete reply. Chunks that were already yielded are invalid.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


_NO_KEY = "none"
"""Placeholder for APIs without a key. Without it, the library would send the key from the environment to any URL."""
_MAX_REASON = 300
"""Maximum characters of an API's error text to show."""
_MAX_SEARCHED = 4000
_TOO_LONG = re.compile(
    # OpenAI and its many relatives, Azure, vLLM, Groq, OpenRouter; llama.cpp; xAI
    r"context[ _](?:length|window|size)|maximum prompt length|reduce the length of the|request too large"
    # Anthropic and Bedrock; Gemini; Mistral; Cohere; LM Studio
    r"|(?:prompt|input) is too long|exceed context limit|input token count|too large for model with|too many tokens:"
    r"|context the overflows",
    re.IGNORECASE,
)
"""Finds the error for a request that's longer than the model's context window."""
_WINDOW = re.compile(
    r"(?:context length (?:is|of|of only)|tokens allowed|context size|maximum prompt length is|Limit|>)[ (]{1,2}"
    r"([\d,]{3,12})|model with ([\d,]{3,12}) maximum"
)
"""Finds the context window in such an error, in tokens."""
_CHARACTERS_PER_TOKEN = 4
"""Estimated characters per token, for APIs that don't count tokens."""
_HINT = "Check the URL of the API, which usually ends with /v1."
PROVIDERS = ("anthropic", "google", "groq", "mistral", "cohere", "bedrock", "openrouter", "xai")
"""Prefixes of model names that select a provider of pydantic-ai."""


class LanguageModel:
    """A model of an OpenAI-compatible API, Azure OpenAI, or another provider (`PROVIDERS`).

    Args:
        name: Name of the model: ``gpt-4.1``, a deployment at Azure, or a provider and its model, such as
            ``anthropic:claude-sonnet-4-5`` or ``google:gemini-2.5-pro``.
        key: API key. A local server may not need one. Defaults to the provider's variable, such as
            ``ANTHROPIC_API_KEY``, for that provider only.
        url: URL of an OpenAI-compatible API, including ``/v1``, or the endpoint at Azure, by default OpenAI's.
        azure_version: API version, such as ``2024-10-21``; selects Azure OpenAI.
        timeout: Seconds to wait for output from the model.

    Raises:
        ConfigurationError: The extra ``agent`` isn't installed, or the URL or key is malformed.

    Example:
        ``LanguageModel("anthropic:claude-sonnet-4-5")``
    """

    def __init__(
        self, name: str, *, key: str = "", url: str = "", azure_version: str = "", timeout: float = 120.0
    ) -> None:
        provider = "" if url else provider_of(name)
        for module, package in (("pydantic_ai", "pydantic-ai-slim"), ("" if provider else "openai", "openai")):
            if module and find_spec(module) is None:
                raise ConfigurationError(
                    f"The package {package} isn't installed. Install it with: pip install 'millstream[agent]'"
                )
        if azure_version and not url:
            raise ConfigurationError("Azure OpenAI requires the endpoint: https://NAME.openai.azure.com")
        if url and not _is_url(url):
            raise ConfigurationError(f"{url!r} isn't the URL of an API. Use one like https://api.example.com/v1.")
        if not (key.isascii() and key.isprintable()) and key:
            raise ConfigurationError("The API key contains invalid characters. Copy it again.")
        self.url: str = provider or (url or "https://api.openai.com/v1").rstrip("/")
        """URL of the API, or name of the provider."""
        self.name: str = name.partition(":")[2] if provider else name
        """Name of the model at its API."""
        self._provider = provider
        self._key = key
        self._azure_version = azure_version
        self._timeout = timeout
        self._model: ProviderModel | None = None
        self._client: Any = None
        self._answered = False

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | ModelResponse, None]:
        """Yield chunks of the text, then the complete reply. See `Model.stream`.

        Args:
            request: The conversation, the tools, and the limits of the reply.

        Raises:
            ModelError: There's no complete reply.
        """
        model = self._model
        if model is None:
            model = self._model = await asyncio.to_thread(self._connect)
        from pydantic_ai import direct, exceptions  # noqa: PLC0415  loaded by the first request

        started = False
        try:
            async with direct.model_request_stream(
                model,
                _messages(request.messages, fills_content=self._client is not None),
                model_settings=self._settings(request),
                model_request_parameters=_parameters(request.tools),
            ) as events:
                async for event in events:
                    started = True
                    if text := _text_of(event):
                        yield _without_surrogates(text)
                self._answered = True
                response = self._reply(events.get(), request, started=started)
        except ModelError:
            raise
        except exceptions.ContentFilterError as exc:
            raise ModelRefused(f"The model refused to answer: {_one_line(str(exc))}.") from exc
        except exceptions.UserError as exc:
            raise ModelAuthError(_one_line(str(exc))) from exc
        except (exceptions.UnexpectedModelBehavior, ValueError, TypeError, AttributeError, RecursionError) as exc:
            # The usual cause is a wrong URL, because the library parses responses strictly.
            raise ModelServerError(f"{self.url} didn't respond like a chat API. {_HINT}") from exc
        except Exception as exc:
            raise self._explain(exc, started=started) from exc
        yield response

    async def close(self) -> None:
        """See `Model.close`."""
        if self._client is not None:
            await self._client.close()

    def _connect(self) -> "ProviderModel":
        """Import the library and create the model. Runs in a thread, because the import takes a second."""
        from pydantic_ai.models import infer_model  # noqa: PLC0415

        if self._provider:
            from pydantic_ai.exceptions import UserError  # noqa: PLC0415
            from pydantic_ai.providers import infer_provider_class  # noqa: PLC0415

            try:
                make: Any = infer_provider_class(self._provider)
                provider = make(api_key=self._key) if self._key else make()
                return infer_model(f"{self._provider}:{self.name}", lambda _: provider)
            except (ImportError, UserError) as exc:
                raise ModelAuthError(_one_line(str(exc))) from exc
        from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient  # noqa: PLC0415
        from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
        from pydantic_ai.profiles.openai import OpenAIModelProfile  # noqa: PLC0415
        from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

        from millstream.agent._reply_limit import limit_reply  # noqa: PLC0415  loads the HTTP client

        key = self._key or _NO_KEY
        # The agent does its own retries, and reports each pause.
        options: Any = {
            "max_retries": 0,
            "timeout": self._timeout,
            "default_headers": {"Accept-Encoding": "identity"},  # `limit_reply` counts bytes as they arrive
            "http_client": DefaultAsyncHttpxClient(event_hooks={"response": [limit_reply]}, timeout=self._timeout),
        }
        if self._azure_version:
            self._client = AsyncAzureOpenAI(
                azure_endpoint=self.url,
                api_version=self._azure_version,
                api_key=key,
                **options,
            )
        else:
            self._client = AsyncOpenAI(api_key=key, base_url=self.url, **options)
        official = self._azure_version or urlsplit(self.url).hostname == "api.openai.com"
        # OpenAI's newer models reject `max_tokens`, and other servers don't support its successor.
        profile = None if official else OpenAIModelProfile(openai_chat_supports_max_completion_tokens=False)
        return OpenAIChatModel(self.name, provider=OpenAIProvider(openai_client=self._client), profile=profile)

    def _settings(self, request: ModelRequest) -> Any:
        settings: Json = {"timeout": self._timeout}
        if request.max_tokens:
            settings["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            settings["temperature"] = request.temperature
        if request.stop:
            settings["stop_sequences"] = list(request.stop)
        return settings

    def _reply(self, response: "wire.ModelResponse", request: ModelRequest, *, started: bool) -> ModelResponse:
        from pydantic_ai.messages import TextPart, ToolCallPart  # noqa: PLC0415

        texts = [part.content for part in response.parts if isinstance(part, TextPart)]
        calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
        details = response.provider_details or {}
        if self._client is not None and not details.keys() & {"finish_reason", "refusal"}:
            # The library treats a truncated stream as complete.
            if not started:
                raise ModelServerError(f"{self.url} didn't respond like a chat API. {_HINT}")
            raise ModelServerError("The model's answer ended early.", temporary=True)
        text = _without_surrogates("".join(texts) or str(details.get("refusal") or ""))
        tool_calls = _tool_calls(calls)
        # After the result of a tool, there may be nothing left to say.
        if (
            not (text.strip() or tool_calls or request.messages[-1]["role"] == "tool")
            and response.finish_reason == "stop"
        ):
            raise ModelServerError("The model's answer is empty.", temporary=True)
        tokens = response.usage.total_tokens
        if not tokens:
            sent = sum(len(str(message)) for message in request.messages) + len(str(request.tools))
            tokens = (sent + len(text) + sum(len(call.arguments) for call in tool_calls)) // _CHARACTERS_PER_TOKEN
        return ModelResponse(text, tool_calls, str(response.finish_reason), tokens, _details(response))

    # Errors

    def _explain(self, exc: Exception, *, started: bool) -> ModelError:
        from pydantic_ai import exceptions  # noqa: PLC0415

        status = exc.status_code if isinstance(exc, exceptions.ModelHTTPError) else 0
        said = f"{getattr(exc, 'body', '')} {exc}"[:_MAX_SEARCHED]
        if status == 413 or (status not in (401, 403, 404) and _TOO_LONG.search(said)):
            found = _WINDOW.search(said)
            window = int((found[1] or found[2]).replace(",", "")) if found else 0
            return ContextWindowExceeded(
                f"The conversation is too long for {self.name}{f', which reads {window:,} tokens' if window else ''} "
                f"({_reason(exc, self._key)}). Start another one, attach less, or use a model with a larger context "
                "window.",
                window=window,
            )
        if isinstance(exc, exceptions.ModelHTTPError) and not started:
            return self._explain_status(exc)
        if isinstance(exc, exceptions.ModelTimeoutError):
            return ModelServerError(
                f"The model at {self.url} didn't respond within {self._timeout:g} seconds.",
                temporary=started,
            )
        lost = ModelServerError("The connection to the model was lost.", temporary=True)
        if not isinstance(exc, exceptions.ModelAPIError):  # raised by a provider's own client while reading the stream
            return lost if started else ModelServerError(f"The model failed: {_short(str(exc), self._key)}.")
        if isinstance(exc, exceptions.ModelConnectionError):
            return lost if started else self._explain_connection(exc)
        if not started and isinstance(exc.__cause__, ValueError):
            return ModelServerError(f"{self.url} sent a response that isn't JSON. {_HINT}")
        return ModelServerError(f"The model failed: {_reason(exc, self._key)}.", temporary=started)

    def _explain_connection(self, exc: Exception) -> ModelError:
        root: BaseException = exc
        while root.__cause__ is not None:
            root = root.__cause__
        why = f": {root}" if root is not exc and str(root) else ""
        return ModelUnreachable(
            f"{self.url} isn't responding{_one_line(why)}. Check the URL of the API and the network.",
            temporary=self._answered,
        )

    def _explain_status(self, exc: "failures.ModelHTTPError") -> ModelError:
        from pydantic_ai import exceptions  # noqa: PLC0415

        status, reason = exc.status_code, _reason(exc, self._key)
        if status in (401, 403):
            if not self._key:
                return ModelAuthError(f"{self.url} requires an API key ({status}), but none is set.")
            return ModelAuthError(
                f"{self.url} rejected the API key ({status}). Check the key, and that it belongs to this URL."
            )
        if isinstance(exc, exceptions.ModelQuotaExceededError):
            return ModelRateLimited(f"The account for this API key has no credit left ({reason}).")
        if status == 429:
            return ModelRateLimited(
                f"The API's rate limit was reached (429: {reason}).", temporary=True, retry_after=exc.retry_after
            )
        if status == 404:
            return ModelRefused(
                f"{self.url} has no model {self.name!r}, or isn't a chat API (404: {reason}). Check the model's name. "
                f"{_HINT}"
            )
        if status >= 500 or status in (408, 409, 425):
            return ModelServerError(
                f"The model's API failed ({status}: {reason}).", temporary=True, retry_after=exc.retry_after
            )
        return ModelRefused(f"The model's API rejected the request ({status}: {reason}).")


def provider_of(name: str) -> str:
    """Return the provider prefix of a model's name, such as ``anthropic``, or empty for OpenAI-compatible APIs."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in PROVIDERS else ""


# Conversion to the library's messages


def _messages(conversation: Sequence[Message], *, fills_content: bool) -> "list[wire.ModelMessage]":
    """Convert a conversation.

    Args:
        conversation: The messages.
        fills_content: Whether the content of a message that only has tool calls is an empty text. Some servers of
            local models reject null.
    """
    from pydantic_ai import messages as wire  # noqa: PLC0415

    found: list[wire.ModelMessage] = []
    names: dict[str, str] = {}
    for message in conversation:
        role, content = message["role"], message.get("content")
        if role == "assistant":
            calls = message.get("tool_calls", ())
            has_text = content or (fills_content and calls)
            details = message.get("details")
            kept: Any = wire.ModelResponse([])
            if details:
                (kept,) = wire.ModelMessagesTypeAdapter.validate_python([details])
            parts: list[wire.ModelResponsePart] = [part for part in kept.parts if isinstance(part, wire.ThinkingPart)]
            if has_text:
                parts.append(wire.TextPart(content or ""))
            before: list[Any] = [part for part in kept.parts if isinstance(part, wire.ToolCallPart)]
            for number, call in enumerate(calls):
                function = call["function"]
                names[call["id"]] = function["name"]
                kept_call = before[number] if number < len(before) else wire.ToolCallPart("")
                sent = {"tool_name": function["name"], "args": function["arguments"], "tool_call_id": call["id"]}
                parts.append(replace(kept_call, **sent))
            found.append(replace(kept, parts=parts))
            continue
        part: wire.ModelRequestPart
        if role == "system":
            part = wire.SystemPromptPart(str(content))
        elif role == "tool":
            call_id = message["tool_call_id"]
            part = wire.ToolReturnPart(names.get(call_id, ""), str(content), call_id)
        else:
            parts_of: Any = content
            part = wire.UserPromptPart(content if isinstance(content, str) else [_content(each) for each in parts_of])
        if found and isinstance(found[-1], wire.ModelRequest):
            found[-1] = wire.ModelRequest([*found[-1].parts, part])
        else:
            found.append(wire.ModelRequest([part]))
    return found


def _content(part: Json) -> "wire.UserContent":
    from pydantic_ai import messages as wire  # noqa: PLC0415

    if part["type"] == "image_url":
        return wire.BinaryContent.from_data_uri(part["image_url"]["url"])
    if part["type"] == "input_audio":
        media = "audio/wav" if part["input_audio"]["format"] == "wav" else "audio/mpeg"
        return wire.BinaryContent.from_data_uri(f"data:{media};base64,{part['input_audio']['data']}")
    return str(part["text"])


def _parameters(tools: Sequence[Json]) -> Any:
    from pydantic_ai.models import ModelRequestParameters  # noqa: PLC0415
    from pydantic_ai.tools import ToolDefinition  # noqa: PLC0415

    return ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=each["function"]["name"],
                description=each["function"].get("description"),
                parameters_json_schema=each["function"]["parameters"],
            )
            for each in tools
        ]
    )


# Conversion from the library's messages


def _details(response: "wire.ModelResponse") -> Json:
    """Return the parts of a reply that its text and calls don't contain, or nothing."""
    from pydantic_ai import messages as wire  # noqa: PLC0415

    # Thoughts in tags are text that the model's template removes.
    thoughts = [
        replace(part, content=_without_surrogates(part.content))
        for part in response.parts
        if isinstance(part, wire.ThinkingPart) and part.id != "content"
    ]
    calls = [replace(part, args=None) for part in response.parts if isinstance(part, wire.ToolCallPart)]
    if not calls or not (thoughts or any(part.provider_details for part in calls)):
        return {}
    kept = replace(response, parts=[*thoughts, *calls])
    (found,) = wire.ModelMessagesTypeAdapter.dump_python([kept], mode="json")
    return dict(found)


def _text_of(event: Any) -> str:
    from pydantic_ai import messages as wire  # noqa: PLC0415

    if isinstance(event, wire.PartStartEvent) and isinstance(event.part, wire.TextPart):
        return event.part.content
    if isinstance(event, wire.PartDeltaEvent) and isinstance(event.delta, wire.TextPartDelta):
        return event.delta.content_delta
    return ""


def _tool_calls(parts: "Sequence[wire.ToolCallPart]") -> tuple[ToolCall, ...]:
    """Return the tool calls, each with a unique id."""
    found: list[ToolCall] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        id = _without_surrogates(part.tool_call_id)
        if not id or id in seen:
            id = f"call_{number}_{len(seen)}"
        seen.add(id)
        arguments = part.args if isinstance(part.args, str) else json.dumps(part.args) if part.args else ""
        found.append(ToolCall(id, _without_surrogates(part.tool_name), _without_surrogates(arguments)))
    return tuple(found)


def _reason(exc: Any, key: str) -> str:
    """Return the API's error text on one line, without the API key."""
    body: Any = getattr(exc, "body", None)
    text: Any = body.get("message") if is_object(body) else None
    if not isinstance(text, str) or not text:
        text = (
            body
            if isinstance(body, str) and body
            else exc.message
            if body is None or is_object(body)
            else "no reason given"
        )
    return _short(str(text), key)


def _short(text: str, key: str) -> str:
    return _one_line(text.replace(key, "[redacted]") if key else text)[:_MAX_REASON].rstrip(".")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port isn't a number
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which are valid in JSON but not in UTF-8."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
