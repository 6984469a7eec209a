"""Approvals and forms: an agent asks its user one question at a time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from millstream._protocol.content import ToolAnnotations
from millstream.client._questions import ElicitAnswer, Question


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


class Person:
    """The callbacks of an `Agent`."""

    def __init__(self, approve: Approve | None, elicit: Elicit | None) -> None:
        self._approve = approve
        self._elicit = elicit
        self._lock = asyncio.Lock()

    @property
    def approves(self) -> bool:
        """Whether there's a callback for approvals."""
        return self._approve is not None

    @property
    def fills_in(self) -> bool:
        """Whether there's a callback for forms."""
        return self._elicit is not None

    async def allows(self, request: Approval) -> bool:
        """Ask for approval. Without a callback, return False."""
        if self._approve is None:
            return False
        async with self._lock:
            answer = self._approve(request)
            return bool(await answer if inspect.isawaitable(answer) else answer)

    async def answer(self, server: str, question: Question) -> ElicitAnswer:
        """Ask the user to fill in a server's form. Without a callback, decline."""
        if self._elicit is None:
            return "decline"
        async with self._lock:
            answer = self._elicit(server, question)
            return await answer if inspect.isawaitable(answer) else answer


def needs_approval(annotations: ToolAnnotations | None) -> bool:
    """Return whether a tool isn't marked as read-only (MCP 2025-11-25, ToolAnnotations).

    The hints come from the server, so connect an agent only to servers that you trust.
    """
    return annotations is None or annotations.read_only_hint is not True
