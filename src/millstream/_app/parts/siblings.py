"""Detection of sibling processes without a shared store, as started by ``uvicorn --workers 4``.

Each of them has its own hub and sessions, and a client reaches one of them at random. They can't find each other
through a store, but they accept from the same listening socket. Each process claims a name derived from that socket's
inode in the kernel's abstract namespace, and if it's taken, periodically notifies the owner.
"""

import asyncio
import errno
import hashlib
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

from millstream._app.parts import OwnPart
from millstream._parts import Host

SAY_EVERY = 5.0
HEARD = 15.0
"""Seconds after which a silent sibling counts as gone."""
SCANS = 60
"""Seconds for another program's HTTP server to start listening."""
_HERE = b"sibling"
_REASON = "several processes are serving, and they don't share a store"

logger = logging.getLogger("millstream")
_claimed: set[str] = set()
"""Names that this process holds, since servers in one process aren't siblings."""


class SiblingsPart(OwnPart):
    """Reports the server as degraded while sibling processes don't share its store."""

    name: str = "siblings"

    async def open(self, host: Host) -> None:
        """Look for siblings once another program's server serves over HTTP."""
        if sys.platform == "linux" and not host.store.shared:
            host.on_http(lambda: self._watch(host))

    def _watch(self, host: Host) -> None:
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
                    watch = SiblingWatch(f"\0millstream-{digest}", lambda: _warn(name))
                    host.on_close(watch.close)
                    host.check_ready(watch.reason, serves=False)
                    watches.append(watch)
            for each in watches:
                each.look(now)

        host.every_second(look)


class SiblingWatch:
    """Claims a name, and detects whether another process has it."""

    def __init__(self, name: str, found: Callable[[], None], *, clock: Callable[[], float] = monotonic) -> None:
        """Create it. `found` is called once, when there is a sibling."""
        self._clock = clock
        self._name = name
        self._found = found
        self._socket: socket.socket | None = None
        self._heard = -HEARD
        self._said = -SAY_EVERY

    def reason(self) -> str:
        """Return why the server is degraded; empty if it isn't."""
        return _REASON if self._clock() - self._heard < HEARD else ""

    def look(self, now: float) -> None:
        """Claim the name, or notify its owner."""
        if now - self._said < SAY_EVERY or self._socket is not None or self._name in _claimed:
            return
        self._said = now
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            claim.bind(self._name)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                self._hear(now)
                try:
                    claim.sendto(_HERE, self._name)
                except OSError:
                    logger.debug("The owner of the name is gone, or its queue is full", exc_info=True)
            claim.close()
        else:
            _claimed.add(self._name)
            self._socket = claim
            asyncio.get_running_loop().add_reader(claim, self._read)

    def close(self) -> None:
        """Release the name."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            _claimed.discard(self._name)

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101  it's the one that is read
        if self._socket.recv(64) == _HERE:
            self._hear(self._clock())

    def _hear(self, now: float) -> None:
        first, self._heard = self._heard < 0, now
        if first:
            self._found()


def _warn(name: str) -> None:
    logger.error(
        "Several processes serve %r without a shared store, so broadcasts and streamed calls of one don't reach "
        "clients of another. Serve with `millstream run --workers N`, whose workers share a store automatically, "
        "or configure one for all: MILLSTREAM_STORE=redis://…. Until then /readyz reports degraded",
        name,
    )


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
