import asyncio
import struct
from collections.abc import AsyncIterator
from zlib import crc32

import msgspec
import pytest

from cases import for_each
from millstream._stores.local import calls
from patience import WAIT
from store_parts import TTL, LocalBacking


@pytest.fixture
async def backing() -> AsyncIterator[LocalBacking]:
    backing = LocalBacking()
    yield backing
    await backing.close()


def frame(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


async def test_version_mismatch_with_the_parent_is_explained(backing: LocalBacking) -> None:
    await backing.worker()
    reader, writer = await asyncio.open_unix_connection(backing.server.address)
    writer.write(frame(msgspec.msgpack.encode([[0, 1, calls.VERSION + 1, "memory://"]])))
    async with asyncio.timeout(WAIT):
        length = struct.unpack(">I", await reader.readexactly(4))[0]
        (said,) = calls.read_answers(await reader.readexactly(length))
    assert isinstance(said, calls.StoreFailure)
    assert "a different version" in said.text
    assert "start it again" in said.text
    writer.close()


NONSENSE = {
    "no MessagePack": frame(b"\xc1"),
    "no array": frame(msgspec.msgpack.encode({"a": 1})),
    "an unknown request": frame(msgspec.msgpack.encode([[99, 1]])),
    "a request before hello": frame(msgspec.msgpack.encode([[4, 1, "key"]])),
    "a field of the wrong type": frame(msgspec.msgpack.encode([[0, 1, 1, 7]])),
    "a frame that is too large": struct.pack(">I", calls.MAX_FRAME + 1),
}


@for_each("what", list(NONSENSE))
async def test_invalid_frames_end_only_their_connection(backing: LocalBacking, what: str) -> None:
    worker = await backing.worker()
    reader, writer = await asyncio.open_unix_connection(backing.server.address)
    writer.write(NONSENSE[what])
    async with asyncio.timeout(WAIT):
        assert await reader.read() == b""
    writer.close()
    await worker.kv.put("key", b"value", TTL)
    assert await worker.kv.get("key") == b"value"


async def test_unencodable_names_fail_only_their_caller(backing: LocalBacking) -> None:
    worker = await backing.worker()
    answers = await asyncio.gather(
        worker.kv.put("a", b"1", TTL), worker.kv.get("\ud800"), worker.kv.get("a"), return_exceptions=True
    )
    assert isinstance(answers[1], UnicodeEncodeError)
    assert answers[2] == b"1"


class Outgoing(list[bytes]):
    """A transport that records what is sent."""

    def write(self, data: bytes) -> None:
        self.append(bytes(data))


@for_each("size", [1, 2, 3, 5, 100])
async def test_frames_are_reassembled(size: int) -> None:
    put, connection, sent = calls.calls("kv")["put"], calls.FrameConnection(), Outgoing()
    connection.max_frame = 10_000
    connection.connection_made(sent)  # type: ignore[arg-type]
    for n in range(5):
        for each in range(n + 1):
            connection._write(put.request(each, f"{n}", b"x" * n * 10, 1.0))
        await asyncio.sleep(0)
    data, frames, got = b"".join(sent), calls.Frames(10_000), []
    for start in range(0, len(data), size):
        got.extend(calls.read_requests(content) for content in frames.feed(data[start : start + size]))
    assert [[each.id for each in one] for one in got] == [list(range(n + 1)) for n in range(5)]
    assert got[4][0] == put.request(0, "4", b"x" * 40, 1.0, lossy=False)


def test_version_changes_with_the_calls() -> None:
    shapes = crc32(repr([(each.part, each.name, each.request.__struct_fields__) for each in calls.CALLS]).encode())
    assert (calls.VERSION, shapes) == (8, 591931811), (
        "The calls between workers and their parent process have changed. Raise VERSION in _stores/local/calls.py, and "
        f"write both numbers here: {calls.VERSION + 1}, {shapes}."
    )
