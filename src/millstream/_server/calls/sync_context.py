"""`SyncContext`: a blocking `Context` for `def` functions, which run in worker threads."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypedDict, TypeVar, Unpack, cast, overload

from millstream._protocol.errors import Cancelled
from millstream._protocol.metadata import LogLevel
from millstream._protocol.notifications import Root, SampleResult
from millstream._protocol.principal import Principal
from millstream._server.calls.call import CallInfo
from millstream._server.calls.context import Context
from millstream._server.calls.questions import Messages, Question
from millstream._server.calls.services import Publisher
from millstream._server.calls.session_state import SyncSessionState
from millstream._server.pool import Jobs, run_carried, work
from millstream._tasks import fulfill

T = TypeVar("T")

_CALL_CANCELLED = "The caller canceled the call."


class Waits:
    """The event loop operations that a call's thread waits for."""

    __slots__ = ("_context", "_loop", "_over", "_pending")

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._over = False
        self._pending: set[Future[Any]] = set()

    def wait(self, needed: Coroutine[Any, Any, T], jobs: Jobs | None = None) -> T:
        """Run a coroutine in the event loop and wait for it in this thread. Functions that the coroutine passes back
        run here (`jobs`).

        Raises:
            Cancelled: The call is over.
        """
        if self._is_over():
            needed.close()
            raise Cancelled(_CALL_CANCELLED)
        pending = asyncio.run_coroutine_threadsafe(needed, self._loop)
        self._pending.add(pending)
        if self._is_over():  # `abandon` may have run since the check above
            pending.cancel()
        try:
            if jobs is not None:
                pending.add_done_callback(lambda _: jobs.put(None))
                work(jobs)
            return pending.result()
        except CancelledError:
            raise Cancelled(_CALL_CANCELLED) from None
        finally:
            self._pending.discard(pending)

    def abandon(self) -> None:
        """End all waits of a finished call, to free the thread. Called from the event loop."""
        self._over = True
        for pending in list(self._pending):
            pending.cancel()

    def _is_over(self) -> bool:
        return self._over or self._context.cancelled


class SyncHub:
    """A blocking hub, with the arguments, results, and errors of `Hub`."""

    def __init__(self, hub: Publisher, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._hub = hub
        self._wait = wait

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        publisher: Principal | None = None,
    ) -> Any:
        """Publish to a channel."""
        return self._wait(self._hub.publish(channel, data, event=event, id=id, publisher=publisher))

    def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: Principal | None = None,
        publisher: Principal | None = None,
    ) -> Any:
        """Publish to one client."""
        hub = self._hub
        return self._wait(hub.send(client_id, data, event=event, id=id, principal=principal, publisher=publisher))

    def presence(self, channel: str) -> list[Any]:
        """Return the clients on a channel."""
        return list(self._wait(self._hub.presence(channel)))

    def history(self, channel: str, count: int = 50) -> list[Any]:
        """Return the newest events of a channel, oldest first."""
        return list(self._wait(self._hub.history(channel, count)))


class SampleOptions(TypedDict, total=False):
    """Options of `Context.sample`."""

    max_tokens: int
    system: str | None
    temperature: float | None
    stop_sequences: Sequence[str] | None
    preferences: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: Mapping[str, Any] | None
    key: str | None


class SyncContext(CallInfo):
    """The current call, for a `def` function: ``def order(isbn: str, ctx: SyncContext) -> str``."""

    __slots__ = ("_context", "_wait")

    def __init__(self, context: Context, waits: Waits) -> None:
        super().__init__(context._call, context._home)
        self.state: dict[str, Any] = context.state
        self._context = context
        self._wait = waits.wait

    @property
    def hub(self) -> SyncHub:
        """The hub of this server, with blocking methods.

        Raises:
            LocalError: The server has no hub.
        """
        return SyncHub(self._context.hub, self._wait)

    @property
    def session_state(self) -> SyncSessionState:
        """Values stored for this session: ``ctx.session_state.get("cart", [])``. See `Context.session_state`."""
        return SyncSessionState(self._context.session_state, self._wait)

    def read_resource(self, uri: str) -> Any:
        """Return the result of a resource of this server: ``ctx.read_resource("docs://a.md")``.

        Args:
            uri: The URI that clients use.

        Raises:
            ProtocolError: The resource doesn't exist, or the caller lacks its scopes.
        """
        return self._wait(self._context.read_resource(uri))

    def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress if the caller asked for it: ``ctx.progress(3, total=10)``.

        Args:
            progress: The progress so far, in any unit. Values that don't increase aren't sent.
            total: The value at which the work is done, if you know it.
            message: The current step, for the user.
        """
        self._wait(self._context.progress(progress, total, message))

    report_progress = progress
    """An alias for the name in other packages: ``ctx.report_progress(3, 10)``."""

    def log(self, level: LogLevel, data: Any, logger: str | None = None) -> None:
        """Send a log message if the caller wants it: ``ctx.log("notice", {"free": 3})``.

        Args:
            level: One of debug, info, notice, warning, error, critical, alert, and emergency.
            data: Any JSON-serializable value.
            logger: The name of the logger.

        Raises:
            ValueError: The level is unknown.
        """
        self._wait(self._context.log(level, data, logger))

    def debug(self, data: Any) -> None:
        """Call `log` with level debug: ``ctx.debug("The cache is empty")``.

        Args:
            data: Any JSON-serializable value.
        """
        self.log("debug", data)

    def info(self, data: Any) -> None:
        """Call `log` with level info: ``ctx.info("12 books found")``.

        Args:
            data: Any JSON-serializable value.
        """
        self.log("info", data)

    def warning(self, data: Any) -> None:
        """Call `log` with level warning: ``ctx.warning("The disk is almost full")``.

        Args:
            data: Any JSON-serializable value.
        """
        self.log("warning", data)

    def error(self, data: Any) -> None:
        """Call `log` with level error: ``ctx.error("The printer is gone")``. The call continues.

        Args:
            data: Any JSON-serializable value.
        """
        self.log("error", data)

    @overload
    def elicit(self, message: str, answer: type[T], *, key: str | None = None) -> T: ...
    @overload
    def elicit(self, message: str, answer: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]: ...
    def elicit(self, message: str, answer: Any, *, key: str | None = None) -> Any:
        """Ask the user for a value: ``to = ctx.elicit("Where to?", Address)``. See `Context.elicit` for the details.

        Args:
            message: The question, as the user reads it.
            answer: A flat type, or a JSON Schema of a flat object.
            key: Name of the question, unique within the call.

        Raises:
            Declined: The user declined.
            Cancelled: The user dismissed the question, or the caller canceled the call.
            TypeError: A form can't ask for the type.
        """
        return self._wait(self._context.elicit(message, answer, key=key))

    def elicit_url(self, message: str, url: str, *, key: str | None = None) -> None:
        """Ask the user to open a URL: ``ctx.elicit_url("Please pay", url)``. Raises the errors of `elicit`.

        Args:
            message: Why the user should open it.
            url: The URL.
            key: Name of the question, unique within the call.
        """
        self._wait(self._context.elicit_url(message, url, key=key))

    def sample(self, messages: Messages, **options: Unpack[SampleOptions]) -> SampleResult:
        """Let the client's model continue a conversation: ``ctx.sample("Say hello", max_tokens=50)``.

        Args:
            messages: Text (a user message), or the messages so far, oldest first.
            options: The keywords of `Context.sample`.

        Raises:
            ValueError: The conversation has a tool use without its result, or the reverse.
        """
        return self._wait(self._context.sample(messages, **options))

    def roots(self, *, key: str | None = None) -> list[Root]:
        """Return the folders that the user opened in the client: ``[root.uri for root in ctx.roots()]``.

        Args:
            key: Name of the question, unique within the call.
        """
        return self._wait(self._context.roots(key=key))

    def ask(self, **questions: Question) -> dict[str, Any]:
        """Ask several questions in one round: ``ctx.ask(where=Elicit("Where to?", Address), folders=Roots())``.

        Args:
            questions: `Elicit`, `ElicitUrl`, `Sample`, or `Roots`, each under a key of your choice.

        Returns:
            The answers under the same keys.
        """
        return self._wait(self._context.ask(**questions))

    def once(self, key: str, function: Callable[[], T], *, store: bool = False) -> T:
        """Run a side effect once across the rounds of a call: ``ctx.once("order", buy)``. Its value must be JSON.

        Args:
            key: The name of the effect.
            function: The effect. It runs in the calling thread.
            store: Also run the effect only once if a round is sent twice or to two workers. See `Context.once`.
        """
        jobs: Jobs = SimpleQueue()

        async def run() -> Any:
            done: Future[Any] = Future()
            jobs.put(lambda: fulfill(done, partial(run_carried, function)))
            return await asyncio.wrap_future(done)

        value: T = cast("T", self._wait(self._context.once(key, run, store=store), jobs))
        return value

    def notify(self, method: str, params: Any = None) -> None:
        """Send a custom notification to the caller before the result: ``ctx.notify("com.example/sold", {"sku": "7"})``.

        Args:
            method: The method of an extension, such as ``com.example/sold``.
            params: A mapping or Struct.
        """
        self._wait(self._context.notify(method, params))

    def close_stream(self, retry_ms: int | None = None) -> bool:
        """Close the connection but not the call: ``ctx.close_stream(retry_ms=5_000)``. See `Context.close_stream`.

        Args:
            retry_ms: Milliseconds after which the client reconnects. By default, the client decides.

        Returns:
            False if the client couldn't reconnect. In that case, nothing is closed.
        """
        return self._wait(self._context.close_stream(retry_ms))

    def start_task(self) -> None:
        """Turn the call into a task, like `Context.start_task`: ``ctx.start_task()``."""
        self._wait(self._context.start_task())
