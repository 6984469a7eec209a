"""Parts for operators: the audit log, metrics, health, and a warning about sibling processes without a shared store."""

import asyncio
import errno
import hashlib
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from millstream._app.parts import OwnPart
from millstream._http.message import JSON_HEAD, TEXT_HEAD, HttpRequest, Response
from millstream._override import override
from millstream._parts import WATCH, PartHost, Route
from millstream._protocol.admission import Handshake, target_name
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import Json, encode
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL
from millstream._server.calls.call import Call
from millstream._server.calls.sessions import Session
from millstream._stores import open_store
from millstream._stores.base import Store
from millstream._stores.workers import parent_address, read_again
from millstream._telemetry.logs import stamp
from millstream._telemetry.messages import AuditEntry, AuditLog, session_hash
from millstream._telemetry.metrics import EndedProcesses, Metrics, dump, metrics_handler, render_sums
from millstream._telemetry.metrics import render as metrics_text
from millstream._telemetry.process import resident_bytes

if TYPE_CHECKING:
    from millstream._app.server_process.worker_process import WorkerState


logger = logging.getLogger("millstream")


class AuditPart(OwnPart):
    """Writes every call and publication with its outcome, and every rejected credential, to the server's audit log.

    Failures to write are logged, and don't stop calls.
    """

    name: str = "audit"
    _log: AuditLog
    _failed = False
    """Whether the last line couldn't be written."""

    async def open(self, host: PartHost) -> None:
        """Open the audit log.

        Raises:
            LocalError: The file can't be used.
        """
        self._log = AuditLog(Path(self.definition.settings.audit_log))
        host.observe(self._observe)
        host.observe_messages(self._observe_message)
        if host.guard is not None:
            host.guard.on_refused(self._refuse)

    @override
    async def close(self) -> None:
        """Write pending lines and close the file."""
        self._log.close()

    def _observe(self, call: Call, seconds: float, answer: bytes) -> None:
        failure = call.failure
        entry = AuditEntry(
            "",
            call.method,
            call.name or target_name(call.method, call.params),
            "ok" if failure is None else failure.outcome,
            address="" if call.origin is None else call.origin.peer,
            transport=call.transport,
            session="" if call.session is None else session_hash(call.session.id),
        )
        self._write(entry, call.principal)

    def _observe_message(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        opening: Handshake | None = None,
    ) -> None:
        """Write publications, which aren't calls."""
        if method == "hub/publish":
            self._write(AuditEntry("", method, target, status or "ok", address=address, transport=transport), principal)

    def _refuse(self, address: str) -> None:
        self._write(AuditEntry("", "sign-in", "", "refused", address=address))

    def _write(self, entry: AuditEntry, principal: Principal | None = None) -> None:
        entry.at = stamp(time.time())
        if principal is not None:
            entry.subject, entry.issuer, entry.client = principal.subject, principal.issuer, principal.client
        try:
            self._log.write(entry)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                logger.error("The audit log can't be written: %s. Calls continue without it.", exc)
            self._failed = True


INTERVAL = 1.0
_KEPT = "metrics:"
_ENDED = "ended-metrics"
_TTL = 30 * 86400.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(EndedProcesses).decode


class MachineMetrics(Struct, eq=False):
    """The metrics of this worker, combined with the metrics of the other workers on this machine.

    Each worker stores its figures with the parent process every second if they changed, and before rendering. When a
    worker exits, its figures are added to a common record, so counters never decrease.
    """

    metrics: Metrics
    store: Store
    """A store shared only by this machine's workers."""
    _left: bytes = b""
    """The figures stored last."""

    async def render(self) -> bytes:
        """Return the sums over all workers as Prometheus text, or this worker's figures if the parent is
        unavailable.
        """
        try:
            await self.leave()
            return await self._sums()
        except (LocalError, OSError) as exc:
            logger.warning("The metrics cover only one worker, because the others can't be queried: %s", exc)
            return metrics_text(self.metrics)

    async def run(self) -> None:
        """Store the figures whenever they change, until canceled."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.leave()
            except (LocalError, OSError):
                logger.debug("The parent process didn't accept this worker's metrics", exc_info=True)

    async def leave(self) -> None:
        """Store the current figures with the parent."""
        data = dump(self.metrics)
        if data != self._left:
            await self.store.kv.put(_KEPT + self.store.workers.me, data, _TTL)
            self._left = data

    async def _sums(self) -> bytes:
        kv, workers = self.store.kv, self.store.workers
        keys = sorted(await kv.keys(_KEPT))
        alive: list[bytes] = []
        for key, data in zip(keys, await kv.get_many(keys), strict=True):
            if data is None:
                continue
            if await workers.alive(name := key.removeprefix(_KEPT)):
                alive.append(data)
            else:
                await self._fold(name, data)
        ended = await kv.get(_ENDED)
        return render_sums(alive, _decode(ended).readings if ended is not None else ())

    async def _fold(self, name: str, data: bytes) -> None:
        """Add the figures of an exited worker to the common record."""
        kv = self.store.kv
        for attempt in count():
            old = await read_again(kv, _ENDED, attempt)
            ended = EndedProcesses([], []) if old is None else _decode(old)
            if await kv.compare_and_set(_ENDED, old, _encode(ended.add(name, data)), _TTL):
                break
        await kv.delete(_KEPT + name)


class MetricsPart(OwnPart):
    """Opens the metrics registry for the parts after it and serves it as `/metrics`."""

    name: str = "metrics"

    async def open(self, host: PartHost) -> None:
        """Create the registry.

        Raises:
            LocalError: There are several workers, and their parent isn't responding.
        """
        health = host.store_health
        host.metrics = metrics = Metrics()
        metrics.read(
            "gauge",
            "millstream_backend_up",
            "The store responds.",
            lambda: {(health.kind,): int(health.up)},
            ("kind",),
            merge="min",
        )
        if not parent_address():

            async def render() -> bytes:
                return metrics_text(metrics)
        else:
            # Not the server's store, which several machines may share.
            store = open_store("memory://")
            await store.open()
            host.stack.push_async_callback(store.close)
            machine = MachineMetrics(metrics, store)
            host.stack.push_async_callback(machine.leave)
            host.run(machine.run())
            render = machine.render
        route = Route({"GET": metrics_handler(render, health.look)}, scope=WATCH, private=True)
        host.on_http(partial(host.routes.add, "/metrics", route))


_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


class ProbesPart(OwnPart):
    """Serves `/health`, `/livez`, and `/readyz`: the server's state for operators, orchestrators, and load balancers.

    They respond to every client with any Host. Only clients that may read the dashboard get reasons and figures. Others
    get the status, and how many workers and upstreams are healthy.
    """

    name: str = "probes"

    async def open(self, host: PartHost) -> None:
        """Add the paths of the health checks."""
        for path, handler in {"/health": self.health, "/livez": self.live, "/readyz": self.ready}.items():
            host.routes.add(path, Route({"GET": handler}, public=True))
        self._host = host

    async def live(self, request: HttpRequest) -> Response:
        """Respond while the event loop is running."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: HttpRequest) -> Response:
        """Return whether to send new work here, which is False while the server drains.

        An unavailable store doesn't matter: plain calls don't need it, and an outage of a shared store would remove all
        workers at once. A degraded server is ready, and gives the reason.
        """
        if self._host.draining():
            return Response(b"draining\n", 503, _LATER)
        reasons, text = self._host.degraded_reasons(), "ok"
        if reasons:
            text = f"degraded: {'; '.join(reasons)}" if await self._may_watch(request) else "degraded"
        return Response(f"{text}\n".encode(), 200, TEXT_HEAD)

    async def health(self, request: HttpRequest) -> Response:
        """Return the members of `/health`. Failures outside of the server don't cause a 503, because a restart wouldn't
        help."""
        host = self._host
        up = await host.store_health.look()
        draining, reasons = host.draining(), host.degraded_reasons()
        facts: Json = {"status": "draining" if draining else "degraded" if reasons or not up else "ok"}
        if await self._may_watch(request):
            facts |= {**({"reasons": reasons} if reasons else {}), **self._figures()}
        else:
            facts |= self._counts()
        fails = draining or host.degraded_reasons(any_kind=False)
        return Response(encode(facts), 503 if fails else 200, JSON_HEAD + _FRESH)

    async def _may_watch(self, request: HttpRequest) -> bool:
        """Return whether a client may read the dashboard."""
        guard = self._host.guard
        if guard is None:
            return self._host.is_local(request.peer, request.headers, request.is_http_1_0)
        found = await guard(request)
        return isinstance(found, Principal) and found.has({WATCH})

    def _counts(self) -> dict[str, dict[str, int]]:
        """Return how many workers and upstreams there are, and how many are healthy."""
        read = self._host.reports
        workers: list[WorkerState] = read["workers"]() or []
        upstreams: dict[str, str] = (read["upstreams"]() or {}) if "upstreams" in read else {}
        states = {"workers": [each.state for each in workers], "upstreams": list(upstreams.values())}
        return {name: {"ready": found.count("ready"), "all": len(found)} for name, found in states.items() if found}

    def _figures(self) -> Json:
        host, definition = self._host, self.definition
        services, settings, sweep = host.services, host.settings, host.sweep
        return {
            "name": definition.name,
            "version": definition.version,
            "revisions": [revision.date for revision in ALL],
            "features": ["mcp", *sorted(definition.parts)],
            "uptime_seconds": round(sweep.clock() - sweep.started, 3),
            "streams": len(host.streams),
            "streams_by_transport": host.streams.by_transport(),
            "calls": len(host.dispatcher.calls),
            "pending_inputs": len(services.questions),
            "session_records": len(services.records.known),
            "store": {"kind": host.store_health.kind, "up": host.store_health.up},
            "event_loop_lag_ms": round(sweep.lag * 1000, 3),
            "memory_bytes": resident_bytes(),
            "limits": {
                "connections": settings.max_connections,
                "streams": settings.max_streams,
                "calls": settings.max_calls,
                "pending_inputs": settings.max_pending_inputs,
                **host.limits,
            },
            **{name: figure for name, read in host.reports.items() if (figure := read()) is not None},
        }


SAY_EVERY = 5.0
HEARD = 15.0
"""Seconds after which a silent sibling is considered dead."""
SCANS = 60
"""Seconds in which another program's HTTP server must start listening."""
_HERE = b"sibling"
_REASON = "several processes are serving, and they don't share a store"
_SIBLINGS = (
    "Several processes serve %r without a shared store, so broadcasts and streamed calls in one don't reach clients of "
    "another. Serve with `millstream run --workers N`, whose workers share a store automatically, or configure one for "
    "all: MILLSTREAM_STORE=redis://…. Until then /readyz reports degraded"
)
_claimed: set[str] = set()
"""Names that this process has claimed, because servers in one process aren't siblings."""


class SiblingsPart(OwnPart):
    """Reports the server as degraded while sibling processes don't share its store.

    ``uvicorn --workers 4`` starts such processes. Each of them has its own hub and sessions, and a client reaches one
    of them at random.
    """

    name: str = "siblings"

    async def open(self, host: PartHost) -> None:
        """Look for siblings when another program's server serves over HTTP."""
        if sys.platform == "linux" and not host.store.shared:
            host.on_http(lambda: self._watch(host))

    def _watch(self, host: PartHost) -> None:
        if host.own_server:
            return
        name = self.definition.name
        watches: list[SiblingWatch] = []
        scans = iter(range(SCANS))

        def look(now: float) -> None:
            # uvicorn listens only after the server has started.
            if not watches and next(scans, None) is not None:
                for inode in set(_listening_inodes()):
                    digest = hashlib.sha256(f"{inode} {name}".encode()).hexdigest()[:32]
                    watch = SiblingWatch(f"\0millstream-{digest}", partial(logger.error, _SIBLINGS, name))
                    host.on_close(watch.close)
                    host.check_ready(watch.reason, serves=False)
                    watches.append(watch)
            for each in watches:
                each.look(now)

        host.every_second(look)


class SiblingWatch(Struct, eq=False):
    """Claims a name, and detects whether another process has it.

    Siblings can't find each other through a store, but they accept from the same listening socket. Each process claims
    a name derived from that socket's inode in the kernel's abstract namespace. If the name is taken, the process
    periodically notifies the owner.
    """

    name: str
    found: Callable[[], None]
    """Called once, when a sibling is found."""
    clock: Callable[[], float] = monotonic
    _socket: socket.socket | None = None
    _heard: float = -HEARD
    _said: float = -SAY_EVERY

    def reason(self) -> str:
        """Return why the server is degraded, or an empty string if it isn't."""
        return _REASON if self.clock() - self._heard < HEARD else ""

    def look(self, now: float) -> None:
        """Claim the name, or notify its owner."""
        if now - self._said < SAY_EVERY or self._socket is not None or self.name in _claimed:
            return
        self._said = now
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            claim.bind(self.name)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                self._hear(now)
                try:
                    claim.sendto(_HERE, self.name)
                except OSError:
                    logger.debug("The owner of the name no longer exists, or its queue is full", exc_info=True)
            claim.close()
        else:
            _claimed.add(self.name)
            self._socket = claim
            asyncio.get_running_loop().add_reader(claim, self._read)

    def close(self) -> None:
        """Release the name."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            _claimed.discard(self.name)

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101  it's the one that is read
        if self._socket.recv(64) == _HERE:
            self._hear(self.clock())

    def _hear(self, now: float) -> None:
        first, self._heard = self._heard < 0, now
        if first:
            self.found()


def _listening_inodes() -> Iterator[int]:
    """Yield the inodes of the sockets on which this process accepts connections."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            status = os.fstat(int(entry.name))
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as each:
                    if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        yield status.st_ino
        except OSError:
            continue  # closed in the meantime, or another kind of socket
