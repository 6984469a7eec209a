"""`SyncContext`: a blocking `Context` for `def` functions, which run in worker threads."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from millstream._copies import NotCopyable
from millstream._protocol.errors import Cancelled
from millstream._server.calls.call import CallInfo
from millstream._server.calls.context import Context
from millstream._server.calls.services import Publisher
from millstream._server.calls.session_state import StoredState
from millstream._server.pool import Jobs, run_carried, work
from millstream._tasks import fulfill, make_asking, make_blocking

if TYPE_CHECKING:  # few servers have a hub
    from millstream.hub import HubStats

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


Wait = Callable[[Coroutine[Any, Any, Any]], Any]


class SyncHub:
    """A blocking hub, with the arguments, results, and errors of `Hub`."""

    def __init__(self, hub: Publisher, wait: Wait) -> None:
        self._inner = hub
        self._wait = wait

    publish: Final = make_blocking(Publisher.publish)
    send: Final = make_blocking(Publisher.send)
    presence: Final = make_blocking(Publisher.presence)
    members: Final = make_blocking(Publisher.members)
    history: Final = make_blocking(Publisher.history)

    def stats(self) -> "HubStats":
        """Return statistics for operators, as `Hub.stats` does."""
        return self._inner.stats()


class SyncStoredState:
    """A blocking `StoredState`. The function for `update` runs in the event loop and must not block."""

    def __init__(self, state: StoredState, wait: Wait) -> None:
        self._inner = state
        self._wait = wait

    def __bool__(self) -> bool:
        return bool(self._inner)

    get: Final = make_blocking(StoredState.get)
    set: Final = make_blocking(StoredState.set)
    delete: Final = make_blocking(StoredState.delete)
    update: Final = make_blocking(StoredState.update)


class SyncContext(CallInfo, NotCopyable):
    """The current call, for a `def` function: ``def order(isbn: str, ctx: SyncContext) -> str``.

    It has the methods of `Context`. They block, so leave out ``await``: ``ctx.progress(3, total=10)``.
    """

    _COPY_ADVICE = "Pass on what you read from it, such as the request id."

    __slots__ = ("_inner", "_wait")

    def __init__(self, context: Context, waits: Waits) -> None:
        super().__init__(context._call, context._home)
        self.state: dict[str, Any] = context.state
        self._inner = context
        self._wait = waits.wait

    def _ask(self, needed: Coroutine[Any, Any, T]) -> T:
        """Wait in this thread, whose slot others can use if the call is parked."""
        parked = self._call.parked
        if parked is None:
            return self._wait(needed)
        parked.threads += 1
        try:
            return self._wait(needed)
        finally:
            parked.threads -= 1

    @property
    def hub(self) -> SyncHub:
        """The hub of this server, with blocking methods.

        Raises:
            LocalError: The server has no hub.
        """
        return SyncHub(self._inner.hub, self._wait)

    @property
    def session_state(self) -> SyncStoredState:
        """Values stored for this session: ``ctx.session_state.get("cart", [])``. See `Context.session_state`."""
        return SyncStoredState(self._inner.session_state, self._wait)

    @property
    def user_state(self) -> SyncStoredState:
        """Values stored for this user: ``ctx.user_state.get("read", [])``. See `Context.user_state`."""
        return SyncStoredState(self._inner.user_state, self._wait)

    provider_token: Final = make_blocking(Context.provider_token)
    read_resource: Final = make_blocking(Context.read_resource)
    progress: Final = make_blocking(Context.progress)
    report_progress: Final = progress
    """An alias for the name in other packages: ``ctx.report_progress(3, 10)``."""

    log: Final = make_blocking(Context.log)
    debug: Final = make_blocking(Context.debug)
    info: Final = make_blocking(Context.info)
    warning: Final = make_blocking(Context.warning)
    error: Final = make_blocking(Context.error)

    @overload
    def elicit(self, message: str, answer: type[T], *, key: str | None = None) -> T: ...
    @overload
    def elicit(self, message: str, answer: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]: ...
    @overload
    def elicit(self, message: str, answer: object, *, key: str | None = None) -> Any: ...  # a member of `answer`
    def elicit(self, message: str, answer: Any, *, key: str | None = None) -> Any:
        """Ask the user for a value: ``to = ctx.elicit("Where to?", Address)``. See `Context.elicit` for the details.

        Args:
            message: The question, as the user reads it.
            answer: A flat type, a list of choices, or a JSON Schema of a flat object.
            key: Name of the question, unique within the call.

        Raises:
            Declined: The user declined.
            Cancelled: The user dismissed the question, or the caller canceled the call.
            TypeError: A form can't ask for the type.
        """
        return self._ask(self._inner.elicit(message, answer, key=key))

    elicit_url: Final = make_asking(Context.elicit_url)
    sample: Final = make_asking(Context.sample)
    roots: Final = make_asking(Context.roots)
    ask: Final = make_asking(Context.ask)

    def once(self, key: str, function: Callable[[], T], *, store: bool = False) -> T:
        """Run a side effect once per call, also if the function runs again with an answer: ``ctx.once("order", buy)``.
        Its value must be JSON.

        A function that starts over because its worker is gone repeats the effects since its last question.

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

        value: T = cast("T", self._wait(self._inner.once(key, run, store=store), jobs))
        return value

    notify: Final = make_blocking(Context.notify)
    close_stream: Final = make_blocking(Context.close_stream)
    start_task: Final = make_blocking(Context.start_task)
