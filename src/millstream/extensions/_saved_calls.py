"""Calls of tools that an extension takes over: before they run, as data, and while they run."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import BY_DATE
from millstream._protocol.rounds import Rounds, RoundState
from millstream._server.calls.call import DEFERRED, RUNNING, Call, params_of
from millstream._server.calls.context import TaskStart
from millstream._server.dispatch import Dispatcher
from millstream._server.features.tools import TaskRules, Tool


class SavedCall(Struct, frozen=True):
    """A call of a tool as data: any worker can run it with `ServerHost.run_call`."""

    tool: str
    params: bytes
    """JSON: the name, the arguments, and `_meta`."""
    revision: str
    client: ClientInfo
    principal: Principal | None
    transport: str
    owner: str
    """Whose share of the server's capacity it takes."""


class PendingCall:
    """A call of a tool with ``task=``, whose arguments were read, before it runs. See `ServerHost.on_task_call`."""

    __slots__ = ("_call", "_run", "_tool")

    def __init__(self, call: Call, tool: Tool, run: Callable[[Call, Tool], Awaitable[bytes]]) -> None:
        self._call = call
        self._tool = tool
        self._run = run

    @property
    def rules(self) -> TaskRules:
        """The options of the tool."""
        assert self._tool.task is not None  # noqa: S101  no other call is pending
        return self._tool.task

    @property
    def client(self) -> ClientInfo:
        """What the client declared."""
        return self._call.client

    @property
    def principal(self) -> Principal | None:
        """The caller."""
        return self._call.principal

    @property
    def handshake(self) -> bool:
        """Whether the revision of the caller has sessions."""
        return self._call.revision.handshake

    @property
    def state(self) -> RoundState | None:
        """The answers of earlier rounds, for `ServerHost.run_call`."""
        return None if self._call.rounds is None else self._call.rounds.state(0)

    @property
    def responses(self) -> dict[str, bytes]:
        """The answers of this round, as JSON by key."""
        return {key: bytes(answer) for key, answer in (self._call.responses or {}).items()}

    async def run(self) -> bytes | None:
        """Run the call, and return its answer; None if the function called ``ctx.start_task()`` instead."""
        self._call.task = DEFERRED
        try:
            return await self._run(self._call, self._tool)
        except TaskStart:
            return None

    def save(self) -> SavedCall:
        """Return the call as data, without the answers."""
        call, params = self._call, params_of(self._call)
        members = [b'"name":%b' % encode(call.name)]
        if bytes(params.arguments):
            members.append(b'"arguments":%b' % bytes(params.arguments))
        if bytes(params.meta):
            members.append(b'"_meta":%b' % bytes(params.meta))
        return SavedCall(
            self._tool.name, b"{%b}" % b",".join(members), call.revision.date, call.client, call.principal,
            call.transport, call.owner,
        )  # fmt: skip

    def keep_seats(self) -> Callable[[], object]:
        """Keep what the limits gave this call after its end. Return a function that gives it back."""
        release, self._call.release = self._call.release, None
        return release or _nothing


class RunOutcome(Struct, frozen=True):
    """How a run of a saved call ended."""

    result: bytes = b""
    """JSON; empty without a result."""
    error: ProtocolError | None = None
    requests: Mapping[str, bytes] = {}
    """Questions that the function waits for, as JSON by key."""
    state: RoundState | None = None
    """For the next run, with the answers to `requests`."""


class CallRun:
    """One run of a saved call on this worker. Await `outcome`."""

    __slots__ = ("_call", "_dispatcher")

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self._dispatcher = dispatcher
        self._call = call

    async def outcome(self) -> RunOutcome:
        """Run the call in the present task, and return how it ended. A call that was cancelled has no outcome."""
        call, task = self._call, asyncio.current_task()
        assert task is not None  # noqa: S101  it's the one that runs this
        if call.cancelled:  # before its first step
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
            requests = {key: bytes(request) for key, request in _decode_asked(result).requests.items()}
            return RunOutcome(requests=requests, state=call.rounds.state(0))
        return RunOutcome(result)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled or halted."""
        return self._call.cancelled

    @property
    def halted(self) -> bool:
        """Whether it was stopped because this worker stops."""
        return self._call.halted

    def cancel(self) -> None:
        """Stop the function."""
        self._call.cancel()

    def halt(self) -> None:
        """Stop the function because this worker stops."""
        self._call.halt()


def make_run(
    dispatcher: Dispatcher,
    saved: SavedCall,
    id: str,
    state: RoundState | None,
    responses: Mapping[str, bytes],
    report: Callable[[bytes], object],
) -> CallRun:
    """Return a run; see `ServerHost.run_call`."""
    answers = {key: Raw(answer) for key, answer in responses.items()}
    call = Call(
        revision=BY_DATE[saved.revision],
        id=id,
        method="tools/call",
        params=saved.params,
        responses=answers or None,
        rounds=None if state is None else Rounds(state, answers),
        token=id,
        log_level="info",
        client=saved.client,
        principal=saved.principal,
        transport=saved.transport,
        task=RUNNING,
        lasting=True,
    )
    call.line = _ReportLine(report)
    return CallRun(dispatcher, call)


class _ReportLine:
    """The reply channel of a call that no client reads: what the function sends is reported."""

    asks: bool = False

    def __init__(self, report: Callable[[bytes], object]) -> None:
        self._report = report

    async def send(self, message: bytes) -> None:
        """Report a notification."""
        self._report(message)

    def push(self, message: bytes) -> bool:
        """Discard the message: what isn't sent by the function isn't about the call."""
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Return False: there's no connection to close."""
        return False

    async def keep_alive(self) -> None:
        """Do nothing: nobody waits for the reply."""

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Never call back: the channel ends with the call."""
        return _nothing


class LimitReached(Exception):
    """A limit has no seat left. See `ServerHost.take_seats`."""

    def __init__(self, name: str, key: str) -> None:
        super().__init__(f"The limit {name or 'of concurrent calls'} is reached")
        self.name: str = name
        """Of the limit; empty for those of concurrent calls."""
        self.key: str = key


class SeatLimit(Struct, frozen=True):
    """A limit of what may run at a time, on all workers together."""

    name: str
    key: str
    """Whose limit it is, such as `SavedCall.owner`; empty for one of the whole server."""
    most: int


class _Asked(Struct, gc=False):
    requests: dict[str, Raw] = msgspec.field(default={}, name="inputRequests")


_decode_asked = msgspec.json.Decoder(_Asked).decode


def _nothing() -> None:
    pass


Seats = Sequence[Any]
"""What `ServerHost.take_seats` took, for `ServerHost.leave_seats`."""
