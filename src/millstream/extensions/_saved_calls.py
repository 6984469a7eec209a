"""Tool calls that an extension manages: pending, saved as data, and running."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream._override import override
from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import decoder, encode
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal
from millstream._protocol.rounds import RoundState
from millstream._server.calls.call import DEFERRED, Call, params_of
from millstream._server.calls.context import TaskStart
from millstream._server.dispatch import Dispatcher
from millstream._server.features.tools import TaskRules, Tool
from millstream._transports.open_streams import NullReplyChannel


class SavedCall(Struct, frozen=True):
    """A tool call as data. Any worker can run it with `ServerHost.run_call`."""

    tool: str
    params: bytes
    """JSON of the name, the arguments, and `_meta`."""
    revision: str
    client: ClientInfo
    principal: Principal | None
    transport: str
    owner: str
    """Owner that the call counts against in the server's limits."""


class PendingCall(Struct, eq=False):
    """A call of a tool with ``task=`` that has been validated but not started. See `ServerHost.on_task_call`."""

    _call: Call
    _tool: Tool
    _run_tool: Callable[[Call, Tool], Awaitable[bytes]]

    @property
    def rules(self) -> TaskRules:
        """The options of the tool."""
        assert self._tool.task is not None  # noqa: S101  only calls of such tools are pending
        return self._tool.task

    @property
    def client(self) -> ClientInfo:
        """Capabilities that the client declared."""
        return self._call.client

    @property
    def principal(self) -> Principal | None:
        """The caller."""
        return self._call.principal

    @property
    def handshake(self) -> bool:
        """Whether the caller's revision has sessions."""
        return self._call.revision.handshake

    @property
    def state(self) -> RoundState | None:
        """Answers of earlier rounds, for `ServerHost.run_call`."""
        return None if self._call.rounds is None else self._call.rounds.state(0)

    @property
    def responses(self) -> dict[str, bytes]:
        """Answers of this round, as JSON by key."""
        return {key: bytes(answer) for key, answer in (self._call.responses or {}).items()}

    async def run(self) -> bytes | None:
        """Run the call and return its result; None if the function called ``ctx.start_task()``."""
        self._call.task = DEFERRED
        try:
            return await self._run_tool(self._call, self._tool)
        except TaskStart:
            return None

    def save(self) -> SavedCall:
        """Return the call as data, without the client's answers."""
        call, params = self._call, params_of(self._call)
        members = {"name": call.name, "arguments": params.arguments, "_meta": params.meta}
        return SavedCall(
            self._tool.name,
            encode({name: value for name, value in members.items() if value}),
            call.revision.date,
            call.client,
            call.principal,
            call.transport,
            call.owner,
        )

    def keep_seats(self) -> Callable[[], object]:
        """Keep the seats of this call after it ends. Return a function that releases them."""
        release, self._call.release = self._call.release, None
        return release or (lambda: None)


class RunOutcome(Struct, frozen=True):
    """How a run of a saved call ended."""

    result: bytes = b""
    """JSON; empty without a result."""
    error: ProtocolError | None = None
    requests: Mapping[str, bytes] = {}
    """Open questions of the function, as JSON by key."""
    state: RoundState | None = None
    """State for the next run, which also needs the answers to `requests`."""


class CallRun(Struct, eq=False):
    """One run of a saved call on this worker. Await `outcome`."""

    _dispatcher: Dispatcher
    _call: Call

    async def outcome(self) -> RunOutcome:
        """Run the call in the current task and return its outcome. A canceled call has none."""
        call, task = self._call, asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        if call.cancelled:  # canceled before its first step
            return RunOutcome()
        call.stop = task.cancel
        try:
            outcome = await self._dispatcher.outcome(call)
        finally:
            call.stop = None
        if outcome.error is not None:
            return RunOutcome(error=outcome.error)
        result = outcome.result
        if result.startswith(b'{"resultType":"input_required"') and call.rounds is not None:
            requests = {key: bytes(request) for key, request in _decode_questions(result).requests.items()}
            return RunOutcome(requests=requests, state=call.rounds.state(0))
        return RunOutcome(result)

    @property
    def cancelled(self) -> bool:
        """Whether the run was canceled or halted."""
        return self._call.cancelled

    @property
    def halted(self) -> bool:
        """Whether the run was stopped because this worker is stopping."""
        return self._call.halted

    def cancel(self) -> None:
        """Stop the function."""
        self._call.cancel()

    def stop_for_shutdown(self) -> None:
        """Stop the function because this worker is stopping."""
        self._call.halt()


class ReportChannel(NullReplyChannel):
    """The reply channel of a call without a client. It passes the function's notifications to `report`."""

    def __init__(self, report: Callable[[bytes], object]) -> None:
        self._report = report

    @override
    async def send(self, message: bytes) -> None:
        self._report(message)


class LimitReached(Exception):
    """A limit has no free seat. See `ServerHost.acquire_slots`.

    Args:
        name: Name of the limit.
        key: Whose seats are taken.
    """

    def __init__(self, name: str, key: str) -> None:
        super().__init__(f"The limit {name or 'of concurrent calls'} is reached")
        self.name: str = name
        """Name of the limit; empty for limits of concurrent calls."""
        self.key: str = key


class SeatLimit(Struct, frozen=True):
    """A limit on concurrent work across all workers."""

    name: str
    key: str
    """Owner of the limit, such as `SavedCall.owner`; empty for a limit of the whole server."""
    most: int


class _RoundAnswers(Struct, gc=False):
    requests: dict[str, Raw] = msgspec.field(default={}, name="inputRequests")


_decode_questions = decoder(_RoundAnswers)


Seats = Sequence[Any]
"""Seats taken by `ServerHost.acquire_slots`, to release with `ServerHost.release_slots`."""
