"""Models behind OpenAI-compatible APIs and Azure OpenAI, by the official client: the one module that imports it.

Its own retries are off, because whoever waits should hear why. Replies are read leniently: other servers leave out ids,
indexes and counts, and some send arguments in one piece.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict
from urllib.parse import urlsplit

from millstream._protocol.json_schema import is_array, is_object
from millstream.agent._errors import (
    ConfigurationError,
    ModelBroken,
    ModelDenied,
    ModelError,
    ModelLimited,
    ModelRefused,
    ModelUnreachable,
)
from millstream.agent._model import Reply, Request, Wish

if TYPE_CHECKING:
    import openai

_NO_KEY = "none"
"""Sent where an API wants none. Without it the library would send the one of OPENAI_API_KEY to any URL."""
_MESSAGE = 300
"""Characters of an API's own error text that are shown."""
_ESTIMATE = 4
"""Characters of a token, where the API doesn't count."""
_HINT = "Check the URL of the API, which usually ends with /v1."


class OpenAIModel:
    """``OpenAIModel("gpt-4.1", key=…)``.

    Args:
        name: the model, or the deployment at Azure.
        key: of the API; a local server may need none.
        url: of the API, up to and with ``/v1``; by default OpenAI's. At Azure it's the endpoint.
        azure_version: the API version, such as ``2024-10-21``; it says that the API is Azure OpenAI's.
        timeout: seconds until the model must say something.

    Raises:
        ConfigurationError: the package `openai` isn't installed, or the URL isn't one.
    """

    __slots__ = ("_answered", "_azure_version", "_client", "_counts", "_key", "_name", "_official", "_timeout", "url")

    def __init__(
        self, name: str, *, key: str = "", url: str = "", azure_version: str = "", timeout: float = 120.0
    ) -> None:
        if find_spec("openai") is None:
            raise ConfigurationError(
                "The package openai isn't installed. Install it with: pip install 'millstream[agent]'"
            )
        if azure_version and not url:
            raise ConfigurationError("Azure OpenAI needs the endpoint: https://NAME.openai.azure.com")
        self.url: str = (url or "https://api.openai.com/v1").rstrip("/")
        """Of the API."""
        if not _is_url(self.url):
            raise ConfigurationError(f"{url!r} isn't a URL of an API. It looks like https://api.example.com/v1.")
        if not (key.isascii() and key.isprintable()) and key:
            raise ConfigurationError("The API key has characters that a key can't have. Copy it once more.")
        # Configuration
        self._name = name
        self._key = key
        self._azure_version = azure_version
        self._timeout = timeout
        self._official = bool(azure_version) or urlsplit(self.url).hostname == "api.openai.com"
        # Process
        self._client: openai.AsyncOpenAI | None = None
        self._answered = False
        self._counts = True
        """Whether the API may be asked for the number of tokens; some refuse the question."""

    @property
    def name(self) -> str:
        """What the API calls it."""
        return self._name

    async def stream(self, request: Request) -> AsyncGenerator[str | Reply, None]:
        """See `Model.stream`."""
        client = self._client
        if client is None:
            client = self._client = await asyncio.to_thread(self._connect)
        import openai  # noqa: PLC0415  only who asks loads it

        assembly = _Assembly()
        try:
            async with await self._create(client, request) as chunks:
                async for chunk in chunks:
                    text = assembly.add(chunk)
                    if text:
                        yield text
        except openai.APIError as exc:
            raise self._explain(exc, begun=assembly.begun) from exc
        except (ValueError, RecursionError) as exc:
            raise ModelBroken(f"{self.url} sent something that isn't JSON. {_HINT}") from exc
        self._answered = True
        yield self._whole(assembly, request)

    async def _create(self, client: "openai.AsyncOpenAI", request: Request) -> Any:
        import openai  # noqa: PLC0415  only who asks loads it

        create: Any = client.chat.completions.create
        try:
            return await create(**self._arguments(request))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
            if not self._counts or "stream_options" not in str(exc):
                raise
        self._counts = False
        return await create(**self._arguments(request))

    async def close(self) -> None:
        """See `Model.close`."""
        if self._client is not None:
            await self._client.close()

    def _connect(self) -> "openai.AsyncOpenAI":
        """In a thread: the import takes most of a second."""
        import openai  # noqa: PLC0415  only who asks loads it

        key, more = self._key or _NO_KEY, _Options(max_retries=0, timeout=self._timeout)
        if self._azure_version:
            return openai.AsyncAzureOpenAI(
                azure_endpoint=self.url, api_version=self._azure_version, api_key=key, **more
            )
        return openai.AsyncOpenAI(api_key=key, base_url=self.url, **more)

    def _arguments(self, request: Request) -> dict[str, Any]:
        given: dict[str, Any] = {
            "model": self._name,
            "messages": list(request.messages),
            "stream": True,
        }
        if self._counts:
            given["stream_options"] = {"include_usage": True}
        if request.tools:
            given["tools"] = list(request.tools)
        if request.max_tokens:
            # OpenAI's newer models refuse the older name, and other servers don't know the newer one.
            given["max_completion_tokens" if self._official else "max_tokens"] = request.max_tokens
        if request.temperature is not None:
            given["temperature"] = request.temperature
        if request.stop:
            given["stop"] = list(request.stop)
        return given

    def _whole(self, assembly: "_Assembly", request: Request) -> Reply:
        if not assembly.begun:
            raise ModelBroken(f"{self.url} answered, but not as a chat API does. {_HINT}")
        if not assembly.stop:
            raise ModelBroken("The model's answer ended in the middle.", temporary=True)
        wishes = assembly.wishes()
        text = "".join(assembly.text)
        said = len(text) + sum(len(wish.arguments) for wish in wishes)
        asked = sum(len(str(message)) for message in request.messages) + len(str(request.tools))
        return Reply(text, wishes, assembly.stop, assembly.tokens or (asked + said) // _ESTIMATE)

    # Errors

    def _explain(self, exc: "openai.APIError", *, begun: bool) -> ModelError:
        import openai  # noqa: PLC0415  only who asks loads it

        if isinstance(exc, openai.APITimeoutError):
            return ModelBroken(f"The model at {self.url} said nothing in time.", temporary=begun)
        if isinstance(exc, openai.APIConnectionError):
            if begun:
                return ModelBroken("The connection to the model was lost.", temporary=True)
            why = f": {exc.__cause__}" if exc.__cause__ is not None and str(exc.__cause__) else ""
            return ModelUnreachable(
                f"There is no answer from {self.url}{_one_line(why)}. Check the URL of the API and the network.",
                temporary=self._answered,
            )
        if isinstance(exc, openai.APIStatusError):
            return self._explain_status(exc)
        return ModelBroken(f"The model failed: {_message(exc)}", temporary=begun)

    def _explain_status(self, exc: "openai.APIStatusError") -> ModelError:
        status = exc.status_code
        if status in (401, 403):
            if not self._key:
                return ModelDenied(f"{self.url} wants an API key ({status}), and none is set.")
            return ModelDenied(
                f"{self.url} doesn't accept the API key ({status}). Check the key, and that it belongs to this URL."
            )
        if status == 429:
            return self._explain_limit(exc)
        if status == 404:
            return ModelRefused(
                f"{self.url} doesn't know the model {self._name!r}, or isn't a chat API (404: {_message(exc)}). "
                f"Check the model's name. {_HINT}"
            )
        if status >= 500 or status in self._PASSING:
            return ModelBroken(
                f"The model's API failed ({status}: {_message(exc)}).",
                temporary=True,
                retry_after=_retry_after(exc.response.headers),
            )
        return ModelRefused(f"The model refused the request ({status}: {_message(exc)}).")

    _PASSING: ClassVar = (408, 409, 425)

    def _explain_limit(self, exc: "openai.APIStatusError") -> ModelError:
        if exc.code in ("insufficient_quota", "billing_hard_limit_reached"):
            return ModelLimited(f"The account of the API key has no credit left ({_message(exc)}).")
        return ModelLimited(
            f"The model takes no more requests for now (429: {_message(exc)}).",
            temporary=True,
            retry_after=_retry_after(exc.response.headers),
        )


class _Options(TypedDict):
    max_retries: int
    timeout: float


class _Assembly:
    """Puts the pieces of one reply together."""

    __slots__ = ("_wishes", "begun", "stop", "text", "tokens")

    def __init__(self) -> None:
        self.begun = False
        self.text: list[str] = []
        self.stop = ""
        self.tokens = 0
        self._wishes: list[dict[str, Any]] = []

    def add(self, chunk: Any) -> str:
        """Take one piece; gives its text. Members of unexpected types count as missing."""
        usage = getattr(getattr(chunk, "usage", None), "total_tokens", None)
        if isinstance(usage, int):
            self.tokens = usage
        choices: Any = getattr(chunk, "choices", None)
        if not is_array(choices):
            return ""
        self.begun = True  # Azure's first piece, and the one with the usage, have no choice in them
        said = ""
        for choice in choices[:1]:
            self.stop = str(getattr(choice, "finish_reason", None) or self.stop)
            delta = getattr(choice, "delta", None)
            for piece in (getattr(delta, "content", None), getattr(delta, "refusal", None)):
                if isinstance(piece, str):
                    said += _whole_letters(piece)
            calls = getattr(delta, "tool_calls", None)
            for call in calls if is_array(calls) else ():
                if hasattr(call, "function"):
                    self._add_call(call)
        self.text.append(said)
        return said

    def _add_call(self, call: Any) -> None:
        wish = self._wish_for(getattr(call, "index", None), getattr(call, "id", None))
        function = getattr(call, "function", None)
        for key, piece in (
            ("name", getattr(function, "name", None)),
            ("arguments", getattr(function, "arguments", None)),
        ):
            if isinstance(piece, str):
                wish[key] += _whole_letters(piece)

    def _wish_for(self, index: Any, id: Any) -> dict[str, Any]:
        for wish in self._wishes:
            if (index is not None and wish["index"] == index) or (index is None and id and wish["id"] == id):
                wish["id"] = wish["id"] or id
                return wish
        if index is None and not id and self._wishes:
            return self._wishes[-1]
        self._wishes.append({"index": index, "id": id or "", "name": "", "arguments": ""})
        return self._wishes[-1]

    def wishes(self) -> tuple[Wish, ...]:
        """The calls, each with an id of its own."""
        found: list[Wish] = []
        seen: set[str] = set()
        for number, wish in enumerate(self._wishes):
            id = _whole_letters(str(wish["id"]))
            if not id or id in seen:
                id = f"call_{number}_{len(seen)}"
            seen.add(id)
            found.append(Wish(id, wish["name"], wish["arguments"]))
        return tuple(found)


def _message(exc: Any) -> str:
    """What the API says, on one line."""
    body: Any = exc.body
    said: Any = body.get("message") if is_object(body) else None
    if not isinstance(said, str) or not said:
        said = exc.message if body is None or is_object(body) else "no reason given"
    return _one_line(str(said))[:_MESSAGE].rstrip(".")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _whole_letters(text: str) -> str:
    """Text without halves of letters, which JSON can hold, and no other API can be sent."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _retry_after(headers: Any) -> float | None:
    """Seconds, as the API says (RFC 9110 §10.2.3, or in milliseconds, as OpenAI and Azure send it)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < 1e9:
            return seconds
    return _until(headers.get("retry-after", ""))


def _until(date: str) -> float | None:
    """Seconds until a date of HTTP (RFC 9110 §5.6.7); one in the past is now."""
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
