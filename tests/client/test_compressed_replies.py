"""Servers that compress their responses without a request."""

import gzip
import zlib
from typing import Any

import pytest

from client.misbehaving_servers import DONE, OFFER, ReceivedRequest, connected, misbehaving
from millstream.client import Client, ClientError, Options, TooLarge
from patience import WAIT


def deflate(data: bytes, bits: int) -> bytes:
    encoder = zlib.compressobj(wbits=bits)
    return encoder.compress(data) + encoder.flush()


CODINGS: dict[str, Any] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": lambda data: deflate(data, -15),
}


def serve(compress: Any, coding: str, result: dict[str, Any] = DONE, *, stream: bool = False) -> Any:
    async def behave(request: ReceivedRequest) -> None:
        body = request.answer({"server/discover": OFFER, "tools/call": result}.get(request.method, {}))
        head = f"Content-Encoding: {coding}\r\n"
        assert request.headers["accept-encoding"] == "identity"
        if stream:
            event = b"data: " + body + b"\n\n"
            await request.reply(compress(event), type="text/event-stream", more=head)
        else:
            await request.reply(compress(body), more=head)

    return behave


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_compressed_responses_are_read(*, stream: bool) -> None:
    for coding, compress in CODINGS.items():
        behave = serve(compress, coding, stream=stream)
        async with connected(behave) as (_, client):
            assert [(await client.call("x")).text for _ in range(2)] == ["done"] * 2


async def test_compressed_responses_are_bounded_by_their_decompressed_size() -> None:
    large = {"content": [{"type": "text", "text": "a" * 5_000_000}]}
    options, behave = Options(max_bytes=1_000_000), serve(gzip.compress, "gzip", large)
    async with connected(behave, options=options) as (_, client):
        with pytest.raises(TooLarge, match="1,000,000 bytes"):
            await client.call("x")


async def test_unsupported_content_codings_are_reported() -> None:
    for coding, compress, said in (
        ("br", lambda data: b"\x0b" + data, "compressed its response with 'br'"),
        ("gzip", lambda data: b"\x1f\x8b\x08nonsense", "can't be decompressed"),
        ("gzip", lambda data: gzip.compress(data)[:-6], "compressed response is incomplete"),
    ):
        async with misbehaving(serve(compress, coding)) as server:
            with pytest.raises(ClientError, match=said):
                async with Client(server.url, timeout=WAIT) as client:
                    await client.call("x")
