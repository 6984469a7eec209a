"""`Context`: the call as a tool, resource or prompt function sees it, the same on every revision and transport."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import msgspec

from millstream._protocol.content import Message
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode, notification_message
from millstream._protocol.metadata import LOG_LEVELS, LogLevel
from millstream._protocol.notifications import LoggingMessageNotificationParams, ProgressNotificationParams
from millstream._protocol.principal import Publisher
from millstream._protocol.questions import Root, SampleResult
from millstream._protocol.rounds import Rounds, binding, open_state
from millstream._protocol.session_token import hash_principal
from millstream._server.calls.call import DEFERRED, Call, CallInfo, CallProgress, params_of
from millstream._server.calls.client_questions import ask_by_request, ask_by_round
from millstream._server.questions.questions import Elicit, ElicitUrl, Question, Roots, Sample

if TYPE_CHECKING:
    from millstream._server.calls.session_state import SessionState

T = TypeVar("T")

_NO_LEVEL = len(LOG_LEVELS)
OWN_STEP = 1e-6
"""Progress that a silent call reports on its own."""


class TaskStart(BaseException):
    """Stops the function: it runs again as a task. Not an `Exception`, so that user code lets it pass."""


class Context(CallInfo):
    """The current call. Add a parameter annotated ``Context`` to a function and it is passed in: ``ctx: Context``."""

    __slots__ = ()

    @property
    def hub(self) -> Publisher:
        """The hub of this server: ``await ctx.hub.publish("news", {"n": 1})``.

        Raises:
            LocalError: the server serves no hub.
        """
        if self._services.hub is None:
            raise LocalError("This server has no hub: pass serve=('hub',) to Server.")
        return self._services.hub

    @property
    def session_state(self) -> "SessionState | None":
        """Values that this session keeps from call to call, on every worker; None where `session` is None.

        Example:
            ``count = await ctx.session_state.update("calls", lambda n: n + 1, 0)``
        """
        session = self._call.session
        if session is None:
            return None
        from millstream._server.calls.session_state import SessionState  # noqa: PLC0415  few functions keep something

        return SessionState(self._services.records, session)

    async def read_resource(self, uri: str) -> Any:
        """What the function of one of this server's resources gives: ``await ctx.read_resource("docs://a.md")``.

        The URI is the one that clients use. The function runs as a part of this call, for the same caller.

        Raises:
            ProtocolError: there is no such resource, or the caller lacks its scopes.
        """
        return await self._services.read_resource(uri, self._call)

    # Towards the caller

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, where the caller asked for it: ``await ctx.progress(3, total=10, message="Reading")``.

        Values that do not increase, or that JSON cannot say (infinity, NaN), are not sent.
        """
        call = self._call
        if (call.token is None and call.tee is None) or call.over:
            return
        told = call.progress = call.progress or CallProgress()
        if not isfinite(progress) or (told.reported is not None and progress <= told.reported):
            return
        if total is not None and not isfinite(total):
            total = None
        told.reported = progress
        await send_progress(call, max(progress, told.value + OWN_STEP) if told.nudged else progress, total, message)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """`progress`, under the name that other packages use: ``await ctx.report_progress(3, 10)``."""
        await self.progress(progress, total, message)

    async def log(self, level: LogLevel, data: Any, logger: str | None = None) -> None:
        """Send a log message, where the caller wants such messages: ``await ctx.log("notice", {"free": 3})``.

        Args:
            level: debug, info, notice, warning, error, critical, alert or emergency.
            data: any value that JSON can hold.

        Raises:
            ValueError: an unknown level.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"Unknown log level {level!r}: use one of {', '.join(LOG_LEVELS)}.")
        severity = LOG_LEVELS.index(level)
        if severity < await self._least_level():
            return
        params = LoggingMessageNotificationParams(level, data, logger)
        await self._call.send_to_caller(notification_message("notifications/message", params))

    async def _least_level(self) -> int:
        call = self._call
        if call.revision.log_level_per_request:
            return LOG_LEVELS.index(call.log_level) if call.log_level else _NO_LEVEL
        usual = self._services.settings.client_log_level
        if call.session is None:
            return LOG_LEVELS.index(usual)
        record = await self._services.records.get(call.session)
        return LOG_LEVELS.index(record.log_level or usual)

    async def debug(self, data: Any) -> None:
        """`log` at level debug: ``await ctx.debug("The cache is empty")``."""
        await self.log("debug", data)

    async def info(self, data: Any) -> None:
        """`log` at level info: ``await ctx.info("12 books found")``."""
        await self.log("info", data)

    async def warning(self, data: Any) -> None:
        """`log` at level warning: ``await ctx.warning("The disk is almost full")``."""
        await self.log("warning", data)

    async def error(self, data: Any) -> None:
        """`log` at level error: ``await ctx.error("The printer is gone")``."""
        await self.log("error", data)

    async def notify(self, method: str, params: Any = None) -> None:
        """Send a notification of your own to the caller, before the result: ``await ctx.notify("com.example/sold")``.

        Only clients that know the method do something with it; see ``ctx.client.extensions``. Callers without a
        stream of messages, such as those of REST, don't get it.

        Args:
            method: of an extension, such as ``com.example/sold``.
            params: an object, as a mapping or Struct.
        """
        await self._call.send_to_caller(notification_message(method, params))

    async def close_stream(self, retry_ms: int | None = None) -> bool:
        """Drop the connection but not the call: the client comes back for the rest (2025-11-25, in a session).

        Returns:
            False where the client could not come back; nothing happens then.
        """
        return await self._call.open_line().interrupt(retry_ms)

    async def start_task(self) -> None:
        """Make a task of a call of ``@mcp.tool(defer_task=True)``: ``await ctx.start_task()``. Not for every client.

        The function stops here and runs again from its start as the task, with the answers that it has: the caller
        answers what it asks before within the call, and what it asks later through the task.
        """
        if self._call.task == DEFERRED:
            raise TaskStart

    # Questions

    @overload
    async def elicit(self, message: str, answer: type[T], *, key: str | None = None) -> T: ...
    @overload
    async def elicit(self, message: str, answer: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]: ...
    async def elicit(self, message: str, answer: Any, *, key: str | None = None) -> Any:
        """Ask the person for a value of a type, or of a flat schema: ``await ctx.elicit("Where to?", Address)``.

        On 2026-07-28 the function stops here and runs again from its start with the answer: do what has effects
        after the last question, or inside `once`.

        Raises:
            Declined: the person said no.
            Cancelled: the person dismissed the question.
        """
        return await self._ask_one(Elicit(message, answer), key)

    async def elicit_url(self, message: str, url: str, *, id: str = "", key: str | None = None) -> None:
        """Ask the person to open a URL: ``await ctx.elicit_url("Please pay", url)``. Raises as `elicit` does."""
        await self._ask_one(ElicitUrl(message, url, id), key)

    async def sample(
        self,
        messages: str | Message | Sequence[Message | str],
        *,
        max_tokens: int = 1024,
        system: str | None = None,
        temperature: float | None = None,
        stop_sequences: Sequence[str] | None = None,
        preferences: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> SampleResult:
        """Let the client's model continue a conversation: ``(await ctx.sample("Say hello")).content``.

        Raises:
            ValueError: tool uses and tool results of the conversation do not balance.
        """
        question = Sample(
            messages, max_tokens, system, temperature, stop_sequences, preferences, tools, tool_choice
        )  # fmt: skip
        result: SampleResult = await self._ask_one(question, key)
        return result

    async def roots(self, *, key: str | None = None) -> list[Root]:
        """The folders that the person opened in the client: ``[root.uri for root in await ctx.roots()]``."""
        roots: list[Root] = await self._ask_one(Roots(), key)
        return roots

    async def ask(self, **questions: Question) -> dict[str, Any]:
        """Several questions in one round; the keywords are their keys.

        Example:
            ``answers = await ctx.ask(where=Elicit("Where to?", Address), folders=Roots())``
        """
        if self._call.revision.handshake:
            return {name: await self._by_request(question) for name, question in questions.items()}
        return ask_by_round(
            self._call, self._rounds(), {name: (name, question) for name, question in questions.items()}
        )

    async def _ask_one(self, question: Question, key: str | None) -> Any:
        if self._call.revision.handshake:
            return await self._by_request(question)
        return ask_by_round(self._call, self._rounds(), {"": (key, question)})[""]

    async def _by_request(self, question: Question) -> Any:
        return await ask_by_request(self._call, question, self._services.questions)

    def _rounds(self) -> Rounds:
        call = self._call
        rounds = call.rounds
        if rounds is None:
            rounds = call.rounds = Rounds(None, call.responses or {})
        return rounds

    # Side effects

    async def once(self, key: str, function: Callable[[], Awaitable[T] | T], *, store: bool = False) -> T:
        """Run an effect once across the rounds of a call: ``await ctx.once("order", buy)``. Its value is JSON.

        Args:
            store: also hold when a round is sent twice, or to two workers at once: whoever comes second waits for the
                value of the first. When the first one's worker dies, the next copy runs the effect again. A copy of
                the first round, which carries no state yet, is another call.
        """
        slot = f"once:{key}"
        if self._call.revision.handshake:
            if slot not in self._memo:
                self._memo[slot] = await _value(function)
            return cast("T", self._memo[slot])
        rounds = self._rounds()
        raw = rounds.find_settled(slot, "once")
        if raw is None:

            async def run() -> bytes:
                return encode(await _value(function))

            raw = await self._once_stored(slot, run) if store and self._call.state else await run()
        rounds.settle(slot, "once", raw)
        return cast("T", msgspec.json.decode(raw))

    async def _once_stored(self, slot: str, run: Callable[[], Awaitable[bytes]]) -> bytes:
        from millstream._server.calls.one_time_effects import once_stored  # noqa: PLC0415  few effects are stored

        return await once_stored(self._services, f"{slot}:{_state_id(self._call)}", run)


def shared_context(call: Call, home: object) -> Context:
    """A context whose state others of the same call see, too."""
    if call.shared is None:
        call.shared = {}
    return Context(call, home)


async def _value(function: Callable[[], Any]) -> Any:
    value = function()
    return await value if inspect.isawaitable(value) else value


def _state_id(call: Call) -> str:
    """The round that a call continues: its state is sealed again for every round of every call."""
    return sha256(call.state.encode()).hexdigest()


def open_rounds(call: Call) -> None:
    """Verify the state that a call carries, before anything runs for it.

    Raises:
        ProtocolError: INVALID_PARAMS for a state that was changed, is another call's, or has expired.
    """
    services = call.services
    now = int(services.clock() - services.leeway)
    state = open_state(call.state, services.ring, call_binding(call), now)
    call.rounds = Rounds(state, call.responses or {})


def call_binding(call: Call) -> bytes:
    """What the state of a call is bound to: principal, method, name, and the arguments as they came."""
    if not call.bound:
        call.bound = binding(hash_principal(call.principal), call.method, call.name, bytes(params_of(call).arguments))
    return call.bound


async def send_progress(call: Call, progress: float, total: float | None, message: str | None) -> None:
    """One progress notification on the call's line."""
    if call.over:
        return
    told = call.progress = call.progress or CallProgress()
    told.value, told.total = progress, total
    token = call.id if call.token is None else call.token
    params = ProgressNotificationParams(token, progress, total, message if call.revision.progress_message else None)
    notification = notification_message("notifications/progress", params)
    if call.token is not None:
        await call.send_to_caller(notification)
    if call.tee is not None:
        await call.tee(notification)


async def nudge_progress(call: Call) -> None:
    """Tell a caller that wants progress that a silent call is alive: a step smaller than any tool reports."""
    told = call.progress = call.progress or CallProgress()
    value = told.value + OWN_STEP
    if told.total is None or value < told.total:
        told.nudged = True
        await send_progress(call, value, told.total, None)
