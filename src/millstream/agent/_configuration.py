"""The servers of an agent, its questions to the user, and the configuration of models and servers.

Servers have unique names, and are connected and closed together. An agent asks its user one question at a time. The
configuration comes from the environment or a ``.env`` file. The environment takes precedence.

| variable | meaning |
|---|---|
| `API_URL`, `API_KEY` | an OpenAI-compatible API |
| `OPENAI_BASE_URL`, `OPENAI_API_KEY` | the same under OpenAI's names; the URL defaults to OpenAI's |
| `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `OPENAI_API_VERSION` | Azure OpenAI |
| `ANTHROPIC_API_KEY`, `GOOGLE_API_KEY`, … | the provider in the model's name: `anthropic:claude-sonnet-4-5` |
| `DEFAULT_MODEL` | the model, or the Azure deployment |
| `MCP_SERVER_URL`, `MCP_SERVER_AUTH_KEY` | a server, and its key |

A key from the environment is never sent to a URL from the file, because someone else may have written the file.
"""

import asyncio
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct, field

from millstream.agent._events import ConfigurationError
from millstream.agent._model import LanguageModel, provider_of
from millstream.client import Client, ElicitAnswer, Options, Question, Target, TargetError, mcp_servers, parse_url
from millstream.files import EnvFileError, read_env_file
from millstream.protocol import Confidential, NotCopyable


class Approval(Struct, frozen=True, kw_only=True):
    """An action to approve. ``def approve(request: Approval) -> bool: return request.kind == "tool"``"""

    kind: Literal["tool", "sampling"]
    """``tool`` for a tool with possible side effects, ``sampling`` for a server's request to the model."""
    server: str
    tool: str = ""
    description: str = ""
    arguments: Mapping[str, Any] = {}
    upstream: str = ""
    """If the server is a gateway, the name that it gives for the tool's upstream."""
    read_only: bool = False
    """Whether the tool is marked as read-only by a server with untrusted hints."""
    text: str = ""
    """The server's request to the model."""


Approve = Callable[[Approval], bool | Awaitable[bool]]
Elicit = Callable[[str, Question], ElicitAnswer | Awaitable[ElicitAnswer]]
"""Answers forms: ``elicit(server, question)``, with the answers of `Client`."""


class Person(Struct, frozen=True):
    """The callbacks of an `Agent`."""

    approve: Approve | None
    elicit: Elicit | None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the user is asked."""

    async def allows(self, request: Approval) -> bool:
        """Ask for approval. Without a callback, return False."""
        if self.approve is None:
            return False
        async with self.lock:
            answer = self.approve(request)
            return bool(await answer if inspect.isawaitable(answer) else answer)

    async def answer(self, server: str, question: Question) -> ElicitAnswer:
        """Ask the user to fill in a server's form. Without a callback, decline."""
        if self.elicit is None:
            return "decline"
        async with self.lock:
            answer = self.elicit(server, question)
            return await answer if inspect.isawaitable(answer) else answer


_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class ServerConfig(Confidential, Struct, frozen=True):
    """A server and how to reach it: ``ServerConfig(url, headers={"Authorization": "Bearer …"})``."""

    target: Target
    """A target of `Client`."""
    name: str = ""
    """Name for the user and the model. Defaults to the name of the file, host, or program."""
    headers: Mapping[str, str] = {}
    timeout: float = 60.0
    options: Options | None = None
    revision: str | None = None
    trusts_hints: Callable[[str], bool] | None = None
    """Returns whether a tool that's marked as read-only can run without approval: ``lambda tool: tool == "price"``. By
    default, all can, except tools of a gateway's upstreams."""


class ConnectedServer(Struct, NotCopyable, frozen=True, eq=False):
    """A connected server: ``await agent.servers[0].client.tools()``."""

    name: str
    client: Client
    trusts_hints: Callable[[str], bool] | None


Servers = Sequence[Target | ServerConfig] | Mapping[str, Any]
"""A list of targets, targets by name, or a configuration with `mcpServers`."""


def resolve_servers(given: Servers) -> list[ServerConfig]:
    """Return the servers of an `Agent` argument.

    Raises:
        ConfigurationError: A single target was passed instead of a list.
        TargetError: A configuration has no servers.
    """
    if isinstance(given, str | Path):
        raise ConfigurationError(f"`servers` must be a list: servers=[{str(given)!r}].")
    if not isinstance(given, Mapping):
        return [each if isinstance(each, ServerConfig) else ServerConfig(each) for each in given]
    if "mcpServers" in given:
        return [ServerConfig({"mcpServers": {name: entry}}, name) for name, entry in mcp_servers(given).items()]
    return [
        each if isinstance(each, ServerConfig) else ServerConfig(cast("Target", each), name)
        for name, each in given.items()
    ]


async def connect(wanted: Sequence[tuple[ServerConfig, Client]], closing: AsyncExitStack) -> list[ConnectedServer]:
    """Connect to all servers concurrently; `closing` closes every connection.

    Raises:
        ClientError: A server can't be reached.
    """
    for _, client in wanted:
        closing.push_async_exit(client)
    for opened in await asyncio.gather(*(client.__aenter__() for _, client in wanted), return_exceptions=True):
        if isinstance(opened, BaseException):
            raise opened
    found: dict[str, ConnectedServer] = {}
    for place, client in wanted:
        name = place.name or _UNFIT.sub("-", name_of(place.target) or client.server.name).strip("-") or "server"
        number, free = 2, name
        while free in found:
            free, number = f"{name}-{number}", number + 1
        found[free] = ConnectedServer(free, client, place.trusts_hints)
    return list(found.values())


_LAUNCHERS = frozenset(
    {"bun", "bunx", "deno", "docker", "millstream", "node", "npx", "pipx", "python", "python3", "uv", "uvx"}
)


def name_of(target: Target) -> str:
    """Return a name for a target. Its server can't choose the name, because users approve calls by it.

    Empty for a server in this process, which is part of the program.
    """
    if isinstance(target, str) and "://" in target:
        parts = urlsplit(target)
        return parts.netloc.rpartition("@")[2]
    if isinstance(target, str | Path):
        is_file = isinstance(target, Path) or os.path.isfile(target)  # noqa: PTH113  unlike a Path, it accepts any length
        words = [str(target)] if is_file else str(target).split()
    elif isinstance(target, Sequence):
        words = [str(each) for each in cast("Sequence[object]", target)]
    else:
        return ""
    names = [Path(word).name for word in words if not word.startswith("-")]
    found = next((name for name in names if name.lower().removesuffix(".exe") not in _LAUNCHERS), "")
    return Path(found).stem if Path(found).suffix in (".py", ".js", ".mjs", ".cjs") else found


_DEFAULT_SERVER = "http://localhost:8000/sse"


class _Family(Struct, frozen=True):
    """An API's variables."""

    key: str
    url: str
    default: str = ""


_PLAIN = _Family("API_KEY", "API_URL")
_OPENAI = _Family("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1")
_AZURE = _Family("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT")
_SERVER = _Family("MCP_SERVER_AUTH_KEY", "MCP_SERVER_URL", _DEFAULT_SERVER)


class Configuration:
    """The settings of the file and the environment: ``Configuration.load(".env", os.environ).model()``.

    Args:
        file: Variables of the file.
        environment: Variables of the environment, which override those of the file.
        source: Name of the file, for errors.
    """

    def __init__(self, file: Mapping[str, str], environment: Mapping[str, str], source: str = ".env") -> None:
        self._file = file
        self._environment = environment
        self._source = source

    @classmethod
    def load(cls, path: str | Path, environment: Mapping[str, str], *, required: bool = False) -> "Configuration":
        """Read the file, if it exists.

        Args:
            path: Path of the file, with one ``NAME=value`` per line.
            environment: Variables of the environment, which override those of the file.
            required: Whether the file must exist.

        Raises:
            ConfigurationError: The file can't be read, isn't in the form NAME=VALUE, or is missing but required.
        """
        place = Path(path)
        if not required and not place.is_file():
            return cls({}, environment, str(path))
        try:
            return cls(read_env_file(place, str(path)), environment, str(path))
        except EnvFileError as exc:
            raise ConfigurationError(str(exc)) from exc

    def get(self, name: str) -> str:
        """Return a value, or an empty string if it isn't set.

        Args:
            name: Name of the variable.
        """
        return self._environment.get(name) or self._file.get(name, "")

    def model(self, name: str = "", url: str = "") -> LanguageModel:
        """Return the language model to use.

        Args:
            name: Name of the model, instead of DEFAULT_MODEL.
            url: URL of an OpenAI-compatible API, instead of the configured one.

        Raises:
            ConfigurationError: The settings are incomplete.
        """
        chosen = name or self.get("DEFAULT_MODEL") or self.get("OPENAI_MODEL")
        family = self._family()
        if family is not _PLAIN and not url and (provider := provider_of(chosen)):
            return LanguageModel(chosen, key=self.get(f"{provider.upper()}_API_KEY"))
        if family is None and not url:
            raise ConfigurationError(
                "No model is configured. Put API_URL, API_KEY, and DEFAULT_MODEL into .env, or set OPENAI_API_KEY."
            )
        key, found = self._pair(family or _PLAIN, url)
        if not found:
            raise ConfigurationError(f"{(family or _PLAIN).key} is set, but {(family or _PLAIN).url} isn't. Set both.")
        if not chosen:
            raise ConfigurationError("No model is selected. Use --model NAME, or put DEFAULT_MODEL into .env.")
        if family is not _AZURE or url:
            return LanguageModel(chosen, key=key, url=found)
        version = self.get("OPENAI_API_VERSION")
        if not version:
            raise ConfigurationError("Azure OpenAI requires OPENAI_API_VERSION, the date of an API version.")
        return LanguageModel(chosen, key=key, url=found, azure_version=version)

    def _family(self) -> _Family | None:
        """Return the API's variables, from the environment or, if there are none, from the file, which is less
        trusted."""
        for source in (self._environment, self._file):
            for family in (_PLAIN, _OPENAI, _AZURE):
                if source.get(family.key) or source.get(family.url):
                    return family
        return None

    def server(self) -> ServerConfig | None:
        """Return the server of MCP_SERVER_URL, or None if neither it nor its key is set.

        A URL without a path means `/sse`.

        Raises:
            ConfigurationError: The URL is malformed, or the file uses a key of the environment.
        """
        if not self.get(_SERVER.url) and not self.get(_SERVER.key):
            return None
        key, url = self._pair(_SERVER)
        try:
            path = parse_url(url).target.partition("?")[0]
        except TargetError as exc:
            raise ConfigurationError(f"MCP_SERVER_URL isn't a URL: {url!r}. Use one like {_DEFAULT_SERVER}.") from exc
        target = url if path.strip("/") else urlunsplit(urlsplit(url)._replace(path="/sse"))
        return ServerConfig(target, headers=_bearer(key))

    def headers_for(self, url: str) -> dict[str, str]:
        """Return headers with the server's key, or none unless the URL has the origin of MCP_SERVER_URL.

        Args:
            url: URL of a server.
        """
        key, server_url = self._pair(_SERVER)
        return _bearer(key) if _origin(url) == _origin(server_url) else {}

    def _pair(self, family: _Family, url: str = "") -> tuple[str, str]:
        key, found = self.get(family.key), url or self.get(family.url) or family.default
        from_file = not url and not self._environment.get(family.url) and family.url in self._file
        if from_file and self._environment.get(family.key):
            raise ConfigurationError(
                f"{family.url} is set in {self._source}, but {family.key} in the environment. Set both in the same "
                "place, so that the file can't redirect your key."
            )
        return key, found


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _origin(url: str) -> tuple[bool, str, int] | None:
    try:
        found = parse_url(url)
    except TargetError:
        return None
    return found.secure, "localhost" if found.host in ("127.0.0.1", "::1") else found.host, found.port
