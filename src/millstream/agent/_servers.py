"""The servers of an agent, and the callbacks that ask its user for approvals and answers to forms.

Servers have unique names, and are connected and closed together. An agent asks its user one question at a time.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from msgspec import Struct, field

from millstream.agent._events import ConfigurationError
from millstream.client import Client, ElicitAnswer, Options, Question, Target, mcp_servers


class Approval(Struct, frozen=True, kw_only=True):
    """An action to approve. ``def approve(request: Approval) -> bool: return request.kind == "tool"``"""

    kind: Literal["tool", "sampling"]
    """``tool`` for a tool with possible side effects, ``sampling`` for a server's request to the model."""
    server: str
    tool: str = ""
    description: str = ""
    arguments: Mapping[str, Any] = {}
    upstream: str = ""
    """If the server is a gateway, the name of the upstream that it says the tool comes from."""
    read_only: bool = False
    """Whether the tool is marked as read-only, by a server whose hints aren't trusted."""
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


class ServerConfig(Struct, frozen=True):
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
    """Returns whether a tool that's marked as read-only may run without approval: ``lambda tool: tool == "price"``. By
    default, all may, except those of a gateway's upstreams."""


class ConnectedServer(Struct, frozen=True, eq=False):
    """A connected server."""

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
    """Connect to all servers at once; `closing` closes every connection.

    Raises:
        ClientError: A server can't be reached.
    """
    for _, client in wanted:
        closing.push_async_exit(client)
    for opened in await asyncio.gather(*(client.__aenter__() for _, client in wanted), return_exceptions=True):
        if isinstance(opened, BaseException):
            raise opened
    found: list[ConnectedServer] = []
    for place, client in wanted:
        name = place.name or _UNFIT.sub("-", name_of(place.target) or client.server.name).strip("-") or "server"
        taken = {each.name for each in found}
        number = 2
        free = name
        while free in taken:
            free, number = f"{name}-{number}", number + 1
        found.append(ConnectedServer(free, client, place.trusts_hints))
    return found


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
        words = [str(target)] if Path(target).suffix else str(target).split()
    elif isinstance(target, Sequence):
        words = [str(each) for each in cast("Sequence[object]", target)]
    else:
        return ""
    names = [Path(word).name for word in words if not word.startswith("-")]
    found = next((name for name in names if name.lower().removesuffix(".exe") not in _LAUNCHERS), "")
    return Path(found).stem if Path(found).suffix in (".py", ".js", ".mjs", ".cjs") else found
