"""What one running server shares among its calls: settings, records, open questions, changes, keys, threads.

Made by the composition root for one event loop and handed down; nothing here decides anything about a call.
"""

import asyncio
import contextlib
import contextvars
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from millstream.config import Settings
from millstream.protocol.errors import ToolError
from millstream.protocol.handshake import Opening
from millstream.protocol.principal import Principal, Publisher
from millstream.protocol.seal import NONCE_BYTES, KeyRing
from millstream.server.calls.asking import OpenQuestions
from millstream.server.calls.changes import Changes
from millstream.server.calls.keys import load_secrets, state_directory
from millstream.server.calls.sessions import Records, Session
from millstream.stores.base import Store

T = TypeVar("T")

logger = logging.getLogger("millstream")


def principal_id(principal: Any) -> str:
    """The part of a principal that things are bound to; empty for an anonymous caller."""
    return principal.id if principal is not None else ""


class Threads:
    """Worker threads for `def` functions. A slot frees when its function ends, not when its caller goes away."""

    __slots__ = ("_free", "_jobs", "_started", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._started = 0
        self._jobs: Jobs = SimpleQueue()
        """Never longer than there are threads: a call without a slot is refused."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run in a worker thread.

        Raises:
            ToolError: every thread is busy.
        """
        if self._free <= 0:
            raise ToolError(f"All {self.size} worker threads are busy. Try again later.")
        loop = asyncio.get_running_loop()
        self._free -= 1
        if self._started < self.size - self._free:
            self._started += 1
            # A daemon, because the process must be able to end while a function does not.
            threading.Thread(target=work, args=(self._jobs,), name=f"millstream_{self._started}", daemon=True).start()
        future: Future[Any] = Future()
        future.add_done_callback(lambda _: self._release_in(loop))
        context = contextvars.copy_context()
        self._jobs.put((future, lambda: context.run(run_carried, function, *args)))
        return await asyncio.wrap_future(future)

    def _release_in(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for a slot
            loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self._free += 1

    def close(self) -> None:
        """Threads end when their function does; nobody waits for that."""
        busy = self.size - self._free
        if busy:
            logger.warning("%d worker threads still run a function; the server stops without waiting for them", busy)
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = 0
        self._jobs = SimpleQueue()


Jobs = SimpleQueue[tuple["Future[Any]", Callable[[], Any]] | None]
"""What worker threads do; None ends one."""


def work(jobs: Jobs) -> None:
    """Do jobs in this thread until there are no more."""
    while (job := jobs.get()) is not None:
        future, run = job
        if future.set_running_or_notify_cancel():
            _settle(future, run)
        del job, future, run  # while it waits, a thread keeps nothing of its last call


def _settle(future: "Future[Any]", run: Callable[[], Any]) -> None:
    try:
        result = run()
    except BaseException as exc:  # whatever it is, it belongs to the call that waits
        future.set_exception(exc)
        del future  # which holds the exception, whose traceback holds this frame
    else:
        future.set_result(result)


def run_carried(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a worker thread, so that whatever it raises can travel back.

    Raises:
        RuntimeError: it raised StopIteration, which a future does not carry: whoever waits would wait for ever.
    """
    try:
        return function(*args)
    except StopIteration as exc:
        raise RuntimeError("the function raised StopIteration") from exc


SESSION_OVER = "$session over"
"""What `ObserveMessage` gets in place of a method when a session ends."""


class ObserveMessage(Protocol):
    """What observers are told of a message that is no call: a handshake, a notification, an answer, a refusal, and
    what is said to the hub. The dispatcher's observer is told of calls.
    """

    def __call__(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        opening: Opening | None = None,
    ) -> None:
        """Take note of one message.

        Args:
            method: of the specification, ``response`` for an answer, ``hub/publish`` and the like; empty when it could
                not be read.
            transport: what carried it.
            session: of the message, with client and revision.
            status: empty for success, else what went wrong: the JSON-RPC code, HTTP status or kind of problem of the
                answer. One of few: it is a label.
            target: the tool or channel it is about.
            principal: who sent it.
            opening: what `initialize` settled.
        """
        ...


def ignore_message(*_: object, **__: object) -> None:
    """The `ObserveMessage` of a server that nobody observes."""


class Services:
    """The shared parts of one running server."""

    __slots__ = (
        "_ring",
        "changes",
        "clock",
        "endings",
        "hub",
        "key_warning",
        "lifespan_of",
        "note",
        "questions",
        "records",
        "settings",
        "store",
        "streamed",
        "threads",
    )

    def __init__(self, settings: Settings, store: Store, changes: Changes) -> None:
        # Configuration
        self.settings = settings
        self.store = store
        self.hub: Publisher | None = None
        self.note: ObserveMessage = ignore_message
        """Told of every message that becomes no call."""
        self.streamed: Callable[[Any], None] | None = None
        """Attaches the stream of a client to a call, where the hub is served."""
        self.clock: Callable[[], float] = time.time
        self.key_warning: str | None = None
        # Shared state
        self.records = Records(store.kv, settings.record_ttl)
        self.questions = OpenQuestions(
            max_open=settings.max_questions,
            max_per_owner=settings.max_questions_per_principal,
            timeout=settings.ask_timeout,
        )
        self.changes = changes
        self.threads = Threads(settings.max_threads)
        self.endings: set[Callable[[], None]] = set()
        """Called when the server stops: open subscriptions end with their result."""
        self.lifespan_of: Callable[[Any], Any] = lambda home: None
        """What the user's lifespan yielded, as functions of a server see it that may be mounted."""
        self._ring: KeyRing | None = None
        if settings.key:
            load_secrets(settings.key)  # a key that cannot be one stops the start, not the first request

    @property
    def ring(self) -> KeyRing:
        """The keys for session ids and sealed state, loaded when first needed."""
        ring = self._ring
        if ring is None:
            found = load_secrets(self.settings.key, state_dir=state_directory())
            self.key_warning = found.warning
            ring = self._ring = KeyRing(found.values)
        return ring

    @staticmethod
    def nonce() -> bytes:
        """Random bytes for one seal."""
        return secrets.token_bytes(NONCE_BYTES)
