"""Process pools for stdio upstreams: bounded, restarted with backoff, and cleaned up.

A `ProcessPool` belongs to one worker. Its `UpstreamProcesses` provide client targets, one per key: one process for all
callers, one per principal, or one per session. Each connection to a target is one process. If the process dies, the
next call starts another one, as for every client connection. Slots for processes belong to owners (see `Pool`). A
process leads a process group, which ends with it. A watchdog ends the groups of a killed worker.
"""

import asyncio
import contextlib
import logging
import math
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import cast

from msgspec import Struct, field, structs

from millstream._gateway.errors import InUse
from millstream._gateway.options.process import ProcessOptions
from millstream._http.client import RateMeter
from millstream._override import override
from millstream._protocol.jsonrpc import Envelope
from millstream._protocol.principal import Share
from millstream._protocol.redaction import redact_foreign
from millstream._recent import Recent
from millstream._server.pool import Pool
from millstream._tasks import Tasks, retry_delay
from millstream.client import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    Listener,
    SessionLost,
    Transport,
    TransportRequest,
)
from millstream.client._server_messages import ServerMessages
from millstream.client.lowlevel import Command, DuplexTransport, StdioTransport

_logger = logging.getLogger("millstream.gateway.processes")

_MAX_BOOTING = 4
"""Maximum concurrently booting processes. More would only slow each other down."""
_BOOT_TIMEOUT = 15.0
"""Seconds after which a process without output is no longer treated as booting."""
_MAX_KEYS = 1000
"""Maximum number of keys whose crashes are remembered."""
_FIRST_DELAY = 0.25
_MAX_WAIT = 0.5
"""Maximum seconds of a delay for which a call waits instead of being refused."""
_LONGEST_DELAY = 60.0
_LONGEST_DELAY_AFTER_CALL = 1.0
"""Maximum seconds of delay after a crash during a call, so that one caller can't block the process for others."""
_UPTIME_PER_CRASH = 5.0
"""Seconds of uptime that cancel out one crash."""
_PING_TIMEOUT = 5.0
"""Seconds for a process to send anything after a ping, which follows a timeout."""
_PING = b'{"jsonrpc":"2.0","id":0,"method":"ping"}'
"""The id of pings. The client never uses it, so the response is ignored, even if it's an error."""
_MAX_LINE = 2000
"""Maximum size of a logged line of standard error, in bytes."""
_ERROR_LINES_PER_SECOND = 100
"""Maximum logged lines of standard error per second and upstream, half of them for one owner."""
_ERROR_BYTES_PER_SECOND = 4 * 1024 * 1024
"""Maximum bytes of standard error to read per second. Beyond that, the process blocks."""
_MESSAGES_PER_SECOND = 5000
"""Maximum notifications and requests to read from a process per second. Beyond that, the process blocks."""
_LINES_PER_SECOND = 100_000
"""Maximum lines of all kinds to read per second. Beyond that, the process blocks."""
_CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}
"""Control characters, removed before logging."""


_MORE_PROCESSES = 'Raise max_processes, or let all callers share one process with isolation = "shared".'
_BUSY = (
    "Try again later. Its operator can raise max_processes, or let all callers share one process with "
    'isolation = "shared".'
)


class ProcessReport(Struct, frozen=True, kw_only=True):
    """The current processes of one upstream. ``processes.describe().running``"""

    running: int
    """Running processes, including spare, starting, and stopping ones."""
    spare: int
    """Spare processes."""
    waiting: int
    """Connections waiting for a process."""
    limit: int
    """Maximum running processes."""
    started: int
    """Processes started so far."""
    crashed: int
    """Processes that crashed, hung, or broke the protocol."""
    ended_idle: int
    """Processes that were stopped because they were idle, or to free a slot."""
    memory: int
    """Memory in use, in bytes, or 0 if the system has no /proc."""
    retry_seconds: float
    """Longest remaining restart delay of all keys, in seconds, or 0 if there's none."""
    last_error: str
    """Reason of the last crash, or empty if there was none."""


class _Crashes(Struct):
    """A key's crashes."""

    count: int = 0
    retry_at: float = 0.0


class ProcessTarget(Struct, frozen=True):
    """A client target: a key's process."""

    processes: "UpstreamProcesses"
    key: str
    owner: str

    def new_transport(self, listener: Listener, background: Tasks) -> Transport:
        """Return a transport that isn't open yet. It uses a spare process, or starts one when it opens."""
        processes, owner = self.processes, self.owner
        transport, pools = ProcessTransport(processes), (processes.places, processes.pool.places)
        while processes.spares and all(places.has_room(owner, 0) for places in pools):
            spare = processes.spares.popleft()
            if not spare.lost:
                for places in pools:
                    places.move("", owner)
                transport = spare
                break
        transport.key, transport.owner, transport.attached, transport.last_used = self.key, owner, True, monotonic()
        transport.current.listener, transport.current.subscribed = listener, listener.subscribed
        processes.warm_up()
        return transport


class UpstreamProcesses:
    """The processes of one upstream, created by `ProcessPool.add`."""

    last_crash: "ProcessTransport | None" = None
    """Last process that crashed."""
    _waiting = 0

    def __init__(self, pool: "ProcessPool", config: ProcessOptions, command: Command) -> None:
        self.pool: ProcessPool = pool
        self.config: ProcessOptions = config
        self.command: Command = command
        self.running: set[ProcessTransport] = set()
        """Processes that are running, starting, or stopping."""
        self.min_idle_seconds: float = pool.min_idle_seconds
        self.places: Pool = Pool(config.max_processes, on_wait=partial(_make_room, self), several=pool.places.several)
        self.log: ErrorLog = ErrorLog(config.name)
        self.spares: deque[ProcessTransport] = deque()
        self._refills = Tasks()
        self.crashes: Recent[str, _Crashes] = Recent(_MAX_KEYS)
        self.counts: Counter[str] = Counter()
        self.on_hang: Callable[[ConnectionLost], None] = lambda error: None
        """Called after a hung process was killed."""

    def become(self, config: ProcessOptions) -> None:
        """Use other limits, and keep the processes."""
        self.config = config
        self.places.resize(config.max_processes)

    def target(self, key: str = "", *, owner: str = "") -> ProcessTarget:
        """Return a target for a client.

        Args:
            key: The id of the principal or session that the process serves, or empty for one that all callers share.
                Crashes of one key don't delay others.
            owner: The caller whose share of the processes it uses (see `Call.owner`), or empty for one that all callers
                share.

        Example:
            ``Client(pool.add(config, Command(("mcp-server-files", "."))).target())``
        """
        return ProcessTarget(self, key, owner)

    def warm_up(self) -> None:
        """Start the configured number of spare processes in the background, if there are free slots."""
        if not self._refills and self._may_warm_up():
            self._refills.spawn(self._start_spares())

    def _may_warm_up(self) -> bool:
        has_room = self.places.has_room("") and self.pool.places.has_room("") and not self._waiting
        return has_room and len(self.spares) < self.config.spare_processes and not self._delay("")

    async def _start_spares(self) -> None:
        while self._may_warm_up():
            transport = ProcessTransport(self)
            try:
                await transport.open()
            except ClientError as exc:
                _logger.warning("%s: a spare process couldn't start: %s", self.config.name, exc)
                return
            self.spares.append(transport)

    # Limits

    async def admit(self, transport: "ProcessTransport") -> None:
        """Wait until another process may start, also for a short delay after a crash, and reserve a slot.

        Raises:
            InUse: The processes are in use.
            ConnectFailed: It crashed too often recently.
        """
        delay = self._delay(transport.key)
        if delay <= _MAX_WAIT:
            await asyncio.sleep(delay)
        else:
            raise ConnectFailed(
                f"The process of {self.config.name} exited {self.crashes[transport.key].count} times and restarts in "
                f"{math.ceil(delay)} s. {self._last_error}".rstrip()
            )
        owner, pool = transport.owner, self.pool
        self._waiting += 1
        try:
            with contextlib.ExitStack() as reserved:
                for places, what in (
                    (self.places, "its {} processes"),
                    (pool.places, "this gateway's {} processes"),
                    (pool.starts, "the {} processes that this gateway can start at a time"),
                ):
                    if not await places.acquire(owner):
                        raise InUse(places, owner, what, remedy=_MORE_PROCESSES, advice=_BUSY)
                    reserved.callback(places.leave, owner)
                reserved.pop_all()
        finally:
            self._waiting -= 1
        self.running.add(transport)
        transport.boot_owner, transport.started_at = owner, monotonic()

    def _delay(self, key: str) -> float:
        """Return the seconds until a process may start for a key."""
        crashes = self.crashes.get(key)
        return 0.0 if crashes is None else max(0.0, crashes.retry_at - monotonic())

    @property
    def _last_error(self) -> str:
        return "" if self.last_crash is None else str(self.last_crash.fault or "")

    def sweep(self, now: float) -> None:
        """Stop idle and hung processes and replace spare ones."""
        for transport in list(self.running):
            transport.check(now)
            if transport.attached and transport.has_expired(now):
                transport.retire()
        _make_room(self)
        self.log.flush()
        self.warm_up()

    def largest_memory(self) -> int:
        """Return the memory of the largest process, in bytes, or 0 if it isn't known."""
        return max((_resident_memory(each.pid) for each in self.running), default=0)

    def describe(self) -> ProcessReport:
        """Return a report on the processes."""
        return ProcessReport(
            running=len(self.running),
            spare=len(self.spares),
            waiting=self._waiting,
            limit=self.places.maximum,
            started=self.counts["started"],
            crashed=self.counts["crashed"],
            ended_idle=self.counts["ended_idle"],
            memory=sum(_resident_memory(each.pid) for each in self.running),
            retry_seconds=max((self._delay(key) for key in self.crashes), default=0.0),
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """Stop all processes and start no more."""
        await self._refills.close()
        await asyncio.gather(*(transport.close() for transport in list(self.running)))


class ProcessPool:
    """The processes of one worker's upstreams."""

    def __init__(self, *, limit: int = 512, starts: int = _MAX_BOOTING, min_idle_seconds: float = 5.0) -> None:
        """Create an empty pool. Processes start when a client connects to their target.

        Args:
            limit: Maximum running processes.
            starts: Maximum processes that boot at once.
            min_idle_seconds: Seconds without a call after which a spare process, or a process of an owner that holds
                several, can be stopped in favor of another owner's. Others keep theirs for `idle_seconds`.
        """
        self.min_idle_seconds: float = min_idle_seconds
        self.background: Tasks = Tasks()
        self.places: Pool = Pool(limit, on_wait=partial(_make_room, self))
        self.starts: Pool = Pool(starts)
        self.watchdog: Watchdog = Watchdog()
        self._upstreams: list[UpstreamProcesses] = []

    def add(self, config: ProcessOptions, command: Command) -> UpstreamProcesses:
        """Register the processes of one upstream without starting any.

        Args:
            config: The upstream, with the limits of its processes.
            command: How to start a process.
        """
        processes = UpstreamProcesses(self, config, command)
        self._upstreams.append(processes)
        return processes

    async def remove(self, processes: UpstreamProcesses) -> None:
        """Stop the processes of an upstream."""
        await processes.close()
        self._upstreams.remove(processes)

    @property
    def running(self) -> list["ProcessTransport"]:
        """All processes that are running, starting, or stopping."""
        return [transport for processes in self._upstreams for transport in processes.running]

    def sweep(self, now: float) -> None:
        """Stop idle and hung processes. Call it once a second: ``host.every_second(pool.sweep)``.

        Args:
            now: Current time of `time.monotonic`.
        """
        for processes in self._upstreams:
            processes.sweep(now)
        _make_room(self)
        if self.watchdog.is_missing:
            self.background.spawn(self.watchdog.start())

    async def close(self) -> None:
        """Stop all processes."""
        try:
            await asyncio.gather(*(processes.close() for processes in self._upstreams))
        finally:
            await self.background.close()
            await self.watchdog.close()


class ProcessTransport(StdioTransport):
    """One process of a pool."""

    key: str = ""
    owner: str = ""
    """The caller whose share of the processes it uses, or empty for spare and shared ones."""
    attached: bool = False
    """Whether a client uses it."""
    closing: bool = False
    """Whether the pool is stopping it."""
    boot_owner: str | None = None
    """The owner whose share of starting processes it uses, or None if it isn't starting."""
    started_at: float = 0.0
    _waiting_since = 0.0
    """Time of the first request since the last output, or 0 without one."""
    _unanswered_count = 0
    """Number of timed-out or canceled requests since the last output."""
    _asked_at = 0.0
    """Time of the ping since the last output, or 0 without one. Until `_verdict`, the process gets no requests."""

    def __init__(self, processes: UpstreamProcesses) -> None:
        self.current: ReplaceableListener = ReplaceableListener()
        name, value = processes.pool.watchdog.mark
        command = structs.replace(processes.command, env={**processes.command.env, name: value})
        super().__init__(
            command,
            self.current,
            processes.pool.background,
            processes.config.max_bytes,
            show=lambda line: processes.log.write(line, self.pid, self.owner),
        )
        self._processes = processes
        self._origin = f"{command.argv[0]} in {Path(command.cwd or '').expanduser().absolute()}"
        self.last_used: float = monotonic()
        self._output = RateMeter(_LINES_PER_SECOND)
        self._messages = RateMeter(_MESSAGES_PER_SECOND)
        self._errors = RateMeter(_ERROR_BYTES_PER_SECOND)
        self._verdict = asyncio.Event()

    @property
    def pid(self) -> int:
        """Id of the process, even after its exit, or 0 before its start."""
        return 0 if self.process is None else self.process.get_pid()

    @override
    async def open(self) -> None:
        """Start the process once a slot is free.

        Raises:
            TargetError: The program doesn't exist.
            InUse: The processes are in use.
            ConnectFailed: It crashed too often recently, or the system couldn't start it.
        """
        if self.process is not None:
            return
        processes = self._processes
        await processes.admit(self)
        try:
            await processes.pool.watchdog.start()
            await super().open()
        except BaseException:
            if self.process is None:
                self._forget()
            raise

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record the start of the process and limit its memory."""
        super().connection_made(transport)
        processes = self._processes
        processes.counts["started"] += 1
        level = logging.INFO if processes.counts["started"] == 1 else logging.DEBUG  # each session may start one
        _logger.log(level, "%s: started process %d, %s", processes.config.name, self.pid, self._origin)
        if processes.config.memory_limit is not None:
            _limit_memory(self.pid, processes.config.memory_limit, processes.config.name)
        processes.pool.watchdog.add(self.pid)

    @override
    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response."""
        self.last_used = now = monotonic()
        if self._unanswered_count:
            self.check(now)
        if self._asked_at:
            with self.current.pause_timeouts(request.id):
                await self._verdict.wait()
            if self.lost:  # it didn't get this request
                raise SessionLost(f"The process of {self._processes.config.name} was replaced.") from self.fault
            now = monotonic()
        self._waiting_since = self._waiting_since or now
        try:
            if not self.writable.is_set():
                await self.wait_until_writable()
            return await DuplexTransport.exchange(self, request)
        except asyncio.CancelledError:  # the request took too long, or its caller was canceled
            self._unanswered_count += 1
            raise

    def idle_seconds(self, now: float) -> float:
        """Return the seconds since the process was last used. Negative while it's in use or stopping."""
        stops = self.closing or self.exited.is_set() or not self.pid
        works = self.waiting or not self.writable.is_set() or self.current.subscribed.is_set()
        return -1.0 if stops or works else now - self.last_used

    def has_expired(self, now: float) -> bool:
        """Return whether it has been idle for `ProcessOptions.idle_seconds`."""
        return 0 < self._processes.config.idle_seconds < self.idle_seconds(now)

    def retire(self) -> None:
        """Stop the process in the background. Its connection gets another one when used again."""
        self.closing = True
        self._processes.counts["ended_idle"] += 1
        self.end(SessionLost(f"The process of {self._processes.config.name} was stopped because it was idle."))
        self._processes.pool.background.spawn(self.close())

    def check(self, now: float) -> None:
        """Ping the process after a timeout, and kill it if it's hung."""
        if self.boot_owner is not None and now - self.started_at > _BOOT_TIMEOUT:
            self.finish_boot()
        silence = now - self._waiting_since if self._waiting_since else 0.0
        processes = self._processes
        if not self._unanswered_count or silence <= processes.config.timeout or self.closing:
            self._asked_at = 0.0
            self._verdict.set()
        elif not self._asked_at:  # callers may have caused this: only silence after our own request counts
            self._asked_at = now
            self._verdict.clear()
            self._processes.pool.background.spawn(self._ping())
        elif now - self._asked_at > _PING_TIMEOUT:
            hung = ConnectionLost("The process stopped responding, so it was killed. Another one replaces it.")
            self.end(hung)
            self.kill(signal.SIGKILL)
            processes.on_hang(hung)

    async def _ping(self) -> None:
        with contextlib.suppress(ClientError):
            await self.send(_PING, "ping")

    @override
    def end(self, fault: ClientError | None = None) -> None:
        """See `DuplexTransport`."""
        super().end(fault)
        self._verdict.set()

    def finish_boot(self) -> None:
        """Let another process boot."""
        if self.boot_owner is not None:
            owner, self.boot_owner = self.boot_owner, None
            self._processes.pool.starts.leave(owner)

    # Events of the process

    @override
    def feed_stdout(self, data: bytes) -> None:
        """Process a chunk of standard output."""
        self.finish_boot()
        self._waiting_since = self._asked_at = 0.0
        self._unanswered_count = 0
        self._verdict.set()
        before = self.current.count
        super().feed_stdout(data)
        self.last_used = now = monotonic()
        self._pause(
            1, max(self._output.take(data.count(b"\n"), now), self._messages.take(self.current.count - before, now))
        )

    @override
    def feed_stderr(self, data: bytes) -> None:
        """Process a chunk of standard error."""
        super().feed_stderr(data)
        self._pause(2, self._errors.take(len(data), monotonic()))

    def _pause(self, fd: int, seconds: float) -> None:
        """Stop reading a pipe for a while, so that the process blocks."""
        if not seconds or self.process is None:
            return
        pipe = cast("asyncio.ReadTransport", self.process.get_pipe_transport(fd))
        if not pipe.is_closing():
            pipe.pause_reading()
            asyncio.get_running_loop().call_later(seconds, pipe.resume_reading)

    @override
    def process_exited(self) -> None:
        """Record that the process has exited and was reaped."""
        super().process_exited()
        processes = self._processes
        processes.pool.watchdog.discard(self.pid)
        self._forget()
        if self.closing:
            return
        processes.counts["crashed"] += 1
        processes.last_crash = self
        crashes, now = processes.crashes.get(self.key, _Crashes()), monotonic()
        processes.crashes.keep(self.key, crashes)
        crashes.count = max(0, crashes.count - int((now - self.started_at) / _UPTIME_PER_CRASH)) + 1
        if crashes.count > 1:  # the first restart is immediate
            longest = _LONGEST_DELAY_AFTER_CALL if self.has_served and self.waiting > 0 else _LONGEST_DELAY
            crashes.retry_at = now + retry_delay(crashes.count - 2, _FIRST_DELAY, longest)
        exit_code = self.process and self.process.get_returncode()
        message = "%s: process %d exited with code %s (%s)"
        _logger.warning(message, processes.config.name, self.pid, exit_code, self._origin)

    def _forget(self) -> None:
        """Release what the process holds."""
        processes = self._processes
        if self not in processes.running:
            return  # `open` was canceled after the process had started
        with contextlib.suppress(ValueError):
            processes.spares.remove(self)
        self.finish_boot()
        processes.running.remove(self)
        processes.places.leave(self.owner)
        processes.pool.places.leave(self.owner)

    @override
    async def close(self) -> None:
        """Close standard input, and terminate the process if it doesn't exit."""
        self.closing = True
        await super().close()


class ReplaceableListener(Struct, eq=False):
    """Forwards messages from a process to its current client."""

    listener: Listener | None = None
    count: int = 0
    """Number of messages so far that aren't responses."""
    filters: None = None  # a gateway's connections have no extensions
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, message: Envelope, transport: Transport, request_id: int = 0) -> None:
        self.count += 1
        if self.listener is not None:
            self.listener.receive(message, transport, request_id)

    def pause_timeouts(self, request_id: int) -> contextlib.AbstractContextManager[None]:
        listener = self.listener
        return listener.pause_timeouts(request_id) if isinstance(listener, ServerMessages) else contextlib.nullcontext()

    def on_interruption(self, transport: Transport, fault: ClientError | None) -> None:
        if self.listener is not None:
            self.listener.on_interruption(transport, fault)


class ErrorLog:
    """A rate-limited log of the standard error from one upstream's processes."""

    _dropped_count = 0

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines = Share(_ERROR_LINES_PER_SECOND)

    def write(self, line: str, pid: int, owner: str = "") -> None:
        """Log one line of an owner's process, truncated and without control characters."""
        if not self._lines.take(owner):
            self._dropped_count += 1
            return
        text = line[:_MAX_LINE].translate(_CONTROL_CHARACTERS).rstrip()
        if text:
            _logger.info("%s: %s", self._name, redact_foreign(text), extra={"upstream": self._name, "pid": pid})

    def flush(self) -> None:
        """Allow more lines, once a second, and log the number of lines dropped since the last call."""
        self._lines = Share(_ERROR_LINES_PER_SECOND)
        if self._dropped_count:
            _logger.warning("%s: dropped %d lines of standard error", self._name, self._dropped_count)
            self._dropped_count = 0


class Watchdog:
    """A small process that ends our process groups when this process has exited. Its program is `watchdog.py`.

    Without it, a server that ignores the end of its input would outlive us. PR_SET_PDEATHSIG isn't enough: it doesn't
    reach child processes (``npx``, ``uv run``), exists only on Linux, and takes effect when the starting thread ends.
    """

    _process: asyncio.subprocess.Process | None = None
    _closing = False

    def __init__(self) -> None:
        self.mark: tuple[str, str] = ("_MILLSTREAM_GATEWAY", token_hex(16))
        """A variable in the environment of all processes to end."""
        self._groups: set[int] = set()
        self._lock = asyncio.Lock()

    @property
    def _input(self) -> asyncio.StreamWriter | None:
        """Standard input of the watchdog, or None while it isn't running."""
        process = self._process
        return None if process is None or process.returncode is not None else process.stdin

    @property
    def is_missing(self) -> bool:
        """Whether the watchdog was killed while it's needed."""
        return bool(self._groups) and self._input is None and not self._closing

    async def start(self) -> None:
        """Start the watchdog unless it's running."""
        async with self._lock:
            if self._input is not None or self._closing or sys.platform == "win32":
                return
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    Path(__file__).with_name("watchdog.py"),
                    "=".join(self.mark),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={},
                    start_new_session=True,
                )
            except OSError as exc:
                _logger.warning("Upstream processes may outlive this one, because the watchdog can't start: %s", exc)
                return
            for group in self._groups:
                self._write(b"+%d\n" % group)

    def add(self, group: int) -> None:
        """Register a process group."""
        self._groups.add(group)
        self._write(b"+%d\n" % group)

    def discard(self, group: int) -> None:
        """Remove a process group that has ended."""
        self._groups.discard(group)
        self._write(b"-%d\n" % group)

    def _write(self, line: bytes) -> None:
        if self._input is not None:
            self._input.write(line)

    async def close(self) -> None:
        """Stop the watchdog, which ends all remaining groups."""
        self._closing = True
        async with self._lock:
            if self._process is not None and self._input is not None:
                self._input.close()
                await self._process.wait()


def _make_room(pool: UpstreamProcesses | ProcessPool) -> None:
    """Stop an idle process, if an owner is waiting: the least recently used one of the largest owner that holds more.

    What a process remembers is lost with it. So an owner's only process is stopped no earlier than without this.
    """
    places, among = pool.places, pool.running
    if sum(each.closing for each in among) >= places.waiting.used:
        return
    owner, now = places.next_owner, monotonic()
    count, waiting = places.count, places.count(owner)

    def may_stop(each: ProcessTransport) -> bool:
        several = each.owner not in ("", owner) and count(each.owner) > waiting + 1
        if several or not each.attached:
            return each.idle_seconds(now) >= pool.min_idle_seconds
        return (each.owner in ("", owner) or count(each.owner) > waiting) and each.has_expired(now)

    if idle := [each for each in among if may_stop(each)]:
        min(idle, key=lambda each: (each.attached, -count(each.owner), each.last_used)).retire()


def _limit_memory(pid: int, limit: int, name: str) -> None:
    """Limit the memory of a process that has just started, and of its children.

    Memory that's only reserved isn't counted, so Node and Go programs also work.
    """
    try:
        import resource  # noqa: PLC0415  not on Windows

        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    except (ImportError, AttributeError):
        _logger.warning("%s: this system can't limit the memory of another process", name)
    except (OSError, ValueError) as exc:
        _logger.warning("%s: the memory limit couldn't be set: %s", name, exc)


def _resident_memory(pid: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if unknown."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGESIZE
    return 0
