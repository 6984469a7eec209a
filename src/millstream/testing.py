"""A test client for your server: in memory, with any revision, and with simulated users and models.

``async with connect(mcp, revision=..., elicit=...) as client: await client.call("add", a=1, b=2)``. It's
`millstream.Client` without a network: everything passes through the real encoder, decoder, and dispatcher.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from millstream._app.server import Server
from millstream._override import override
from millstream._protocol.content import Text
from millstream._protocol.notifications import CreateMessageRequestParams, InputRequest, SampleResult
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import BY_DATE, NEWEST
from millstream._suggestions import suggest, suggest_keywords
from millstream._tasks import Tasks
from millstream._transports.connection import MemoryPipe
from millstream.client._client import Client
from millstream.client._errors import ServerError, ToolFailed
from millstream.client._questions import Elicit, Questions
from millstream.client._results import Result
from millstream.client._server_messages import Notification, OnChange, OnLog
from millstream.client._transports import Listener, Options
from millstream.client._transports.memory import MemoryTransport

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher
    from millstream.client._extensions import ClientExtension

__all__ = ["Elicit", "Result", "Sample", "ServerError", "TestClient", "ToolFailed", "connect"]

Sample = Callable[[dict[str, Any]], str | Awaitable[str]]
"""Simulated model: ``sample(params)`` returns its text."""

_WAIT = 30.0
"""Maximum seconds to wait for a response in a test."""


class TestClient(Client):
    """A `Client` that records everything the server sends: ``async with connect(mcp) as client: …``.

    Args:
        server: The server to test.
        more: The keywords of `Client`.
    """

    __test__ = False  # pytest: this isn't a test

    def __init__(self, server: "Server | _TestTarget", **more: Any) -> None:
        super().__init__(server, **more)
        self.notifications: list[dict[str, Any]] = []
        """All notifications from the server, in order."""
        self.questions: list[dict[str, Any]] = []
        """All questions from the server, in order: ``{"method": …, "params": …}``."""
        self.conversation.requests.incoming.observer = self._note
        questions = self.conversation.questions
        assert isinstance(questions, Questions)  # noqa: S101  always true for a `Client`
        questions.observer = self._note_question
        self._progress = _ignore_progress

    def _note(self, notification: Notification) -> None:
        params = msgspec.json.decode(notification.params)
        self.notifications.append({"jsonrpc": "2.0", "method": notification.method, "params": params})

    def _note_question(self, question: InputRequest) -> None:
        self.questions.append({"method": question.method, "params": msgspec.json.decode(question.params)})


def _ignore_progress(value: float, total: float | None, message: str | None) -> None:
    """Ignore progress, whose notification is already recorded."""


class _ReplayPipe(MemoryPipe):
    """A connection whose calls run again after each question, if they may."""

    def __init__(self, dispatcher: "Dispatcher", **more: Any) -> None:
        super().__init__(dispatcher, **more)
        self._parked = dispatcher.services.parked
        self._parked.replaying += 1

    @override
    async def close(self) -> None:
        """Disconnect the client."""
        self._parked.replaying -= 1
        await super().close()


class _TestTarget(msgspec.Struct):
    """A server for a caller who has signed in, as over a network, or whose calls run again."""

    _server: Server
    _principal: Principal | None
    _pipe: type[MemoryPipe]

    def new_transport(self, listener: Listener, background: Tasks) -> MemoryTransport:
        """Return a transport with calls from the principal, with only its scopes."""
        transport = "memory" if self._principal is None else "test"
        pipe = partial(self._pipe, principal=self._principal, transport=transport)
        return MemoryTransport(self._server, listener, background, pipe=pipe)


_ELSEWHERE: dict[str, str] = dict.fromkeys(
    ("auth", "headers", "key", "token", "user", "username"), "Write principal='ada', scopes=['notes:write']."
)


@partial(suggest_keywords, elsewhere=_ELSEWHERE)
def connect(  # noqa: PLR0913  keyword-only settings
    server: Server,
    *,
    revision: str = NEWEST.date,
    elicit: Elicit | None = None,
    sample: Sample | None = None,
    roots: list[str] | None = None,
    replay: Literal["always"] | None = None,
    principal: Principal | str | None = None,
    scopes: Iterable[str] = (),
    timeout: float = _WAIT,
    on_log: OnLog | None = None,
    on_change: OnChange | None = None,
    options: Options | None = None,
    extensions: "Sequence[ClientExtension]" = (),
) -> TestClient:
    """Run a server in memory and connect to it: ``async with connect(mcp) as client: …``.

    The caller is treated as the program that started the server: ``ctx.principal`` is None, and scopes aren't checked.
    With `principal` or `scopes`, the caller has signed in: ``connect(mcp, principal="ada", scopes=["notes:write"])``.

    Args:
        server: Your server.
        revision: Protocol revision to use, as a date.
        elicit: Simulates the user, like the handler of `Client`: ``elicit(question)`` returns the answers as a dict,
            ``"decline"``, or ``"cancel"``. Without it, the client doesn't support forms.
        sample: Simulates the model, as a function or coroutine function. Without it, the client doesn't support
            sampling.
        roots: File URIs. Without them, the client doesn't support roots.
        replay: With ``"always"``, functions that may run again do so after each question, as if their process had been
            lost (2026-07-28). By default, they wait.
        principal: The caller, or its subject. With `scopes` alone, the subject is ``test``.
        scopes: Scopes of a caller given by its subject. A `Principal` has its own.
        timeout: As for `Client`, like all that follow.
        on_log: Handler for log messages.
        on_change: Handler for changes that a handshake-era server reports.
        options: Limits and less common settings.
        extensions: Extensions of MCP.

    Raises:
        TypeError: Scopes were passed with a `Principal`, or as one string.
        ValueError: The revision or `replay` is unknown.
    """
    if revision not in BY_DATE:
        raise ValueError(f"Unknown revision {revision!r}; {suggest(revision, list(BY_DATE))}")
    if replay not in (None, "always"):
        raise ValueError(f"Unknown replay {replay!r}. Write replay='always', or leave it out.")
    if isinstance(scopes, str):
        raise TypeError(f"Write a list of scopes: connect(…, scopes=[{scopes!r}])")
    caller, granted = principal, frozenset(scopes)
    if isinstance(caller, Principal):
        if granted:
            raise TypeError("Write the scopes into the principal: Principal(…, scopes=frozenset([…]))")
    else:
        caller = None if caller is None and not granted else Principal(caller or "test", scopes=granted)

    async def complete(params: CreateMessageRequestParams) -> SampleResult:
        assert sample is not None  # noqa: S101  otherwise, there's no handler
        text = sample(msgspec.to_builtins(params))
        return SampleResult("assistant", Text(await text if inspect.isawaitable(text) else text), "test")

    return TestClient(
        server
        if caller is None and replay is None
        else _TestTarget(server, caller, _ReplayPipe if replay else MemoryPipe),
        revision=revision,
        timeout=timeout,
        elicit=elicit,
        sample=None if sample is None else complete,
        roots=roots,
        on_log=on_log,
        on_change=on_change,
        options=options or Options(name="test", version="1"),
        extensions=extensions,
    )
