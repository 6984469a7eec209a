"""Messages between the parent and a worker: JSON lines on a private pair of sockets.

The end of the stream is a message, too: it tells a worker that the parent is gone, for whatever reason.
"""

import socket
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from millstream._app.server_process.facts import Facts

CHUNK = 64 * 1024
BEATS = 4
"""Heartbeats of a worker per watchdog timeout."""


class WorkerMessage(Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base class of the messages, tagged with the name of the class."""


class Hello(WorkerMessage, frozen=True, kw_only=True):
    """Parent to worker, sent first: its role."""

    worker: int
    """Number of the worker, from 1. Its replacement has the same number."""
    workers: int
    host: str
    port: int
    listeners: list[int]
    """Descriptors of the sockets that it accepts from."""
    others: dict[int, list[int]] = {}
    """Descriptors of the sockets that the other workers accept from, by worker."""
    run: int
    """Number of the ``run()`` call that the worker serves, from 1."""
    key: str
    """Secret shared by all workers, for programs without one."""
    store: str = ""
    """Address of the parent's store, if it serves one."""


class Drain(WorkerMessage, frozen=True):
    """Parent to worker: finish running calls, and exit."""

    replaced: bool = False
    """Whether another process already accepts from the same socket."""


class Force(WorkerMessage, frozen=True):
    """Parent to worker: exit now."""


class WorkerState(Struct, frozen=True):
    """One worker, as shown by `/health`."""

    worker: int
    pid: int
    state: str
    restarts: int
    """Number of times that it died and was replaced."""


class WorkerStates(WorkerMessage, frozen=True):
    """Parent to worker: the state of all workers, whenever it changes."""

    seats: list[WorkerState]


class Ready(WorkerMessage, frozen=True):
    """Worker to parent: it accepts connections."""

    facts: Facts
    patience: float
    """Maximum seconds for it to exit after a stop request."""
    watchdog: float = 0.0
    """Seconds without a heartbeat after which it's killed; 0 for never."""


class Alive(WorkerMessage, frozen=True):
    """Worker to parent, periodically with a watchdog: its event loop is running."""


class Departure(WorkerMessage, frozen=True):
    """Worker to parent: it's exiting, and accepts no more connections."""


class StartFailure(WorkerMessage, frozen=True):
    """Worker to parent: it can't start. Contains the parts of a `CommandError`."""

    what: str
    why: str = ""
    fix: str = ""
    detail: str = ""


ToWorker = Hello | Drain | Force | WorkerStates
ToParent = Ready | Alive | Departure | StartFailure
FOR_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FOR_PARENT: msgspec.json.Decoder[ToParent] = msgspec.json.Decoder(ToParent)
Heard = TypeVar("Heard")


class MessageChannel(Generic[Heard]):
    """One end of the pair of sockets."""

    def __init__(self, end: socket.socket, decoder: msgspec.json.Decoder[Heard]) -> None:
        self.end = end
        self._decoder = decoder
        self._buffer = b""

    def tell(self, message: Any) -> None:
        """Send a message, dropping it if the peer is gone or has been unresponsive for long."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.end.sendall(msgspec.json.encode(message) + b"\n")

    def read(self) -> list[Heard] | None:
        """Return the messages received so far; None if the peer has closed the socket or sent an invalid message."""
        try:
            data = self.end.recv(CHUNK)
            if not data:
                return None
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            return [self._decoder.decode(each) for each in lines]
        except BlockingIOError:
            return []
        except (ConnectionResetError, msgspec.MsgspecError):
            return None
