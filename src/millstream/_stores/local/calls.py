"""Calls between a worker and the parent process that runs its store, generated from the protocols in `base`.

Each method of `Log`, `Map`, `StoreSession`, and some of `Backend` has one request type, a struct with the method's
parameters. A reply repeats the id of its request, and its value is decoded as the method's return type. A frame is four
bytes of length and a MessagePack array of all messages that one side sends in one iteration of its event loop. Frames
go through a socket in a private folder of the parent.
"""

import asyncio
import errno
import inspect
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from pathlib import Path
from struct import Struct as Format
from typing import Any, Final, Protocol, Union, cast, get_type_hints
from zlib import crc32

import msgspec
from msgspec import Struct, defstruct

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._stores.base import (
    Backend,
    DataSource,
    Entry,
    EntryRepeated,
    Gap,
    Log,
    Map,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StoreUnavailable,
    StreamSealed,
)

VERSION = 8
"""The protocol version. After an update, workers of a newer release may connect to an older parent."""
MAX_MESSAGE = 65 * 1024 * 1024
"""Maximum size of a request, in bytes. Every store's own limit is lower."""
FLUSH = 1024 * 1024
"""Buffered bytes that are sent before the end of the event loop's iteration."""
MAX_FRAME = MAX_MESSAGE + FLUSH + 1024
"""Maximum size of a frame from a worker, in bytes."""

_HEAD = Format(">IBI")
"""The frame header: length of the rest, the MessagePack array 32 marker, and the number of messages."""
_LENGTH = Format(">I")
_ARRAY = 0xDD


class StoreSession(Protocol):
    """Requests of a connection itself."""

    async def hello(self, version: int, url: str) -> str:
        """Open a store and return its epoch. This must be the first request."""
        ...

    async def bind(self, worker: str) -> None:
        """See `Backend.bind`."""

    async def listen(self, channel: str, on: bool) -> None:
        """Start or stop pushing the entries of a stream or topic (`channel_for`)."""

    async def mark(self, stream: str) -> Position | None:
        """Return the newest position of a stream, or None if pushes before this reply were dropped."""
        ...


class StoreReply(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The result of a call."""

    id: int
    value: Any


class RawStoreReply(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """A `StoreReply` before its value is decoded."""

    id: int
    value: msgspec.Raw


class StoreFailure(Struct, frozen=True, gc=False, array_like=True, tag=1):
    """The error that a call raised."""

    id: int
    kind: str
    text: str
    epoch: str = ""
    oldest: Position | None = None
    newest: Position | None = None

    @classmethod
    def of(cls, id: int, exc: Exception) -> "StoreFailure":
        """Convert an exception to a message."""
        if isinstance(exc, Gap):
            return cls(id, "Gap", "", exc.epoch, exc.oldest, exc.newest)
        return cls(id, type(exc).__name__, str(exc))

    def error(self) -> Exception:
        """Return the exception to raise in the worker."""
        if self.kind == "Gap":
            return Gap(self.epoch, self.oldest, self.newest)
        return _ERRORS.get(self.kind, LocalError)(self.text)


class EntryPush(Struct, frozen=True, gc=False, array_like=True, tag=2):
    """An entry of a stream or topic that the worker listens to."""

    channel: str
    entry: Entry


class DropNotice(Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A notice that entries were dropped because the worker didn't read."""


_ERRORS = {
    each.__name__: each for each in (StoreFull, OwnerQuotaExceeded, StreamSealed, EntryRepeated, StoreUnavailable)
}


class StoreCall:
    """A method that a worker can call."""

    def __init__(self, part: str, name: str, function: Callable[..., Any], tag: int) -> None:
        hints = get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        fields = [
            (each.name, hints[each.name], *(() if each.default is each.empty else (each.default,)))
            for each in parameters
        ]
        self.part = part
        self.name = name
        self.request = defstruct(
            f"{part}_{name}", [("id", int), *fields], frozen=True, gc=False, array_like=True, tag=tag
        )
        """The request type: an id, followed by the method's parameters."""
        self.read_reply = msgspec.msgpack.Decoder(hints["return"]).decode
        """Decoder for the value of the reply."""
        self._positional = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
        self._keywords = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]

    def run(self, part: Any, request: Any) -> Coroutine[Any, Any, Any]:
        """Call the method of an object with the fields of a request."""
        arguments = [getattr(request, each) for each in self._positional]
        call: Callable[..., Coroutine[Any, Any, Any]] = getattr(part, self.name)
        return call(*arguments, **{each: getattr(request, each) for each in self._keywords})


_LOCAL = {"backend": ("bind", "close", "open"), "log": ("wait_until_listening",)}
"""Methods that each side implements itself."""


_PARTS = (("session", StoreSession), ("backend", DataSource), ("backend", Backend), ("kv", Map), ("log", Log))
"""Protocols with methods that a worker can call, by their implementation in the parent."""


_tags = count()
CALLS = [
    StoreCall(part, name, function, next(_tags))
    for part, protocol in _PARTS
    for name, function in vars(protocol).items()
    if inspect.iscoroutinefunction(function) and name not in _LOCAL.get(part, ())
]
BY_REQUEST: Final[dict[type[Struct], StoreCall]] = {call.request: call for call in CALLS}
HELLO = CALLS[0]

_encode_into = msgspec.msgpack.Encoder().encode_into


def calls(part: str) -> dict[str, StoreCall]:
    """Return the methods of ``session``, ``backend``, ``kv``, or ``log`` by name."""
    return {call.name: call for call in CALLS if call.part == part}


class Frames(Struct, eq=False):
    """An incremental parser of frames."""

    _max: int
    _rest: bytearray = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the content of each frame that `data` completes.

        Raises:
            ValueError: A frame is too large.
        """
        rest, found, start = self._rest, list[bytes](), 0
        rest += data
        while len(rest) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, start)
            if length > self._max:
                raise ValueError(f"A frame of {length} bytes is too large.")
            end = start + _LENGTH.size + length
            if end > len(rest):
                break
            found.append(bytes(memoryview(rest)[start + _LENGTH.size : end]))
            start = end
        del rest[:start]
        return found


class FrameConnection(asyncio.Protocol):
    """A connection that sends all messages of one event loop iteration in one frame."""

    max_frame: int
    """Maximum size of a frame from the other side, in bytes."""
    _loop: asyncio.AbstractEventLoop
    _transport: asyncio.Transport | None = None
    _frames: Frames
    _out: bytearray
    """The frame under construction."""
    _count: int
    """The number of messages in it."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", transport)  # uvloop's isn't a subclass
        self._frames = Frames(self.max_frame)
        self._begin()

    def abort(self) -> None:
        """Abort the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, message: Struct) -> None:
        """Send a message in the next event loop iteration or earlier, if there's a connection.

        Raises:
            UnicodeEncodeError: A name can't be encoded.
            StoreFull: The message is too large. In both cases, the frame is unchanged.
        """
        if self._transport is None:
            return
        out = self._out
        before = len(out)
        try:
            _encode_into(message, out, -1)
            if len(out) - before > MAX_MESSAGE and not isinstance(message, StoreReply):
                raise StoreFull(f"A value or entry of more than {MAX_MESSAGE} bytes is larger than any store accepts.")
        except BaseException:
            del out[before:]
            raise
        self._count += 1
        if len(out) >= FLUSH:
            self._flush()
        elif self._count == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._transport is not None and self._count:
            _HEAD.pack_into(self._out, 0, len(self._out) - _LENGTH.size, _ARRAY, self._count)
            self._transport.write(self._out)
            self._begin()

    def _begin(self) -> None:
        self._out = bytearray(_HEAD.size)
        self._count = 0


# Both raise a `ValueError` if a frame contains something else.
read_requests: Callable[[bytes], list[Any]] = msgspec.msgpack.Decoder(
    list[Union[tuple(BY_REQUEST)]]  # type: ignore[misc]  # noqa: UP007
).decode
read_answers = msgspec.msgpack.Decoder(list[RawStoreReply | StoreFailure | EntryPush | DropNotice]).decode


_PREFIX = f"millstream-{crc32(socket.gethostname().encode()):08x}-"
"""A prefix with a hash of the host name. On a shared file system, a machine can probe only its own sockets."""
_NAME = "store"
LONGEST_PATH = 90
"""Maximum bytes of a folder for sockets. Common systems limit the path of a socket to 104."""
_OLD = 60.0
"""Seconds after which an unused socket is treated as abandoned."""
ELSEWHERE = "/tmp"  # noqa: S108  only this user can enter folders made there


def private_socket() -> Path:
    """Return a path for a socket in a new folder that only this user can access."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)  # mode 0700
    if len(os.fsencode(folder)) > LONGEST_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=ELSEWHERE)
    return Path(folder) / _NAME


def sweep() -> None:
    """Remove folders that killed parents left behind: folders of this user that contain only unused sockets."""
    for place in {tempfile.gettempdir(), ELSEWHERE}:
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIX):
                    with suppress(OSError):
                        _remove_dead(Path(entry.path))


def _remove_dead(folder: Path) -> None:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or not (folder / _NAME).exists():
        return
    paths = [*folder.iterdir()]
    if all(map(_is_unused, paths)):
        for path in paths:
            path.unlink()
        folder.rmdir()


def _is_unused(path: Path) -> bool:
    about = path.lstat()
    return stat.S_ISSOCK(about.st_mode) and time.time() - about.st_mtime > _OLD and not _listens(path)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)  # the backlog of a stalled parent may be full
        return peer.connect_ex(str(path)) != errno.ECONNREFUSED
