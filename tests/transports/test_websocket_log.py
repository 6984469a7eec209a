import asyncio
import logging

import pytest

from http_messages import HttpRequest, Response
from millstream import Principal
from patience import WAIT
from socket_world import BINARY, CLOSE, TEXT, UPGRADE, frame, world

WRONG = {
    "text that is no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a character at the end": (frame(TEXT, b"a", fin=False) + frame(0, b"\xf0\x9f"), 1007),
    "no mask": (frame(TEXT, b"{}", mask=False), 1002),
    "a binary message": (frame(BINARY, b"{}"), 1003),
    "a close with one byte": (frame(CLOSE, b"\x03"), 1002),
    "too long": (frame(TEXT, b" " * (2**20 + 1)), 1009),
}
REFUSED = {
    "another origin": (b"Origin: https://evil.example\r\n", UPGRADE, 403),
    "another host": (b"", UPGRADE.replace(b"127.0.0.1", b"evil.example"), 421),
    "no such credentials": (b"Authorization: Bearer bad\r\n", UPGRADE, 401),
    "another version": (b"", UPGRADE.replace(b"13", b"7"), 400),
}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator would be woken for."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def authenticate(request: HttpRequest) -> Response | None:
    bad = request.headers.get(b"authorization") == b"Bearer bad"
    return Response(b"Who are you?\n", 401, b"www-authenticate: Bearer\r\n") if bad else None


@pytest.mark.parametrize(("frames", "code"), WRONG.values(), ids=WRONG.keys())
async def test_invalid_frames_are_not_logged_as_errors(
    frames: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as app:
        socket = await app.raw()
        await socket.send(frames)
        assert (await socket.wait_for_close())[0] == code
        socket.peer.close()
        await app.until(lambda: not app.running.state.connections)
        assert errors(caplog) == []


@pytest.mark.parametrize(("extra", "head", "status"), REFUSED.values(), ids=REFUSED.keys())
async def test_rejected_handshakes_are_not_logged_as_errors(
    extra: bytes, head: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(guard=authenticate) as app:
        peer = await app.handshake(extra, head)
        assert (await app.opened(peer))[0] == status
        await peer.rest()
        await app.until(lambda: not app.running.state.connections)
        assert errors(caplog) == []


async def test_disconnect_during_the_handshake_is_not_logged_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered = asyncio.Event()

    async def slowly(request: HttpRequest) -> Principal | None:
        entered.set()
        await app.until(lambda: not app.running.state.connections)
        return None

    async with world(guard=slowly) as app:
        peer = await app.handshake()
        await asyncio.wait_for(entered.wait(), WAIT)
        peer.close()
        await app.until(lambda: not app.running.state.connections)
        await app.until(lambda: not app.running.state.tasks)
        assert errors(caplog) == []
