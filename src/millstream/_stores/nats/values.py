"""The map in JetStream, with one JetStream stream per kind, which stores the newest message of each key.

Compare-and-set uses the sequence of that message, which JetStream checks when it adds the next one. Each message has a
time to live. The server deletes it soon after that; reads treat it as absent immediately.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from millstream._stores.base import OwnerQuotaExceeded, StoreFull
from millstream._stores.memory.log import ITEM_BYTES, kind_of
from millstream._stores.nats.link import (
    FULL,
    TOO_LARGE,
    WRONG_LAST,
    JetStreamError,
    NatsLink,
    StreamMessage,
    read_token,
    token,
)
from millstream._stores.rates import MARK_BYTES, PART, owner_for

ROOM = 64 * 1024 * 1024
"""Maximum bytes of one kind."""
_TTL = "Millstream-TTL"
_GONE = "Millstream-Gone"
_EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_FRESH = 1.0
"""Seconds for which the size of a kind is cached."""
_SHARE_FRESH = 30.0
_AT_ONCE = 64
_PAUSE = 0.002


class _Size(Struct):
    """The last known size of a kind or share, plus the bytes that this worker has added since."""

    bytes: int = 0
    at: float = -math.inf


class NatsMap(Struct, eq=False):
    """`Map` in JetStream."""

    _link: NatsLink
    _sizes: dict[str, _Size] = {}
    """Sizes by the kind's JetStream stream, or by the share's subject."""

    def close(self) -> None:
        """Clear the cache."""
        self._sizes.clear()

    async def get(self, key: str) -> bytes | None:
        _, old = await self._find(key)
        return None if old is None else old.data

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return list(await asyncio.gather(*map(self.get, keys)))

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        old = None
        if owner_for(key):
            _, old = await self._find(key)
        await self._check_room(key, value, old, lossy=lossy)
        await self._write(key, value, ttl, lossy, {})

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        while True:
            seq, old = await self._find(key)
            if (None if old is None else old.data) != expected:
                return False
            if value is None and old is None:
                return True
            try:
                if value is not None:
                    await self._check_room(key, value, old, lossy=lossy)
                await self._write(key, value, ttl, lossy, {_EXPECTED_SEQUENCE: str(seq)})
            except JetStreamError as exc:
                if exc.code not in WRONG_LAST:
                    raise
                # It was changed by another worker, or has expired.
                await asyncio.sleep(_PAUSE)
                continue
            if value is None and old is not None:
                self._grow(key, -_cost(key, old.data))
            return True

    async def delete(self, key: str) -> bool:
        while (value := await self.get(key)) is not None:
            if await self.compare_and_set(key, value, None, 1.0):
                return True
        return False

    async def keys(self, prefix: str) -> list[str]:
        namespace = self._link.address.namespace
        if ":" in prefix:
            streams = [self._stream(prefix)]
        else:
            streams = await self._link.names(f"{namespace}.map.>")
        names: list[str] = []
        for stream in streams:
            kind = stream.removeprefix(f"{namespace}-map-")
            for subject in await self._link.subjects(stream, f"{namespace}.map.{kind}.>"):
                name = read_token(subject.rpartition(".")[2])
                if name.startswith(prefix):
                    names.append(name)
        found: list[str] = []
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            found += [name for name, value in zip(some, await self.get_many(some), strict=True) if value is not None]
        return found

    async def _find(self, key: str) -> tuple[int, StreamMessage | None]:
        """Return the sequence of a key's last message, and this message if the value is live."""
        found = await self._link.last(self._stream(key), self._subject(key))
        return (0, None) if found is None else (found.seq, found if self._lives(found) else None)

    def _lives(self, message: StreamMessage) -> bool:
        return _GONE not in message.headers and message.at + float(message.headers[_TTL]) > self._link.time()

    async def _write(self, key: str, value: bytes | None, ttl: float, lossy: bool, headers: dict[str, str]) -> None:
        """Add the next message of a key.

        Raises:
            JetStreamError: JetStream rejected it, for example because the last message isn't the expected one.
        """
        stream = self._stream(key)
        if value is None:
            headers |= {_GONE: "1", "Nats-TTL": "2"}
        else:
            headers |= {_TTL: repr(ttl), "Nats-TTL": str(math.ceil(ttl) + 2)}

        async def ensure() -> None:
            await self._ensure(key, lossy)

        try:
            await self._link.publish(stream, self._subject(key), value or b"", headers, ensure=ensure)
        except JetStreamError as exc:
            if exc.code in FULL or exc.code == TOO_LARGE:
                raise StoreFull(f"NATS has no space for a value: {exc}") from exc
            raise

    # Space

    async def _check_room(self, key: str, value: bytes, old: StreamMessage | None, *, lossy: bool) -> None:
        """Check that a value fits.

        Raises:
            StoreFull: The value doesn't fit.
        """
        if len(value) > self._link.max_bytes:
            raise StoreFull(f"A value of {len(value)} bytes exceeds the {self._link.max_bytes} bytes that NATS allows.")
        share = owner_for(key)
        if lossy and not share:
            return
        growth = _cost(key, value) - (_cost(key, old.data) if old is not None else 0)
        if growth > 0 and (lossy or len(value) > MARK_BYTES):
            if share and await self._share_size(key, growth) + growth > ROOM // PART:
                if not lossy or growth > ROOM // PART:
                    raise OwnerQuotaExceeded(f"The caller's share of {ROOM // PART} bytes is full.")
                await self._evict(key, growth)
            if not lossy and await self._kind_size(self._stream(key), growth) + growth > ROOM:
                raise StoreFull(f"The {ROOM} bytes for this kind of value are full.")
        self._grow(key, growth)

    async def _evict(self, key: str, growth: int) -> None:
        """Drop the oldest values of a share. They're read again to find them, so more are dropped than necessary."""
        stream, name, seq = self._stream(key), self._share(key), 1
        size = self._sizes[name]
        while size.bytes + growth > ROOM // PART * 7 // 8 and (page := await self._values(stream, name, seq)):
            for each in page:
                if size.bytes + growth > ROOM // PART * 7 // 8:
                    seq = each.seq + 1
                    size.bytes -= _cost_of(each) if self._lives(each) else 0
        await self._link.purge(stream, name, before=seq)

    def _grow(self, key: str, growth: int) -> None:
        for name in (self._stream(key), self._share(key)):
            if name in self._sizes:
                self._sizes[name].bytes += growth

    async def _kind_size(self, stream: str, growth: int) -> int:
        size, now = self._sizes.setdefault(stream, _Size()), time.monotonic()
        if now - size.at > _FRESH or size.bytes + growth > ROOM * 3 // 4:
            try:
                size.bytes = (await self._link.info(stream))["state"]["bytes"]
            except JetStreamError:
                size.bytes = 0
            size.at = now
        return size.bytes

    async def _share_size(self, key: str, growth: int) -> int:
        name, now = self._share(key), time.monotonic()
        size = self._sizes.setdefault(name, _Size())
        if now - size.at > _SHARE_FRESH or size.bytes + growth > ROOM // PART:
            size.bytes, seq = 0, 1
            stream = self._stream(key)
            while page := await self._values(stream, name, seq):
                size.bytes += sum(_cost_of(each) for each in page if self._lives(each))
                seq = page[-1].seq + 1
            size.at = now
        return size.bytes

    async def _values(self, stream: str, subject: str, seq: int) -> list[StreamMessage]:
        try:
            await self._link.info(stream)
        except JetStreamError:
            return []
        return await self._link.batch(stream, subject, seq, 1000, 4 * 1024 * 1024)

    # Names

    def _stream(self, key: str) -> str:
        return f"{self._link.address.namespace}-map-{token(kind_of(key))}"

    def _share(self, key: str) -> str:
        share = owner_for(key)
        place = token(share) if share else "-"
        return f"{self._link.address.namespace}.map.{token(kind_of(key))}.{place}.*"

    def _subject(self, key: str) -> str:
        return f"{self._share(key)[:-1]}{token(key)}"

    async def _ensure(self, key: str, lossy: bool) -> None:
        config: dict[str, Any] = {
            "subjects": [f"{self._link.address.namespace}.map.{token(kind_of(key))}.>"],
            "max_msgs_per_subject": 1,
            "max_bytes": ROOM if lossy else ROOM * 5 // 4,
            "discard": "old" if lossy else "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
        }
        await self._link.ensure(self._stream(key), config)


def _cost_of(message: StreamMessage) -> int:
    return _cost(read_token(message.subject.rpartition(".")[2]), message.data)


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + ITEM_BYTES
