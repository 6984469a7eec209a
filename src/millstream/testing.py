"""For tests of your server: an in-memory client of any revision, with a person and a model played by you.

``async with connect(mcp, revision=..., elicit=...) as client: await client.call("add", a=1, b=2)``. It's
`millstream.Client` without a network: everything passes through the real encoder, ladder and dispatcher.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from millstream._app.server import Server
from millstream._protocol.content import Text
from millstream._protocol.questions import CreateMessageRequestParams, SampleResult
from millstream._protocol.revisions import BY_DATE, NEWEST
from millstream.client._client import Client
from millstream.client._errors import Failure
from millstream.client._incoming import Notification
from millstream.client._options import Options
from millstream.client._questions import Asked, Question, Questions

__all__ = ["Elicit", "Failure", "Result", "Sample", "TestClient", "connect"]

Elicit = Callable[[str, dict[str, Any]], Any]
"""``elicit(message, schema)`` gives the answers as a dict, ``"decline"`` or ``"cancel"``."""
Sample = Callable[[dict[str, Any]], str]
"""``sample(params)`` gives the model's text."""

_WAIT = 30.0
"""Seconds until a test that waits for an answer fails."""


class Result(Struct, frozen=True):
    """What a tool gave back: ``assert (await client.call("add", a=1, b=2)).text == "3"``."""

    content: list[dict[str, Any]]
    structured: Any | UnsetType = UNSET
    is_error: bool = False
    raw: dict[str, Any] = {}
    """The whole result as on the wire."""

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "\n".join(block["text"] for block in self.content if block["type"] == "text")


class TestClient:
    """One client of one server: ``async with connect(mcp) as client: …``."""

    __test__ = False  # pytest: this isn't a test

    def __init__(self, client: Client) -> None:
        self._client = client
        self.notifications: list[dict[str, Any]] = []
        """Everything the server said unasked, in order."""
        self.questions: list[dict[str, Any]] = []
        """Everything the server asked, in order: ``{"method": …, "params": …}``."""
        client.conversation.incoming.observer = self._note
        questions = client.conversation.questions
        assert isinstance(questions, Questions)  # noqa: S101  a `Client` makes no others
        questions.noted = self._note_question

    def _note(self, notification: Notification) -> None:
        params = msgspec.json.decode(notification.params)
        self.notifications.append({"jsonrpc": "2.0", "method": notification.method, "params": params})

    def _note_question(self, asked: Asked) -> None:
        self.questions.append({"method": asked.method, "params": msgspec.json.decode(asked.params)})

    async def call(self, tool: str, /, **arguments: Any) -> Result:
        """Call a tool: ``(await client.call("add", a=1, b=2)).structured``.

        Raises:
            Failure: the server answered with an error (a tool that fails is a `Result` with `is_error`).
        """
        raw = await self.request("tools/call", {"name": tool, "arguments": arguments}, progress=True)
        return Result(raw["content"], raw.get("structuredContent", UNSET), raw.get("isError", False), raw)

    async def read(self, uri: str) -> list[dict[str, Any]]:
        """The contents of a resource: ``(await client.read("book://1"))[0]["text"]``."""
        contents: list[dict[str, Any]] = (await self.request("resources/read", {"uri": uri}))["contents"]
        return contents

    async def prompt(self, name: str, /, **arguments: str) -> list[dict[str, Any]]:
        """The messages of a prompt: ``await client.prompt("review", isbn="1")``."""
        params = {"name": name, "arguments": arguments}
        messages: list[dict[str, Any]] = (await self.request("prompts/get", params))["messages"]
        return messages

    async def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, progress: bool = False
    ) -> dict[str, Any]:
        """The result of any request, as ``await client.request("tools/list")``.

        It takes as many rounds as it needs; questions are answered on the way.

        Raises:
            Failure: the server answered with an error.
            TimeoutError: it did not answer.
        """
        return await self._client.request(method, params, progress=_pass_over if progress else None)


def _pass_over(value: float, total: float | None, message: str | None) -> None:
    """The notification is kept already."""


@asynccontextmanager
async def connect(
    server: Server,
    *,
    revision: str = NEWEST.date,
    elicit: Elicit | None = None,
    sample: Sample | None = None,
    roots: list[str] | None = None,
) -> AsyncGenerator[TestClient, None]:
    """Run a server in memory and connect to it: ``async with connect(mcp) as client: …``.

    Args:
        server: your server.
        revision: the date of the protocol revision to speak.
        elicit: plays the person; without it the client does not offer forms.
        sample: plays the model; without it the client does not offer sampling.
        roots: file URIs; without them the client does not offer roots.

    Raises:
        KeyError: an unknown revision.
    """

    def fill_in(question: Question) -> Any:
        assert elicit is not None  # noqa: S101  else the client has no handler
        return elicit(question.message, question.requested_schema or {})

    def complete(params: CreateMessageRequestParams) -> SampleResult:
        assert sample is not None  # noqa: S101  else the client has no handler
        return SampleResult("assistant", Text(sample(msgspec.to_builtins(params))), "test")

    client = Client(
        server,
        revision=BY_DATE[revision].date,
        timeout=_WAIT,
        elicit=None if elicit is None else fill_in,
        sample=None if sample is None else complete,
        roots=roots,
        options=Options(name="test", version="1"),
    )
    noted = TestClient(client)
    async with client:
        yield noted
