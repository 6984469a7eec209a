"""The writer thread, which runs all SQL. Waiting jobs share a transaction and return after its commit."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreFull, StoreUnavailable
from millstream._stores.sqlite.file import Database

T = TypeVar("T")

MAX_JOBS = 1_024
"""Maximum number of jobs per transaction."""
PAUSE = 1.0
"""Seconds before the next attempt after a failed write."""


class _Job:
    __slots__ = ("done", "failure", "result", "tell", "work", "writes")

    def __init__(
        self, work: Callable[[], Any], tell: Callable[[Any], None] | None, writes: bool, done: asyncio.Future[Any]
    ) -> None:
        self.work = work
        self.tell = tell
        self.writes = writes
        self.done = done
        self.result: Any = None
        self.failure: Exception | None = None

    def fail(self, error: LocalError) -> None:
        self.failure = type(error)(str(error))


class SqliteWriter:
    """A runner of jobs on one file, for one event loop."""

    def __init__(self, file: Database, load: Callable[[], None]) -> None:
        """Create a writer. `load` reads cached state from the file and runs in the thread."""
        # configuration
        self._file = file
        self._load = load
        # process
        self.open = False
        self.degraded_reason = ""
        """Why the last transaction failed, or an empty string if it succeeded."""
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[_Job] = []
        self._task: asyncio.Task[None] | None = None
        self._failed: tuple[float, LocalError] | None = None
        """Time and error of the last failed transaction."""

    async def start(self) -> None:
        """Open the file.

        Raises:
            LocalError: the file can't be used.
        """
        self._thread = ThreadPoolExecutor(1, "millstream-sqlite")
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        except BaseException:
            self._end()
            raise
        self._failed = None
        self.open = True

    async def stop(self) -> None:
        """Finish pending jobs and close the file."""
        self.open = False
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._end()

    async def run(self, work: Callable[[], T], tell: Callable[[T], None] | None = None, *, writes: bool = True) -> T:
        """Run a job, and return its result after the commit and after `tell` was called with it.

        Raises:
            Exception: `work` raised it before it wrote anything.
            LocalError: reading or writing the file failed.
        """
        if not self.open:
            raise StoreUnavailable("The store is closed.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Job(work, tell, writes, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                jobs, self._waiting = self._waiting[:MAX_JOBS], self._waiting[MAX_JOBS:]
                await loop.run_in_executor(self._thread, self._run_all, jobs)
                for job in jobs:
                    if job.failure is None and job.tell is not None:
                        job.tell(job.result)
                    if job.done.done():
                        continue
                    if job.failure is not None:
                        job.done.set_exception(job.failure)
                    else:
                        job.done.set_result(job.result)
        finally:
            self._task = None

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    # in the thread

    def _open(self) -> None:
        self._file.open()
        self._load()

    def _run_all(self, jobs: Sequence[_Job]) -> None:
        """Run jobs in one transaction. If it fails, run the read-only jobs again without the others."""
        writes = any(job.writes for job in jobs)
        try:
            self._make_ready(writes=writes)
            if writes:
                self._file.transact(lambda: self._work(jobs))
                self._failed, self.degraded_reason = None, ""
            else:
                self._work(jobs)
            return
        except Exception as exc:  # rolled back, or the outcome is unknown
            error = _final_error(self._file.explain(exc))
        if self._failed is None or str(self._failed[1]) != str(error) or time.monotonic() - self._failed[0] >= PAUSE:
            self._failed, self.degraded_reason = (time.monotonic(), error), str(error)
        for job in jobs:
            job.fail(error)
        readers = [job for job in jobs if not job.writes]
        if self._file.is_open:
            try:
                self._load()  # the counts include rolled-back changes
                if writes:
                    self._work(readers)
            except Exception:  # they keep their error
                self._file.drop()

    def _make_ready(self, *, writes: bool) -> None:
        """Reopen the file if needed, but fail fast shortly after a failure, so a full disk isn't retried per job."""
        failed = self._failed
        if failed is not None and (writes or not self._file.is_open):
            if time.monotonic() - failed[0] < PAUSE:
                raise type(failed[1])(str(failed[1]))
            if self._file.is_open:
                self._file.make_room()
        if not self._file.is_open:
            self._open()

    def _work(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            job.failure = None
            try:
                job.result = job.work()
            except sqlite3.Error:
                raise
            except Exception as exc:  # belongs to the caller
                job.failure = exc


def _final_error(exc: Exception) -> LocalError:
    """Convert a file error to one that the store contract allows."""
    if isinstance(exc, StoreFull | StoreUnavailable):
        return exc
    return StoreUnavailable(str(exc) if isinstance(exc, LocalError) else f"The SQLite store failed: {exc!r}")
