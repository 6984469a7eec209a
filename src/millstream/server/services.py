"""What one running server shares among its calls: settings, records, open questions, changes, keys, threads.

Made by the composition root for one event loop and handed down; nothing here decides anything about a call.
"""

import asyncio
import contextvars
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from millstream.config import Settings
from millstream.protocol.errors import ToolError
from millstream.protocol.principal import Publisher
from millstream.protocol.seal import NONCE_BYTES, KeyRing
from millstream.server.asking import OpenQuestions
from millstream.server.changes import Changes
from millstream.server.keys import load_secrets, state_directory
from millstream.server.sessions import Records, Session
from millstream.stores.base import Store


def principal_id(principal: Any) -> str:
    """The part of a principal that things are bound to; empty for an anonymous caller."""
    return principal.id if principal is not None else ""


class Threads:
    """Worker threads for `def` functions. A slot frees when its function ends, not when its caller goes away."""

    __slots__ = ("_executor", "_free", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run in a worker thread.

        Raises:
            ToolError: every thread is busy.
        """
        if self._free <= 0:
            raise ToolError(f"All {self.size} worker threads are busy. Try again later.")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.size, thread_name_prefix="millstream")
        loop = asyncio.get_running_loop()
        self._free -= 1
        future = self._executor.submit(contextvars.copy_context().run, function, *args)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        self._free += 1

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


SESSION_OVER = "$session over"
"""What `Note` is told, in place of a method, when a session has ended."""


class Note(Protocol):
    """What observers are told of a message that is no call: a handshake, a notification, an answer, a refusal."""

    def __call__(self, method: str, transport: str, session: Session | None = None, status: str = "") -> None:
        """`status` is empty for success, else the JSON-RPC error code."""
        ...


class Services:
    """The shared parts of one running server."""

    __slots__ = (
        "_ring",
        "changes",
        "clock",
        "endings",
        "hub",
        "key_warning",
        "lifespan",
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
        self.note: Note | None = None
        """Told of every message that becomes no call, where somebody observes."""
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
        self.lifespan: Any = None
        """What the user's lifespan yielded."""
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
