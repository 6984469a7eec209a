"""Processes of upstreams that speak over stdio: bounded, restarted with back-off, and never left behind.

A `ProcessPool` belongs to one worker. Its `UpstreamProcesses` hand out targets for a client, one for each key: one
process for all callers, one for each principal, or one for each session. Each connection to a target is one process. A
connection that loses its process gets another one with its next call, as every connection of a client does.

Each process leads a process group, and the group ends with it. A watchdog ends the groups of a worker that was killed.
"""

import asyncio
import contextlib
import logging
import math
import random
import signal
import sys
from collections import Counter, OrderedDict, deque
from pathlib import Path
from time import monotonic
from typing import cast

from msgspec import Struct

from millstream._protocol.jsonrpc import Envelope
from millstream.client._background import Background
from millstream.client._errors import ClientError, ConnectFailed, ConnectionLost, SessionLost
from millstream.client._transports.stdio import Command, StdioTransport
from millstream.client._transports.transport import Listener, Request, Transport

_logger = logging.getLogger("millstream.gateway.processes")

_STARTS = 4
"""Processes that may boot at once: more would only slow each other down."""
_BOOT = 15.0
"""Seconds after which a process that hasn't written anything no longer counts as booting."""
_WAIT = 30.0
"""Seconds that a connection waits for a process."""
_MAX_WAITING = 1000
"""Connections to one upstream that may wait."""
_TICK = 0.25
"""Seconds between looks for a process that can make room."""
_MAX_KEYS = 1000
"""Keys whose crashes are remembered."""
_FIRST_DELAY = 0.25
_LONGEST_DELAY = 60.0
_MAX_DOUBLED = 16
_FORGIVEN = 5.0
"""Seconds of life that make up for one crash."""
_GIVEN_UP = 3
"""Requests without an answer that mark a silent process as hung."""
_MAX_LINE = 2000
"""Bytes of a line of standard error that are logged."""
_LINES = 50
"""Lines of standard error that an upstream may log each second."""
_BURST = 200
_ERROR_BYTES = 4 * 1024 * 1024
"""Bytes of standard error that are read in a second. Beyond that, the process waits."""
_MESSAGES = 5000
"""Notifications and requests of a process that are read in a second. Beyond that, the process waits."""
_OUTPUT_LINES = 100_000
"""The same for lines of every kind."""
_SYSTEM = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}
"""Control characters. They don't reach the log."""


class ProcessReport(Struct, frozen=True, kw_only=True):
    """The processes of one upstream at this moment. ``processes.describe().running``"""

    running: int
    """Processes that run, including spare ones and those that are about to start or end."""
    spare: int
    """Processes that wait for a connection."""
    waiting: int
    """Connections that wait for a process."""
    limit: int
    """How many may run."""
    started: int
    """Processes started so far."""
    crashed: int
    """Processes that ended by themselves, hung, or broke the protocol."""
    ended_idle: int
    """Processes that were ended because nothing used them, or to make room for others."""
    memory: int
    """Bytes of memory in use; 0 where the system has no /proc."""
    retry_seconds: float
    """Seconds until a process that crashed may start again, the longest of all keys; 0 if none has to wait."""
    last_error: str
    """How the last one crashed; empty if none has."""


class ProcessTarget:
    """A target for a client: the process of one key."""

    __slots__ = ("_key", "_processes", "key")

    def __init__(self, processes: "UpstreamProcesses", key: str) -> None:
        self._processes = processes
        self._key = key
        self.key: str = repr(processes.command.argv)
        """What a client remembers the era of the server by."""

    def new_transport(self, listener: Listener, background: Background) -> Transport:
        """Return a transport that isn't open yet. It has a spare process, or starts one when it opens."""
        return self._processes.take(self._key, listener)


class UpstreamProcesses:
    """The processes of one upstream. Made by `ProcessPool.add`."""

    def __init__(
        self,
        pool: "ProcessPool",
        name: str,
        command: Command,
        *,
        limit: int,
        idle_seconds: float,
        memory_limit: int | None,
        spares: int,
        timeout: float,
        max_bytes: int,
    ) -> None:
        # Configuration
        self.pool: ProcessPool = pool
        self.name: str = name
        self.command: Command = command
        self.timeout: float = timeout
        self.max_bytes: int = max_bytes
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._memory_limit = memory_limit
        self._wanted_spares = spares
        # Process
        self.running: set[ProcessTransport] = set()
        """Those that run, start, or end."""
        self.log: ErrorLog = ErrorLog(name)
        self._spares: deque[ProcessTransport] = deque()
        self._refill: asyncio.Task[None] | None = None
        self._crashes: OrderedDict[str, _Crashes] = OrderedDict()
        self._crashed: ProcessTransport | None = None
        """The last one that did."""
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._counts: Counter[str] = Counter()
        self._closed = False

    def target(self, key: str = "") -> ProcessTarget:
        """Return what a client connects to.

        Args:
            key: whose process it is: the id of a principal or of a session; empty for the one that all callers share.
                Crashes of one key don't delay another.

        Example:
            ``Client(pool.add("files", Command(("mcp-server-files", "."))).target())``
        """
        return ProcessTarget(self, key)

    def take(self, key: str, listener: Listener) -> "ProcessTransport":
        """Return a spare process for a key, or one that starts when its transport opens."""
        transport = None
        while self._spares and (transport is None or transport.lost):
            transport = self._spares.popleft()
        if transport is None or transport.lost:
            transport = ProcessTransport(self)
        transport.attach(key, listener)
        self.warm_up()
        return transport

    def warm_up(self) -> None:
        """Start as many spare processes as configured, in the background, where there is room."""
        if self._may_warm_up() and (self._refill is None or self._refill.done()):
            self._refill = self.pool.background.start(self._start_spares())

    def _may_warm_up(self) -> bool:
        return len(self._spares) < self._wanted_spares and not self._closed and self._fits() and not self._delay("")

    async def _start_spares(self) -> None:
        while self._may_warm_up():
            transport = ProcessTransport(self)
            try:
                await transport.open()
            except ClientError as exc:
                _logger.warning("%s: no spare process: %s", self.name, exc)
                return
            self._spares.append(transport)

    # Room

    async def admit(self, transport: "ProcessTransport") -> None:
        """Wait until another process may start. It counts from then on.

        Raises:
            ConnectFailed: it crashed too often just now, or all processes are in use.
        """
        delay = self._delay(transport.key)
        if delay:
            raise ConnectFailed(
                f"The process of {self.name} ended {self._crashes[transport.key].count} times and starts again in "
                f"{math.ceil(delay)} seconds. {self._last_error}".rstrip()
            )
        if self._waiting >= _MAX_WAITING:
            raise ConnectFailed(f"{self._waiting:,} connections wait for a process of {self.name}. Try again later.")
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT), self._turn:
                while not self._fits():
                    self._make_room()
                    await self.pool.wait_for_room(_TICK)
                self.running.add(transport)
            try:
                async with asyncio.timeout(_WAIT):
                    await self.pool.starts.acquire()
            except BaseException:
                self.forget(transport)
                raise
            transport.booting, transport.born = True, monotonic()
        except TimeoutError as exc:
            raise ConnectFailed(self._full()) from exc
        finally:
            self._waiting -= 1

    def _fits(self) -> bool:
        return len(self.running) < self._limit and not self.pool.full

    def _full(self) -> str:
        if len(self.running) >= self._limit:
            return f"All {self._limit} processes of {self.name} are in use. Try again later, or raise max_processes."
        return f"No process of {self.name} can start now: {self.pool.limit} run in all. Try again later."

    def _make_room(self) -> None:
        """End the process that nothing has used for the longest time, unless one is ending already."""
        among = list(self.running) if len(self.running) >= self._limit else self.pool.running
        if any(each.closing for each in among):
            return
        now = monotonic()
        idle = [each for each in among if each.idle_seconds(now) >= self.pool.min_idle_seconds]
        if idle:
            min(idle, key=lambda each: (each.attached, each.last_used)).retire()

    # Life

    def started(self, transport: "ProcessTransport") -> None:
        """Take note of a process that has just started."""
        self._counts["started"] += 1
        if self._memory_limit is not None:
            _limit_memory(transport.pid, self._memory_limit, self.name)
        self.pool.watchdog.add(transport.pid)

    def ended(self, transport: "ProcessTransport") -> None:
        """Take note of a process that has ended and left no zombie."""
        self.pool.watchdog.discard(transport.pid)
        self.forget(transport)
        if transport.closing:
            self._counts["ended_idle"] += transport.retired
            return
        self._counts["crashed"] += 1
        self._crashed = transport
        crashes = self._crashes.setdefault(transport.key, _Crashes())
        self._crashes.move_to_end(transport.key)
        while len(self._crashes) > _MAX_KEYS:
            self._crashes.popitem(last=False)
        crashes.add(monotonic(), transport.born)
        _logger.warning("%s: process %d ended with exit code %s", self.name, transport.pid, transport.exit_code)

    def forget(self, transport: "ProcessTransport") -> None:
        """Free what a process had."""
        self.running.discard(transport)
        with contextlib.suppress(ValueError):
            self._spares.remove(transport)
        transport.finish_boot()
        self.pool.freed.set()

    def _delay(self, key: str) -> float:
        """Return the seconds until a process may start for a key."""
        crashes = self._crashes.get(key)
        return 0.0 if crashes is None else max(0.0, crashes.until - monotonic())

    @property
    def _last_error(self) -> str:
        return "" if self._crashed is None else str(self._crashed.fault or "")

    def sweep(self, now: float) -> None:
        """End idle and hung processes, and replace spare ones."""
        for transport in list(self.running):
            transport.check(now)
            if transport.attached and self._idle_seconds and transport.idle_seconds(now) > self._idle_seconds:
                transport.retire()
        self.log.flush()
        self.warm_up()

    def describe(self) -> ProcessReport:
        """Return what the processes do now."""
        return ProcessReport(
            running=len(self.running),
            spare=len(self._spares),
            waiting=self._waiting,
            limit=self._limit,
            started=self._counts["started"],
            crashed=self._counts["crashed"],
            ended_idle=self._counts["ended_idle"],
            memory=sum(_memory(each.pid) for each in self.running if each.pid),
            retry_seconds=max((self._delay(key) for key in self._crashes), default=0.0),
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """End every process, and start none any more."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.wait([self._refill])
        await asyncio.gather(*(transport.close() for transport in list(self.running)))
        self.pool.remove(self)


class ProcessPool:
    """The processes of all upstreams of one worker."""

    def __init__(self, *, limit: int = 128, starts: int = _STARTS, min_idle_seconds: float = 5.0) -> None:
        """Nothing starts before a target is connected to.

        Args:
            limit: how many processes may run at once.
            starts: how many may boot at once.
            min_idle_seconds: seconds without a call after which a process may be ended in favor of another one.
        """
        # Configuration
        self.limit: int = limit
        self.min_idle_seconds: float = min_idle_seconds
        # Process
        self.background: Background = Background()
        self.starts: asyncio.Semaphore = asyncio.Semaphore(starts)
        self.freed: asyncio.Event = asyncio.Event()
        self.watchdog: Watchdog = Watchdog()
        self._upstreams: list[UpstreamProcesses] = []

    def add(
        self,
        name: str,
        command: Command,
        *,
        limit: int = 8,
        idle_seconds: float = 300.0,
        memory_limit: int | None = None,
        spares: int = 0,
        timeout: float = 60.0,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> UpstreamProcesses:
        """Return the processes of one upstream; none runs yet.

        Args:
            name: for the log and for errors.
            command: how to start one.
            limit: how many may run at once.
            idle_seconds: seconds without a call or subscription after which one is ended; 0 for never.
            memory_limit: bytes of memory that each process may allocate (RLIMIT_DATA, on Linux). An allocation beyond
                it fails, and most programs end then. What a program only reserves doesn't count, so programs for Node
                and Go run under it as well.
            spares: how many processes to keep started for the next connections.
            timeout: seconds without output after which one that has left several requests unanswered is replaced.
            max_bytes: the most that one message may take.
        """
        processes = UpstreamProcesses(
            self,
            name,
            command,
            limit=limit,
            idle_seconds=idle_seconds,
            memory_limit=memory_limit,
            spares=spares,
            timeout=timeout,
            max_bytes=max_bytes,
        )
        self._upstreams.append(processes)
        return processes

    def remove(self, processes: UpstreamProcesses) -> None:
        """Forget the processes of an upstream, which have ended."""
        with contextlib.suppress(ValueError):
            self._upstreams.remove(processes)

    @property
    def running(self) -> list["ProcessTransport"]:
        """Every process that runs, starts, or ends."""
        return [transport for processes in self._upstreams for transport in processes.running]

    @property
    def full(self) -> bool:
        """Whether no other process may start."""
        return sum(len(processes.running) for processes in self._upstreams) >= self.limit

    async def wait_for_room(self, seconds: float) -> None:
        """Wait until a process ends, but not for longer than so many seconds."""
        self.freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.freed.wait()

    def sweep(self, now: float) -> None:
        """End idle and hung processes. Call it once a second: ``host.every_second(pool.sweep)``.

        Args:
            now: as `time.monotonic` gives it.
        """
        for processes in list(self._upstreams):
            processes.sweep(now)
        if self.watchdog.missing:
            self.background.start(self.watchdog.start())

    async def close(self) -> None:
        """End every process."""
        try:
            await asyncio.gather(*(processes.close() for processes in list(self._upstreams)))
        finally:
            await self.background.close()
            await self.watchdog.close()


class ProcessTransport(StdioTransport):
    """One process of a pool."""

    def __init__(self, processes: UpstreamProcesses) -> None:
        self.relay: Relay = Relay()
        super().__init__(processes.command, self.relay, processes.pool.background, processes.max_bytes)
        self._processes = processes
        self.key: str = ""
        self.attached: bool = False
        """A client has it."""
        self.closing: bool = False
        """We end it."""
        self.retired: bool = False
        """It wasn't the client that ended it."""
        self.booting: bool = False
        self.born: float = 0.0
        self.last_used: float = monotonic()
        self._asked_at: float = 0.0
        """When the first request since its last output was sent; 0 without one."""
        self._given_up = 0
        """How many of these weren't answered."""
        self._error_line = b""
        self._output = _Flow(_OUTPUT_LINES)
        self._messages = _Flow(_MESSAGES)
        self._errors = _Flow(_ERROR_BYTES)

    @property
    def pid(self) -> int:
        """The id of the process, also after its end; 0 before its start."""
        return 0 if self._process is None else self._process.get_pid()

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.get_returncode()

    @property
    def unread(self) -> int:
        """Bytes that it hasn't read yet, apart from what the system holds."""
        stdin = None if self._process is None else self._process.get_pipe_transport(0)
        return 0 if stdin is None else cast("asyncio.WriteTransport", stdin).get_write_buffer_size()

    @property
    def fault(self) -> ClientError | None:
        """Why it's gone."""
        return self._duplex.fault

    def attach(self, key: str, listener: Listener) -> None:
        """Give it to a client."""
        self.key = key
        self.attached = True
        self.last_used = monotonic()
        self.relay.attach(listener)

    async def open(self) -> None:
        """Start the process, once there's room for it.

        Raises:
            TargetError: there's no such program.
            ConnectFailed: it crashed too often just now, all processes are in use, or the system doesn't start it.
        """
        if self._process is not None:
            return
        processes = self._processes
        await processes.admit(self)
        try:
            await processes.pool.watchdog.start()
            await super().open()
        except BaseException:
            if self._process is None:
                processes.forget(self)
            raise

    def process_started(self, process: asyncio.SubprocessTransport) -> None:
        """Take note of its start."""
        super().process_started(process)
        self._processes.started(self)

    async def exchange(self, request: Request) -> Envelope:
        """Send a request and wait for its answer."""
        self.last_used = now = monotonic()
        self._asked_at = self._asked_at or now
        try:
            if not self.writable.is_set():
                await self._take_turn()
            return await self._duplex.exchange(request)
        except asyncio.CancelledError:  # it took too long, or its caller went away
            self._given_up += 1
            raise

    def idle_seconds(self, now: float) -> float:
        """Return the seconds since anything used it; negative while something does."""
        if self.closing or self.exited.is_set() or not self.pid:
            return -1.0
        if self._duplex.waiting or not self.writable.is_set() or self.relay.wanted.is_set():
            return -1.0
        return now - self.last_used

    def retire(self) -> None:
        """End it in the background. A connection that comes back to it gets another process."""
        self.closing = self.retired = True
        self._duplex.end(SessionLost(f"The process of {self._processes.name} was ended because it was idle."))
        self._processes.pool.background.start(self.close())

    def check(self, now: float) -> None:
        """End it if it hangs."""
        if self.booting and now - self.born > _BOOT:
            self.finish_boot()
        silence = now - self._asked_at if self._asked_at else 0.0
        if self._given_up >= _GIVEN_UP and silence > self._processes.timeout and not self.closing:
            self._duplex.end(ConnectionLost(f"The process of {self._processes.name} no longer answered."))
            self._kill(signal.SIGKILL)

    def finish_boot(self) -> None:
        """Let another process boot."""
        if self.booting:
            self.booting = False
            self._processes.pool.starts.release()

    # What the process does

    def heard(self, data: bytes) -> None:
        """Take some of its standard output."""
        self.finish_boot()
        self._asked_at = 0.0
        self._given_up = 0
        before = self.relay.count
        super().heard(data)
        self.last_used = now = monotonic()
        wait = max(
            self._output.take(data.count(b"\n"), now),
            self._messages.take(self.relay.count - before, now),
        )
        if wait:
            self._pause(1, wait)

    def noted(self, data: bytes) -> None:
        """Take some of its standard error."""
        super().noted(data)
        *lines, rest = (self._error_line + data).split(b"\n")
        for line in lines:
            self._processes.log.write(line, self.pid)
        self._error_line = rest[:_MAX_LINE]
        wait = self._errors.take(len(data), monotonic())
        if wait:
            self._pause(2, wait)

    def _pause(self, fd: int, seconds: float) -> None:
        """Read no more from a pipe for a while, so the process has to wait."""
        pipe = None if self._process is None else cast("asyncio.ReadTransport", self._process.get_pipe_transport(fd))
        if pipe is None or pipe.is_closing():
            return
        pipe.pause_reading()

        def resume() -> None:
            if not pipe.is_closing():
                pipe.resume_reading()

        asyncio.get_running_loop().call_later(seconds, resume)

    def process_ended(self) -> None:
        """Take note of its end."""
        super().process_ended()
        if self._error_line:
            self._processes.log.write(self._error_line, self.pid)
            self._error_line = b""
        self._processes.ended(self)

    async def close(self) -> None:
        """Close its input, and end it if that doesn't."""
        self.closing = True
        await super().close()


class Relay:
    """Passes on what a process says to the client that has it."""

    __slots__ = ("_listener", "count", "wanted")

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self.count = 0
        """Messages so far that aren't answers."""
        self.wanted: asyncio.Event = asyncio.Event()

    def attach(self, listener: Listener) -> None:
        self._listener = listener
        self.wanted = listener.wanted

    def receive(self, message: Envelope, transport: Transport, request_id: int = 0) -> None:
        self.count += 1
        if self._listener is not None:
            self._listener.receive(message, transport, request_id)

    def interrupted(self, transport: Transport, fault: ClientError | None) -> None:
        if self._listener is not None:
            self._listener.interrupted(transport, fault)


class _Flow:
    """How much of something came in the current second."""

    __slots__ = ("_amount", "_limit", "_since")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._amount = 0
        self._since = -math.inf

    def take(self, amount: int, now: float) -> float:
        """Return the seconds to wait before more is read."""
        if now - self._since >= 1:
            self._since = now
            self._amount = 0
        self._amount += amount
        return max(0.0, self._since + 1 - now) if self._amount > self._limit else 0.0


class _Crashes:
    """When the process of one key may start again."""

    __slots__ = ("count", "until")

    def __init__(self) -> None:
        self.count = 0
        self.until = 0.0

    def add(self, now: float, born: float) -> None:
        """Count a crash. The first start after one doesn't wait; the wait doubles from there, with jitter."""
        self.count = max(0, self.count - int((now - born) / _FORGIVEN)) + 1
        doubled = min(self.count - 2, _MAX_DOUBLED)
        delay = 0.0 if doubled < 0 else min(_FIRST_DELAY * 2**doubled, _LONGEST_DELAY)
        self.until = now + delay * random.uniform(0.75, 1)  # noqa: S311  it's no secret


class ErrorLog:
    """Logs what the processes of one upstream write to standard error, up to a rate."""

    __slots__ = ("_allowed", "_dropped", "_name", "_since")

    def __init__(self, name: str) -> None:
        self._name = name
        self._allowed: float = _BURST
        self._since = monotonic()
        self._dropped = 0

    def write(self, line: bytes, pid: int) -> None:
        """Log one line, cut at a limit and without control characters."""
        now = monotonic()
        self._allowed = min(_BURST, self._allowed + (now - self._since) * _LINES)
        self._since = now
        if self._allowed < 1:
            self._dropped += 1
            return
        self._allowed -= 1
        text = line[:_MAX_LINE].decode("utf-8", "replace").translate(_SYSTEM).rstrip()
        if text:
            _logger.info("%s: %s", self._name, text, extra={"upstream": self._name, "pid": pid})

    def flush(self) -> None:
        """Log how many lines were left out since the last time."""
        if self._dropped:
            _logger.warning("%s: left out %d lines of standard error", self._name, self._dropped)
            self._dropped = 0


class Watchdog(asyncio.SubprocessProtocol):
    """A small process that ends our process groups when this process is gone. `watchdog.py` is its program.

    A server that ignores the end of its input would outlive us otherwise. PR_SET_PDEATHSIG isn't enough: it reaches
    neither what a server has started (``npx``, ``uv run``) nor systems other than Linux, and it ends a process with the
    thread that started it.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: asyncio.SubprocessTransport | None = None
        self._exited = asyncio.Event()
        self._lock = asyncio.Lock()
        self._closing = False

    @property
    def missing(self) -> bool:
        """Whether it was killed while it's needed."""
        return bool(self._groups) and self._process is None and not self._closing

    async def start(self) -> None:
        """Start it unless it runs."""
        if self._process is None and sys.platform != "win32":
            async with self._lock:
                await self._start()

    async def _start(self) -> None:
        if self._process is not None or self._closing:
            return
        program = Path(__file__).with_name("watchdog.py")
        try:
            self._process, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                sys.executable,
                "-I",
                "-S",
                program,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        except OSError as exc:
            _logger.warning("Processes of upstreams may outlive this one: no watchdog starts: %s", exc)
            return
        self._exited.clear()
        for group in self._groups:
            self._write(b"+%d\n" % group)

    def add(self, group: int) -> None:
        """Guard a process group."""
        self._groups.add(group)
        self._write(b"+%d\n" % group)

    def discard(self, group: int) -> None:
        """Leave a process group alone, because it's gone."""
        if group in self._groups:
            self._groups.discard(group)
            self._write(b"-%d\n" % group)

    def _write(self, line: bytes) -> None:
        if self._process is not None:
            cast("asyncio.WriteTransport", self._process.get_pipe_transport(0)).write(line)

    def process_exited(self) -> None:
        """Take note of its end."""
        if self._process is not None:
            self._process.close()
        self._process = None
        self._exited.set()

    async def close(self) -> None:
        """End it. It ends what is still running."""
        self._closing = True
        async with self._lock:
            if self._process is not None:
                cast("asyncio.WriteTransport", self._process.get_pipe_transport(0)).close()
                await self._exited.wait()


def _limit_memory(pid: int, limit: int, name: str) -> None:
    """Limit the memory of a process that has just started, and of what it starts."""
    try:
        import resource  # noqa: PLC0415  not on Windows

        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    except (ImportError, AttributeError):
        _logger.warning("%s: this system has no limit for the memory of another process", name)
    except (OSError, ValueError) as exc:
        _logger.warning("%s: the memory limit isn't set: %s", name, exc)


def _memory(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it isn't known."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        import resource  # noqa: PLC0415  not on Windows

        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
        return pages * resource.getpagesize()
    return 0
