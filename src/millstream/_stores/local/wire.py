"""What the parent, which holds the store, and a worker say to each other: messages as bytes. No sockets here.

A frame is four bytes of length and a MessagePack array of messages, each an array that begins with its tag. Everything
that one side says in one turn of its loop is one frame. Requests have an id, which their reply repeats; replies come in
any order. Entries and messages of the bus come in between, in their order.
"""

from collections.abc import Iterator
from struct import Struct as Format
from typing import Final

import msgspec
from msgspec import Struct

from millstream._stores.base import Entry, Index, Position, Told
from millstream._stores.rates import Charge, Decision, Seat

VERSION: Final = 3
"""A worker of a newer release may meet the parent of an older one, which was started before an update."""
LEASE: Final = 1.0
"""Seconds. The kernel tells of a death at once; the rest is the parent's, which may have something else to do."""
MAX_MESSAGE: Final = 65 * 1024 * 1024
"""The largest request: more than one value or entry may have in any store."""
FLUSH: Final = 1024 * 1024
"""So many bytes are sent at once, even if the turn of the loop isn't over."""
MAX_FRAME: Final = MAX_MESSAGE + FLUSH + 1024
"""What a worker may send in one."""

_HEAD: Final = Format(">IBI")
"""Length of what follows, the mark of an array with 32 bits of length, and the number of messages."""
_LENGTH: Final = Format(">I")
_ARRAY: Final = 0xDD


class Request(Struct, frozen=True, gc=False, array_like=True):
    """What a worker asks. Everything but `Hello` follows a `Welcome`."""

    id: int


class Hello(Request, frozen=True, gc=False, array_like=True, tag=0):
    version: int
    secret: str
    """Says that who connects may, where the address doesn't."""
    url: str
    """The store that the worker wants: the parent runs none of the program, so it can't know."""


class Get(Request, frozen=True, gc=False, array_like=True, tag=1):
    key: str


class GetMany(Request, frozen=True, gc=False, array_like=True, tag=2):
    keys: list[str]


class Put(Request, frozen=True, gc=False, array_like=True, tag=3):
    key: str
    value: bytes
    ttl: float
    lossy: bool


class CompareAndSet(Request, frozen=True, gc=False, array_like=True, tag=4):
    key: str
    expected: bytes | None
    value: bytes | None
    ttl: float
    lossy: bool


class Delete(Request, frozen=True, gc=False, array_like=True, tag=5):
    key: str


class Keys(Request, frozen=True, gc=False, array_like=True, tag=6):
    prefix: str


class Append(Request, frozen=True, gc=False, array_like=True, tag=7):
    stream: str
    data: bytes
    ttl: float
    max_entries: int
    index: Index | None
    seal: bool


class Read(Request, frozen=True, gc=False, array_like=True, tag=8):
    stream: str
    after: Position | None
    limit: int
    max_bytes: int


class Newest(Request, frozen=True, gc=False, array_like=True, tag=9):
    stream: str
    limit: int
    max_bytes: int


class Touch(Request, frozen=True, gc=False, array_like=True, tag=10):
    stream: str
    ttl: float


class Trim(Request, frozen=True, gc=False, array_like=True, tag=11):
    stream: str


class Listen(Request, frozen=True, gc=False, array_like=True, tag=12):
    stream: str
    on: bool


class Subscribe(Request, frozen=True, gc=False, array_like=True, tag=13):
    topic: str
    on: bool


class Publish(Request, frozen=True, gc=False, array_like=True, tag=14):
    topic: str
    data: bytes


class Send(Request, frozen=True, gc=False, array_like=True, tag=15):
    worker: str
    topic: str
    data: bytes


class Join(Request, frozen=True, gc=False, array_like=True, tag=16):
    group: str
    member: str
    value: bytes
    told: Told


class Leave(Request, frozen=True, gc=False, array_like=True, tag=17):
    group: str
    member: str
    told: Told


class Present(Request, frozen=True, gc=False, array_like=True, tag=18):
    group: str


class Abandoned(Request, frozen=True, gc=False, array_like=True, tag=19):
    pass


class Alive(Request, frozen=True, gc=False, array_like=True, tag=20):
    worker: str


class Clock(Request, frozen=True, gc=False, array_like=True, tag=21):
    pass


class Doubt(Request, frozen=True, gc=False, array_like=True, tag=24):
    pass


class Take(Request, frozen=True, gc=False, array_like=True, tag=22):
    charges: list[Charge]


class Vacate(Request, frozen=True, gc=False, array_like=True, tag=23):
    seats: list[Seat]


class Reply(Struct, frozen=True, gc=False, array_like=True):
    """What the parent answers; each has a `value`."""

    id: int


class Plain(Reply, frozen=True, gc=False, array_like=True, tag=0):
    value: bytes | bool | float | None


class Many(Reply, frozen=True, gc=False, array_like=True, tag=1):
    value: list[bytes | None]


class At(Reply, frozen=True, gc=False, array_like=True, tag=2):
    value: Position | None


class Joined(Reply, frozen=True, gc=False, array_like=True, tag=14):
    value: tuple[bytes, Position | None]


class Entries(Reply, frozen=True, gc=False, array_like=True, tag=3):
    value: list[Entry]


class Names(Reply, frozen=True, gc=False, array_like=True, tag=4):
    value: list[str]


class Pairs(Reply, frozen=True, gc=False, array_like=True, tag=5):
    value: list[tuple[str, bytes]]


class Triples(Reply, frozen=True, gc=False, array_like=True, tag=6):
    value: list[tuple[str, str, bytes]]


class Greeting(Struct, frozen=True, gc=False, array_like=True):
    """What a worker learns when it comes."""

    me: str
    epoch: str
    time: float


class Decided(Reply, frozen=True, gc=False, array_like=True, tag=15):
    value: Decision


class Welcome(Reply, frozen=True, gc=False, array_like=True, tag=7):
    value: Greeting


class Failed(Reply, frozen=True, gc=False, array_like=True, tag=8):
    kind: str
    """The name of an error of ours."""
    text: str


class Missed(Reply, frozen=True, gc=False, array_like=True, tag=9):
    """A `Gap`."""

    epoch: str
    oldest: Position | None
    newest: Position | None


class Heard(Struct, frozen=True, gc=False, array_like=True, tag=10):
    """An entry of a stream that the worker listens to."""

    stream: str
    entry: Entry


class Message(Struct, frozen=True, gc=False, array_like=True, tag=11):
    """A message on a topic that the worker subscribed to."""

    topic: str
    data: bytes


class Dropped(Struct, frozen=True, gc=False, array_like=True, tag=12):
    """Some of both were dropped, because the worker didn't read."""


class Changed(Struct, frozen=True, gc=False, array_like=True, tag=13):
    """A worker came or went."""


Asked = (
    Hello | Get | GetMany | Put | CompareAndSet | Delete | Keys | Append | Read | Newest | Touch | Trim | Listen
    | Subscribe | Publish | Send | Join | Leave | Present | Abandoned | Alive | Clock | Doubt | Take
    | Vacate
)  # fmt: skip
Said = (
    Plain | Many | At | Entries | Names | Pairs | Triples | Welcome | Failed | Missed | Heard | Message | Dropped
    | Changed | Joined | Decided
)  # fmt: skip

_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_requests: Final = msgspec.msgpack.Decoder(list[Asked])
_answers: Final = msgspec.msgpack.Decoder(list[Said])


class WireError(Exception):
    """The other side says what it can't say."""


class Frame:
    """The frame that is being written."""

    __slots__ = ("_bytes", "_count")

    def __init__(self) -> None:
        self._bytes = bytearray(_HEAD.size)
        self._count = 0

    def __len__(self) -> int:
        """Bytes so far."""
        return len(self._bytes) - _HEAD.size

    def add(self, message: Struct) -> None:
        """One more message.

        Raises:
            UnicodeEncodeError: a name can't be written. The frame stays as it was.
        """
        before = len(self._bytes)
        try:
            _encode_into(message, self._bytes, -1)
        except BaseException:
            del self._bytes[before:]
            raise
        self._count += 1

    def forget(self, size: int) -> None:
        """Take the newest message out again: this was the size before it came."""
        del self._bytes[_HEAD.size + size :]
        self._count -= 1

    def take(self) -> bytearray:
        """The frame as bytes; the next message begins another."""
        done = self._bytes
        _HEAD.pack_into(done, 0, len(done) - _LENGTH.size, _ARRAY, self._count)
        self._bytes = bytearray(_HEAD.size)
        self._count = 0
        return done


class Frames:
    """Cuts what arrives into frames."""

    __slots__ = ("_max", "_rest")

    def __init__(self, max_frame: int) -> None:
        self._rest = bytearray()
        self._max = max_frame

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """The content of each frame that is complete now. Each must be used up before the next one is taken.

        Raises:
            WireError: a frame is too large.
        """
        rest = self._rest
        rest += data
        start = 0
        with memoryview(rest) as view:
            while len(view) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, start)
                if length > self._max:
                    raise WireError(f"A frame has {length} bytes.")
                end = start + _LENGTH.size + length
                if end > len(view):
                    break
                with view[start + _LENGTH.size : end] as content:
                    yield content
                start = end
        del rest[:start]


def requests(content: memoryview) -> list[Asked]:
    """What a worker asked in one frame.

    Raises:
        WireError: it's something else.
    """
    try:
        return _requests.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise WireError(str(exc)) from None


def answers(content: memoryview) -> list[Said]:
    """What the parent said in one frame.

    Raises:
        WireError: it's something else.
    """
    try:
        return _answers.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise WireError(str(exc)) from None
