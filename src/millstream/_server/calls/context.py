"""`Context`: a function's view of its call, whatever its revision and transport."""

import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial, wraps
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, cast, overload

import msgspec

from millstream._copies import NotCopyable
from millstream._override import override
from millstream._protocol.errors import LocalError, ToolError
from millstream._protocol.jsonrpc import Json, encode, notification_message
from millstream._protocol.metadata import LOG_LEVELS, LogLevel
from millstream._protocol.notifications import (
    KEEP_ALIVE,
    LoggingMessageNotificationParams,
    ProgressNotificationParams,
    Root,
    SampleResult,
)
from millstream._protocol.seal import Rounds, binding_hash, hash_principal, open_state
from millstream._server.calls.call import OWN_STEP, Call, CallInfo, CallProgress, params_of
from millstream._server.calls.questions import (
    Elicit,
    ElicitUrl,
    Messages,
    Question,
    Roots,
    Sample,
    ask_by_request,
    ask_in_rounds,
    pause_deadline,
)
from millstream._server.calls.services import ProviderToken, Publisher, principal_id
from millstream._server.calls.session_state import SessionState, StoredState, UserState, once_stored
from millstream._stores.rates import share_for
from millstream._suggestions import refuse_unknown

T = TypeVar("T")
P = ParamSpec("P")

_NO_LEVEL = len(LOG_LEVELS)


class _OpenQuestion(Coroutine[Any, Any, T], Generic[T]):
    """A question that must be awaited. Using it in place of the answer raises an error, instead of counting as
    consent."""

    __slots__ = ("_coroutine", "_message")

    def __init__(self, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        caller = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  as `logging` finds its caller
        self._coroutine = coroutine
        place = f"line {caller.f_lineno} of {Path(caller.f_code.co_filename).name}"
        self._message = f"ctx.{name}(…) isn't awaited in {place}. Write: await ctx.{name}(…)"

    @override
    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    @override
    def send(self, value: Any, /) -> Any:
        return self._coroutine.send(value)

    @override
    def throw(self, *exc: Any) -> Any:
        return self._coroutine.throw(*exc)

    @override
    def close(self) -> None:
        self._coroutine.close()

    def _refuse(self, *_: object) -> NoReturn:
        self._coroutine.close()
        raise TypeError(self._message)

    def __bool__(self) -> bool:
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        if caller.f_globals["__name__"] != "asyncio.base_tasks":  # `asyncio` shows tasks, since Python 3.12
            self._refuse()
        return True

    __str__ = __format__ = __getitem__ = __iter__ = __eq__ = __len__ = __contains__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __mod__ = __rmod__ = _refuse
    __int__ = __float__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("_", "cr_", "gi_")):  # asyncio reads these to show a task
            self._refuse()
        return getattr(self._coroutine, name)


_OPTIONS_ELSEWHERE = {
    **dict.fromkeys(
        ("response_type", "schema"), "Write the type after the text, as in `ctx.elicit('Where to?', str)`."
    ),
    "model_preferences": "Write preferences=…",
    "result_type": "Ask for JSON, and decode `answer.text`.",
    "system_prompt": "Write system=…",
}
"""Options of other packages, with their replacements here."""


def _question(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    @wraps(method)
    def ask(*args: P.args, **options: P.kwargs) -> Coroutine[Any, Any, T]:
        try:
            return _OpenQuestion(method(*args, **options), method.__name__)
        except TypeError:
            known = inspect.signature(method).parameters
            refuse_unknown(f"ctx.{method.__name__}", options, known, _OPTIONS_ELSEWHERE)
            raise

    return ask


class Context(CallInfo, NotCopyable):
    """The current call. A function receives it in a parameter annotated with ``Context``: ``ctx: Context``."""

    _COPY_ADVICE = "Pass on what you read from it, such as the request id."

    __slots__ = ()

    @property
    def hub(self) -> Publisher:
        """The hub of this server: ``await ctx.hub.publish("news", {"n": 1})``.

        Raises:
            LocalError: The server has no hub.
        """
        if self._services.hub is None:
            raise LocalError('This server has no hub. Write Server(…, serve="hub"), or run it with --serve hub.')
        return self._services.hub

    @property
    def session_state(self) -> StoredState:
        """Values stored for this session, which workers with one store share. Falsy if `session` is None.

        Example:
            ``count = await ctx.session_state.update("calls", lambda n: n + 1, 0)``
        """
        return SessionState(self._services.records, self._call.session)

    @property
    def user_state(self) -> StoredState:
        """Values stored for the user who has signed in, which the user's sessions and programs share. Falsy without
        sign-in, except over stdio and in memory, where the only client is the user.

        Example:
            ``titles = await ctx.user_state.update("read", lambda old: [*old, "Dune"], [])``
        """
        only = self._call.transport in ("stdio", "memory")
        return UserState(self._services, self.principal, is_only_client=only)

    async def provider_token(self) -> ProviderToken:
        """Return the caller's token at the provider where they signed in, if its operator lists `token_scopes`.

        Raises:
            ToolError: There's none. The text says what the user or the operator has to do.

        Example:
            ``token = await ctx.provider_token()``
        """
        tokens = self._services.provider_tokens
        if tokens is None:
            raise ToolError(
                "This server keeps no tokens of the provider where you sign in. Its operator has to list token_scopes=."
            )
        if self.principal is None:
            raise ToolError("This tool acts in your name at another service. Sign in to this server first.")
        return await tokens.find(self.principal)

    async def read_resource(self, uri: str) -> Any:  # what the resource function returns
        """Return the result of one of this server's resource functions: ``await ctx.read_resource("docs://a.md")``.

        The function runs as part of this call, for the same caller. At the address of a set (`Server.add_set`), only
        the set's resources exist.

        Args:
            uri: The URI that clients use. For a template, the URI with its variables filled in.

        Raises:
            ProtocolError: The resource doesn't exist, or the caller lacks its scopes.
        """
        return await self._call.dispatcher.read_resource(uri, self._call)

    # Messages to the caller

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress if the caller asked for it: ``await ctx.progress(3, total=10, message="Reading")``.

        You can always call it: MCP clients that sent no progress token get nothing (MCP 2025-11-25,
        basic/utilities/progress).

        Args:
            progress: The progress so far, in any unit. Values that don't increase, or that aren't finite, aren't sent.
            total: The value at which the work is done, if you know it.
            message: The current step, for the user. Clients that use 2024-11-05 don't receive it.
        """
        call = self._call
        if call.token is None and call.tee is None:
            return
        reported = call.progress = call.progress or CallProgress()
        if not isfinite(progress) or (reported.last_reported is not None and progress <= reported.last_reported):
            return
        if total is not None and not isfinite(total):
            total = None
        reported.last_reported = progress
        if reported.sent_heartbeat:
            progress = max(progress, reported.value + OWN_STEP)
        await send_progress(call, progress, total, message)

    report_progress = progress
    """An alias for the name in other packages: ``await ctx.report_progress(3, 10)``."""

    async def log(self, level: LogLevel, data: Any, logger: str | None = None) -> None:
        """Send a log message if the caller wants it: ``await ctx.log("notice", {"free": 3})``.

        The message goes to the client, not to the server's log. Clients choose the minimum level (MCP 2025-11-25,
        server/utilities/logging).

        Args:
            level: One of debug, info, notice, warning, error, critical, alert, and emergency (RFC 5424).
            data: Any JSON-serializable value.
            logger: The name of the logger.

        Raises:
            ValueError: The level is unknown.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"Unknown log level {level!r}. Use one of {', '.join(LOG_LEVELS)}.")
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
        """Call `log` with level debug: ``await ctx.debug("The cache is empty")``.

        Args:
            data: Any JSON-serializable value.
        """
        await self.log("debug", data)

    async def info(self, data: Any) -> None:
        """Call `log` with level info: ``await ctx.info("12 books found")``.

        Args:
            data: Any JSON-serializable value.
        """
        await self.log("info", data)

    async def warning(self, data: Any) -> None:
        """Call `log` with level warning: ``await ctx.warning("The disk is almost full")``.

        Args:
            data: Any JSON-serializable value.
        """
        await self.log("warning", data)

    async def error(self, data: Any) -> None:
        """Call `log` with level error: ``await ctx.error("The printer is gone")``. The call continues.

        Args:
            data: Any JSON-serializable value.
        """
        await self.log("error", data)

    async def notify(self, method: str, params: Any = None) -> None:
        """Send a custom notification to the caller before the result: ``await ctx.notify("com.example/sold")``.

        Clients ignore methods that they don't know; check ``ctx.client.extensions``. Callers without a message stream,
        such as REST callers, don't receive it.

        Args:
            method: The method of an extension, such as ``com.example/sold``.
            params: A mapping or Struct.
        """
        await self._call.send_to_caller(notification_message(method, params))

    async def close_stream(self, retry_ms: int | None = None) -> bool:
        """Close the connection but not the call. The client reconnects for the rest (2025-11-25, in a session).

        Use it to free a connection while a call does nothing for a while (MCP 2025-11-25, basic/transports).

        Args:
            retry_ms: Milliseconds after which the client reconnects. By default, the client decides.

        Returns:
            False if the client couldn't reconnect. In that case, nothing is closed.
        """
        return await self._call.open_reply_channel().interrupt(retry_ms)

    async def start_task(self) -> None:
        """Turn a call of ``@mcp.tool(defer_task=True)`` into a task: ``await ctx.start_task()``. Only clients with the
        tasks extension get a task.

        The function goes on as the task. The caller answers earlier questions within the call, and later ones through
        the task.
        """
        call = self._call
        if call.can_start_task and call.parked is not None:
            await call.parked.ask({}, dict)  # the task resumes it
        else:
            call.start_task()

    # Questions

    @overload
    async def elicit(self, message: str, answer: type[T], *, key: str | None = None) -> T: ...
    @overload
    async def elicit(self, message: str, answer: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]: ...
    @overload
    async def elicit(self, message: str, answer: object, *, key: str | None = None) -> Any: ...  # a member of `answer`
    @_question
    async def elicit(self, message: str, answer: Any, *, key: str | None = None) -> Any:
        """Ask the user for a value of a type or of a flat schema: ``await ctx.elicit("Where to?", Address)``.

        On 2026-07-28 the client's request ends with the question, and the function waits for the next one (MCP
        2025-11-25, client/elicitation).

        Args:
            message: The question, as the user reads it.
            answer: A dataclass, Struct, TypedDict, or pydantic model without nested objects, a single type such as
                ``str``, ``bool``, an enum, or a ``Literal``, a list of choices, or a JSON Schema of such an object.
            key: Name of the question, unique within the call. Set it if the order of the questions can differ between
                two runs of the function. By default, their order identifies them.

        Returns:
            The checked answer: an instance of the type, or a dict for a schema.

        Raises:
            Declined: The user declined.
            Cancelled: The user dismissed the question.
            ToolError: There's no answer: the time is over, the server is stopping, or too many questions are open.
            TypeError: A form can't ask for the type.
        """
        return await self._ask_one(Elicit(message, answer), key)

    @_question
    async def elicit_url(self, message: str, url: str, *, id: str = "", key: str | None = None) -> None:
        """Ask the user to open a URL: ``await ctx.elicit_url("Please pay", url)``. Raises the errors of `elicit`.

        Use it for data that must not pass through the client, such as a password or a payment. It returns when the user
        agrees to open the page, not when the page is done (MCP 2025-11-25, client/elicitation).

        Args:
            message: The reason why the user should open it.
            url: The URL, which the client shows before it opens the page.
            id: Your own id of the interaction, unique on this server. By default, one is created.
            key: As for `elicit`.
        """
        await self._ask_one(ElicitUrl(message, url, id), key)

    @_question
    async def sample(
        self,
        messages: Messages,
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

        The user can see and change the request, or reject it (MCP 2025-11-25, client/sampling).

        Args:
            messages: Text or content (a user message), or the messages so far, oldest first.
            max_tokens: Maximum length of the reply, in tokens.
            system: A system prompt. The client may ignore it.
            temperature: Randomness of the reply. Its range depends on the model.
            stop_sequences: Texts that end the reply.
            preferences: The preferred models: ``{"hints": [{"name": "sonnet"}], "speedPriority": 0.8}``.
            tools: Descriptions of tools that the model may ask for. Needs a client that uses 2025-11-25 or newer.
            tool_choice: Whether the model must use one of them: ``{"mode": "required"}``.
            key: As for `elicit`.

        Returns:
            The reply. Its `text` has the text, `content` everything, and `model` the model's name.

        Raises:
            ValueError: The conversation has a tool use without its result, or the reverse.
        """
        question = Sample(messages, max_tokens, system, temperature, stop_sequences, preferences, tools, tool_choice)
        result: SampleResult = await self._ask_one(question, key)
        return result

    @_question
    async def roots(self, *, key: str | None = None) -> list[Root]:
        """Return the folders that the user opened in the client: ``[root.uri for root in await ctx.roots()]``.

        The client may offer none (MCP 2025-11-25, client/roots).

        Args:
            key: As for `elicit`.
        """
        roots: list[Root] = await self._ask_one(Roots(), key)
        return roots

    @_question
    async def ask(self, /, **questions: Question) -> dict[str, Any]:
        """Ask several questions in one round (MCP 2026-07-28, basic/patterns/mrtr).

        Before that revision, the client gets them one after the other.

        Args:
            questions: `Elicit`, `ElicitUrl`, `Sample`, or `Roots`, each under a key of your choice.

        Returns:
            The answers under the same keys.

        Raises:
            Declined: The user declined one of the questions.
            Cancelled: The user dismissed one of the questions.

        Example:
            ``answers = await ctx.ask(where=Elicit("Where to?", Address), folders=Roots())``
        """
        return await self._ask({name: (name, question) for name, question in questions.items()})

    async def _ask_one(self, question: Question, key: str | None) -> Any:
        return (await self._ask({"": (key, question)}))[""]

    async def _ask(self, questions: Mapping[str, tuple[str | None, Question]]) -> dict[str, Any]:
        call, pending = self._call, self._services.questions
        with pause_deadline(call):
            if call.revision.handshake:
                return {name: await ask_by_request(call, each, pending) for name, (_, each) in questions.items()}
            return await ask_in_rounds(call, questions)

    # Side effects

    @overload
    async def once(self, key: str, function: Callable[[], Awaitable[T]], *, store: bool = False) -> T: ...
    @overload
    async def once(self, key: str, function: Callable[[], T], *, store: bool = False) -> T: ...
    async def once(self, key: str, function: Callable[[], Awaitable[T] | T], *, store: bool = False) -> T:
        """Run a side effect once per call, also if the function runs again with an answer: ``await ctx.once("order",
        buy)``. Its value must be JSON.

        A function that starts over because its worker is gone repeats the effects since its last question.

        Args:
            key: The name of the effect.
            function: The effect.
            store: Also run the effect only once if a round is sent twice or to two workers. The second copy waits for
                the value of the first. If the first one's worker dies, the next copy runs the effect again. A copy of
                the first round has no state yet and is treated as another call.
        """
        label = f"once:{key}"
        if self._call.revision.handshake:
            if label not in self._memo:
                self._memo[label] = await _value(function)
            return cast("T", self._memo[label])
        rounds = self._call.get_rounds()
        raw = rounds.find_settled(label, "once")
        if raw is None:

            async def run() -> bytes:
                return encode(await _value(function))

            if store and self._call.state:
                share = share_for(principal_id(self.principal))
                # The state is sealed again for every round, so it identifies the one that this call continues.
                name = f"once:{share}.{key}:{sha256(self._call.state.encode()).hexdigest()}"
                raw = await once_stored(self._services, name, run)
            else:
                raw = await run()
        rounds.settle(label, "once", raw)
        return cast("T", msgspec.json.decode(raw))


def shared_context(call: Call, home: object) -> Context:
    """Return a context that shares its state with other contexts of the call."""
    if call.shared_state is None:
        call.shared_state = {}
    return Context(call, home)


async def _value(function: Callable[[], Any]) -> Any:
    value = function()
    return await value if inspect.isawaitable(value) else value


def open_rounds(call: Call) -> None:
    """Verify the state of a call before the call does anything.

    Raises:
        ProtocolError: INVALID_PARAMS, for a state that was changed, has expired, or belongs to another call.
    """
    services = call.services
    now = int(services.clock() - services.leeway)
    state = open_state(call.state, services.ring, call_binding(call), now)
    call.rounds = Rounds(state, call.responses or {})


def call_binding(call: Call) -> bytes:
    """Return a digest of the data that a call's state is bound to: principal, method, name, and raw arguments.

    Compare it before another request resumes the work: ``if call_binding(call) != parked.binding: …``.
    """
    if not call.binding:
        address = call.dispatcher.address.name
        call.binding = binding_hash(
            hash_principal(call.principal),
            f"{call.method} {address}" if address else call.method,
            call.name,
            bytes(params_of(call).arguments),
        )
    return call.binding


async def send_progress(
    call: Call, progress: float, total: float | None, message: str | None, meta: Json | None = None
) -> None:
    """Send one progress notification to the caller."""
    if call.over:
        call.postpone(partial(send_progress, call, progress, total, message, meta), len(message or ""))
        return
    reported = call.progress = call.progress or CallProgress()
    reported.value, reported.total, reported.message = progress, total, message
    token = call.id if call.token is None else call.token
    text = message if call.revision.progress_message else None
    params = ProgressNotificationParams(token, progress, total, text, meta)
    notification = notification_message("notifications/progress", params)
    notification = call.services.notification_filters.filter_outgoing(notification, call.principal)
    if notification and call.token is not None:
        await call.open_reply_channel().send(notification)
    if notification and call.tee is not None:
        await call.tee(notification)


async def nudge_progress(call: Call) -> None:
    """Report a tiny step of progress for a silent call, so the caller sees that it's alive.

    The mark lets our clients extend the timeout without showing the step. Others show 0 for a call without progress of
    its own, and keep showing its last message.
    """
    reported = call.progress = call.progress or CallProgress()
    value = reported.value + OWN_STEP
    if reported.total is None or value < reported.total:
        reported.sent_heartbeat = True
        text = reported.message or "Still running"
        await send_progress(call, value, reported.total, text, {KEEP_ALIVE: True})
