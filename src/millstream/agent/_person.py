"""The person beside an agent: says whether something may happen, and fills in forms. One question at a time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from millstream._protocol.content import ToolAnnotations
from millstream.client._questions import Answered, Question


class Approval(Struct, frozen=True, kw_only=True):
    """What the person is asked to allow. ``def approve(request: Approval) -> bool: return request.kind == "tool"``"""

    kind: Literal["tool", "sampling"]
    """A tool that may change something, or a server that wants to use the model."""
    server: str
    tool: str = ""
    description: str = ""
    arguments: Mapping[str, Any] = {}
    text: str = ""
    """What the server wants to ask the model."""


Approve = Callable[[Approval], bool | Awaitable[bool]]
Elicit = Callable[[str, Question], Answered | Awaitable[Answered]]
"""``elicit(server, question)``; the answers are those of `Client`."""


class Person:
    """Made by `Agent`."""

    __slots__ = ("_approve", "_elicit", "_lock")

    def __init__(self, approve: Approve | None, elicit: Elicit | None) -> None:
        self._approve = approve
        self._elicit = elicit
        self._lock = asyncio.Lock()

    @property
    def approves(self) -> bool:
        """Whether there's somebody to ask."""
        return self._approve is not None

    @property
    def fills_in(self) -> bool:
        """Whether forms can be answered."""
        return self._elicit is not None

    async def allows(self, request: Approval) -> bool:
        """Ask; without anybody to ask the answer is no."""
        if self._approve is None:
            return False
        async with self._lock:
            given = self._approve(request)
            return bool(await given if inspect.isawaitable(given) else given)

    async def answer(self, server: str, question: Question) -> Answered:
        """Fill in a form of a server."""
        if self._elicit is None:
            return "decline"
        async with self._lock:
            given = self._elicit(server, question)
            return await given if inspect.isawaitable(given) else given


def needs_approval(annotations: ToolAnnotations | None) -> bool:
    """Whether a tool may change or destroy something: without a hint it may (MCP 2025-11-25, ToolAnnotations).

    The hints are the server's word. Don't connect an agent to a server that you don't trust.
    """
    if annotations is None:
        return True
    return annotations.read_only_hint is not True and annotations.destructive_hint is not False
