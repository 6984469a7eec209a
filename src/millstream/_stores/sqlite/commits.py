"""Group commit: changes are made in memory, all that wait go to the file in one commit, and then they are true.

While a commit is under way, nobody sees what it writes: who reads that waits for the end of the commit, and reads
before the next one begins. When a commit fails, memory is put back to what is in the file.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreFull, StoreUnavailable

T = TypeVar("T")

MAX_CHANGES: Final = 4_096
"""Changes of one commit."""
PAUSE: Final = 1.0
"""Seconds until a file that couldn't be written is tried again."""


class Journal(Protocol):
    """What is in memory, and how it gets to the file."""

    def gather(self) -> Any:
        """What has to be written; None where memory and file are equal. It's a commit from now on."""
        ...

    def write(self, changes: Any) -> None:
        """Write that. In a thread."""

    def recover(self, error: LocalError) -> Any:
        """What is in the file after a commit that failed. In a thread."""
        ...

    def restore(self, content: Any) -> None:
        """Put that into memory."""

    def dirty(self, name: str) -> bool:
        """Whether the commit under way has to do with this stream or key."""
        ...


class _Change:
    __slots__ = ("done", "result", "tell", "work")

    def __init__(self, work: Callable[[], Any], tell: Callable[[Any], None] | None, done: asyncio.Future[Any]) -> None:
        self.work = work
        self.tell = tell
        self.done = done
        self.result: Any = None

    def make(self) -> bool:
        """Make the change in memory; False where it is refused."""
        try:
            self.result = self.work()
        except Exception as exc:  # whatever it is, it's the caller's
            self.fail(exc)
            return False
        return True

    def succeed(self) -> None:
        if self.tell is not None:
            self.tell(self.result)
        if not self.done.done():
            self.done.set_result(self.result)

    def fail(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)


class Commits:
    """The changes of one file. For one event loop."""

    def __init__(self, journal: Journal) -> None:
        # Configuration
        self._journal = journal
        # Process
        self.open = False
        """Changes can be made: the file is open, or will be again."""
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[_Change] = []
        self._reads: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._runs = False
        """A commit is under way, or begins when this turn of the loop is over."""
        self._commits = False
        """A commit is under way."""
        self._broken: LocalError | None = None
        """Why memory isn't what is in the file."""
        self._failed: tuple[float, LocalError] | None = None
        """When a commit failed, and why."""
        self.doubt = ""
        """Why the last commit failed; empty once one has succeeded."""
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def run(self, work: Callable[[], T]) -> Awaitable[T]:
        """Do something in the thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "millstream-sqlite")
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def settle(self) -> None:
        """Return when no commit is under way."""
        await self._idle.wait()

    def end(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    async def change(self, work: Callable[[], T], tell: Callable[[T], None] | None = None) -> T:
        """Make a change; returns when it's in the file, and `tell` has told it.

        Raises:
            Exception: what `work` raises.
            LocalError: it couldn't be written.
        """
        if not self.open:
            raise StoreUnavailable("The store is closed.")
        if self._failed is not None:
            at, error = self._failed
            if time.monotonic() - at < PAUSE:
                raise type(error)(str(error))
            self._failed = None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Change(work, tell, done))
        if not self._runs:
            self._begin(loop)
        return await done

    async def read(self, work: Callable[[], T], *names: str) -> T:
        """Read what is true of some streams or keys."""
        if self._broken is None and not (self._commits and any(map(self._journal.dirty, names))):
            return work()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._reads.append((work, done))
        if not self._runs:
            self._begin(loop)
        return await done

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._runs = True
        self._idle.clear()
        loop.call_soon(self._commit)

    def _commit(self) -> None:
        """Make the changes that wait, and have them written."""
        loop = asyncio.get_running_loop()
        if self._broken is not None:
            self._task = loop.create_task(self._mend())
            return
        self._answer_reads()
        waiting = self._waiting
        batch, self._waiting = waiting[:MAX_CHANGES], waiting[MAX_CHANGES:]
        made = [change for change in batch if change.make()]
        changes = self._journal.gather()
        if changes is None:
            self._succeed(made)
        else:
            self._commits = True
            self._task = loop.create_task(self._write(made, changes))

    async def _write(self, made: list[_Change], changes: Any) -> None:
        try:
            await self.run(lambda: self._journal.write(changes))
        except Exception as exc:  # also what can't be: the changes aren't in the file
            error = _as_told(exc)
            self._commits = False
            self._failed, self._broken, self.doubt = (time.monotonic(), error), error, str(error)
            for change in made:
                change.fail(type(error)(str(error)))
            await self._mend()
        else:
            self._commits = False
            self.doubt = ""
            self._succeed(made)

    def _succeed(self, made: list[_Change]) -> None:
        for change in made:
            change.succeed()
        self._go_on()

    async def _mend(self) -> None:
        """Put memory back to what is in the file. Whoever asks meanwhile waits; while it fails, everything does."""
        error = self._broken or StoreUnavailable("")
        try:
            content = await self.run(lambda: self._journal.recover(error))
        except Exception as exc:
            error = _as_told(exc)
            self._fail_all(error)
        else:
            self._journal.restore(content)
            self._broken = None
            self._fail_changes(error)
        self._go_on()

    def _fail_all(self, error: LocalError) -> None:
        reads, self._reads = self._reads, []
        for _, done in reads:
            if not done.done():
                done.set_exception(StoreUnavailable(str(error)))
        self._fail_changes(error)

    def _fail_changes(self, error: LocalError) -> None:
        """Those that came while it failed don't wait for the next try, or a full disk would keep everybody busy."""
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            change.fail(type(error)(str(error)))

    def _go_on(self) -> None:
        if self._broken is None:
            self._answer_reads()
        if self._waiting or self._reads:
            asyncio.get_running_loop().call_soon(self._commit)
        else:
            self._runs = False
            self._idle.set()

    def _answer_reads(self) -> None:
        reads, self._reads = self._reads, []
        for work, done in reads:
            if done.done():
                continue
            try:
                done.set_result(work())
            except Exception as exc:
                done.set_exception(exc)


def _as_told(exc: Exception) -> LocalError:
    """What went wrong with the file, as the contract of stores has it: whoever asks may know nothing of files."""
    if isinstance(exc, StoreFull | StoreUnavailable):
        return exc
    return StoreUnavailable(str(exc) if isinstance(exc, LocalError) else f"The SQLite store failed: {exc!r}")
