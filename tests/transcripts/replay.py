"""Replays a golden transcript: sends the client's lines, and records the server's.

Lines of a transcript: ``#`` is a comment. ``C1`` is sent by the client on connection 1, and ``S1`` by the server.
``--`` selects what to read next. A value that differs each time stands as ``«name»``: the first one seen is bound to
the name, and where it comes again it must be the same.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import http_peer
from patience import WAIT

READ = re.compile(r"-- (\d) (replies|goes on|is dropped by the client)(?: with (\d+) (?:events?|messages?))?")
VOLATILE: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("date", re.compile(r"^date: (.+)$", re.MULTILINE)),
    ("length", re.compile(r"^content-length: (\d+)$", re.MULTILINE)),
    ("session", re.compile(r"^mcp-session-id: (\S+)$", re.MULTILINE)),
    ("connection", re.compile(r"session_id=([\w.~-]+)")),
    ("event", re.compile(r"^id: (\S+)$", re.MULTILINE)),
    ("question", re.compile(r'"id":"([0-9a-f]+(?:-[0-9a-f]+)+)"')),
    ("state", re.compile(r'"requestState":"([^"]+)"')),
    ("incident", re.compile(r"incident ([0-9a-f]{16})")),
)
ANONYMOUS = frozenset({"date", "length"})


class Names:
    """Placeholders for values that differ each time, in order of appearance."""

    def __init__(self) -> None:
        self._by_value: dict[tuple[str, str], str] = {}
        self._by_name: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """What the server said, with its volatile values named."""
        for kind, pattern in VOLATILE:
            text = pattern.sub(lambda match, kind=kind: self._named(kind, match), text)  # type: ignore[misc]
        return text

    def _named(self, kind: str, match: re.Match[str]) -> str:
        value = match[1]
        name = kind
        if kind not in ANONYMOUS:
            count = sum(known == kind for known, _ in self._by_value) + 1
            name = self._by_value.setdefault((kind, value), f"{kind} {count}")
            self._by_name[name] = value
        start, end = match.start(1) - match.start(), match.end(1) - match.start()
        return f"{match[0][:start]}«{name}»{match[0][end:]}"

    def fill(self, text: str) -> str:
        """What the client sends, with the values that the server gave."""
        return re.sub(r"«([^»]+)»", lambda match: self._by_name.get(match[1], match[0]), text)


class Channel(Protocol):
    """One connection of a transcript."""

    async def send(self, lines: list[str]) -> None: ...

    async def read(self, *, head: bool, count: int | None) -> list[str]: ...

    def drop(self) -> None: ...


class HttpChannel:
    """A request on a connection of its own, and the reply. The framing of chunks is left out."""

    def __init__(self, running: http_peer.RunningServer) -> None:
        self._running = running
        self._peer: http_peer.Peer
        self._headers: dict[bytes, bytes] = {}
        self._rest = ""

    async def send(self, lines: list[str]) -> None:
        """Send a request: head, an empty line, and the body on one line."""
        end = lines.index("") if "" in lines else len(lines)
        body = "\n".join(lines[end + 1 :]).encode()
        head = [line.replace("«length»", str(len(body))) for line in lines[:end]]
        self._peer = await self._running.connect()
        await self._peer.send("\r\n".join([*head, "", ""]).encode() + body)

    async def read(self, *, head: bool, count: int | None) -> list[str]:
        """Read the head, and the body to its end, to a question, or for a number of events."""
        found: list[str] = []
        if head:
            found = await self._read_head()
        if self._headers.get(b"transfer-encoding") != b"chunked":
            size = int(self._headers.get(b"content-length", b"0"))
            body = (await asyncio.wait_for(self._peer.reader.readexactly(size), WAIT)).decode()
            return [*found, *(["", *body.rstrip("\n").split("\n")] if body else [])]
        if head:
            found.append("")
        return found + await self._read_events(count)

    async def _read_head(self) -> list[str]:
        lines: list[str] = []
        while line := (await self._peer.line()).decode("latin-1"):
            lines.append(line)
            name, _, value = line.partition(": ")
            self._headers[name.encode()] = value.encode()
        # Adapters put what they add themselves before or after what the handler said; the order means nothing.
        return [
            lines[0],
            *sorted(line for line in lines[1:] if not line.startswith(("server: ", "date: ", "connection: "))),
        ]

    async def _read_events(self, count: int | None) -> list[str]:
        found: list[str] = []
        events = 0
        while count is None or events < count:
            while "\n\n" not in self._rest and not self._rest.startswith(":"):
                chunk = await self._peer.chunk()
                if not chunk:
                    return [*found, "(the end of the stream)"]
                self._rest += chunk.decode().replace("\r\n", "\n")
            event, _, self._rest = self._rest.partition("\n\n" if not self._rest.startswith(":") else "\n")
            if event.startswith(":"):
                self._rest = self._rest.removeprefix("\n")
                continue
            found += [*event.split("\n"), ""]
            events += 1
            if count is None and _is_question(event):
                break
        return found

    def drop(self) -> None:
        """Go away."""
        self._peer.writer.transport.abort()


def _is_question(event: str) -> bool:
    data = [line[6:] for line in event.split("\n") if line.startswith("data: {")]
    return bool(data) and {"id", "method"} <= set(json.loads(data[0]))


class MessageChannel:
    """Whole messages, one a line."""

    def __init__(self, send: Callable[[bytes], Any], receive: Callable[[], Awaitable[bytes]]) -> None:
        self._send = send
        self._receive = receive

    async def send(self, lines: list[str]) -> None:
        """Send each line."""
        for line in lines:
            self._send(line.encode())

    async def read(self, *, head: bool, count: int | None) -> list[str]:
        """Read a number of messages; one, when none is given."""
        async with asyncio.timeout(WAIT):
            return [(await self._receive()).decode().rstrip("\n") for _ in range(count or 1)]

    def drop(self) -> None:
        """Transcripts of this kind end by themselves."""


async def play(script: str, connect: Callable[[], Channel]) -> str:
    """Play a transcript and give it back with what the server really said."""
    names = Names()
    channels: dict[str, Channel] = {}
    waiting: list[str] = []
    sender = ""
    played: list[str] = []

    async def flush() -> None:
        nonlocal waiting
        if waiting:
            if sender not in channels or isinstance(channels[sender], HttpChannel):
                channels[sender] = connect()
            await channels[sender].send([names.fill(line) for line in waiting])
            waiting = []

    for line in script.splitlines():
        if re.match(r"S\d( |$)", line):
            continue
        played.append(line)
        if re.match(r"C\d( |$)", line):
            if line[1] != sender:
                await flush()
            sender = line[1]
            waiting.append(line[3:])
            continue
        await flush()
        order = READ.fullmatch(line)
        if order is None:
            assert not line.startswith("--"), line
            continue
        number, what, count = order[1], order[2], order[3]
        if what == "is dropped by the client":
            channels[number].drop()
            continue
        said = await channels[number].read(head=what == "replies", count=int(count) if count else None)
        played += [f"S{number} {each}".rstrip() for each in names.hide("\n".join(said)).split("\n")]
    await flush()
    return "\n".join(played) + "\n"
