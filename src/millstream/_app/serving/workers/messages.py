"""What the parent and a worker tell each other: JSON lines on a pair of sockets that only these two have.

The end of the line is a message, too: to the worker it says that the parent is gone, whatever killed it.
"""

import socket
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from millstream._app.serving.facts import Facts

CHUNK = 64 * 1024
BEATS = 4
"""How often a worker says that it goes on, in the time after which it would be killed."""


class Message(Struct, frozen=True, tag_field="type", tag=str.lower):
    """The base of all: the name of the class is on the wire."""


class Hello(Message, frozen=True, kw_only=True):
    """Parent to worker, first of all: what it's to be."""

    worker: int
    """Which one it is, from 1 on. Its replacement is the same one."""
    workers: int
    host: str
    port: int
    listeners: list[int]
    """The descriptors of the sockets that it accepts from."""
    others: dict[int, list[int]] = {}
    """Those of the sockets that the other workers accept from, by worker."""
    run: int
    """Which ``run()`` of the program the worker serves for, from 1 on."""
    key: str
    """A secret that all workers share, for a program that has no other."""
    store: str = ""
    """Where the parent serves its store, if it does."""


class Drain(Message, frozen=True):
    """Parent to worker: finish what you have, and end."""

    replaced: bool = False
    """Another process accepts from the same socket already."""


class Force(Message, frozen=True):
    """Parent to worker: end now."""


class Seat(Struct, frozen=True):
    """One worker, as `/health` shows it."""

    worker: int
    pid: int
    state: str
    restarts: int
    """How often it died and was replaced."""


class Roster(Message, frozen=True):
    """Parent to worker: how all of them are, whenever that changes."""

    seats: list[Seat]


class Ready(Message, frozen=True):
    """Worker to parent: it accepts."""

    facts: Facts
    patience: float
    """Seconds that it may take to end once it's told to."""
    consul: str = ""
    """The URL of the Consul agent to register with."""
    watchdog: float = 0.0
    """Seconds without a word from its event loop after which it's killed; 0 for never."""


class Alive(Message, frozen=True):
    """Worker to parent, again and again where there's a watchdog: its event loop goes on."""


class Left(Message, frozen=True):
    """Worker to parent: it's on its way out and accepts no more."""


class Failed(Message, frozen=True):
    """Worker to parent: it cannot start. The parts of a `CommandError`."""

    what: str
    why: str = ""
    fix: str = ""
    detail: str = ""


ToWorker = Hello | Drain | Force | Roster
ToParent = Ready | Alive | Left | Failed
FOR_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FOR_PARENT: msgspec.json.Decoder[ToParent] = msgspec.json.Decoder(ToParent)
Heard = TypeVar("Heard")


class Line(Generic[Heard]):
    """One end of the pair."""

    __slots__ = ("_buffer", "_decoder", "end")

    def __init__(self, end: socket.socket, decoder: msgspec.json.Decoder[Heard]) -> None:
        self.end = end
        self._decoder = decoder
        self._buffer = b""

    def tell(self, message: Any) -> None:
        """Say something. Who is gone, or has stood still for long, doesn't hear it."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.end.sendall(msgspec.json.encode(message) + b"\n")

    def read(self) -> list[Heard] | None:
        """What has come since; None when the other end is closed, or says what nobody could."""
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
