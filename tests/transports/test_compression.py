import gzip
import threading
import zlib

import pytest

from cases import for_each
from growth import MIB, measured
from http_peer import ToyApp, serve
from http_peer import request as encode_request
from millstream import Settings
from millstream._http import message
from millstream._http.message import JSON_HEAD, STREAM_HEAD, HttpRequest, Response, compress, parse_accept
from millstream._transports.hub_routes import GZIP_START, encode_sse_gzip
from millstream.hub import Event

LARGE = b'{"text":"' + b"again and again " * 1000 + b'"}'


def make_request(accepted: bytes = b"gzip", peer: str = "192.0.2.1", **headers: bytes) -> HttpRequest:
    fields = {b"accept-encoding": accepted, **{name.replace("_", "-").encode(): headers[name] for name in headers}}
    return HttpRequest("GET", "/", fields.items(), fields, peer=peer)


@for_each("accepted", [b"gzip", b"br, gzip", b"GZIP;q=0.5, identity", b"gzip;q=1.0"])
async def test_large_replies_are_compressed_for_gzip_clients(accepted: bytes) -> None:
    reply = await compress(Response(LARGE), make_request(accepted), "auto")
    assert gzip.decompress(reply.body) == LARGE
    assert len(reply.body) < len(LARGE) / 5
    assert b"content-encoding: gzip\r\nvary: accept-encoding\r\n" in reply.head


@for_each("accepted", [b"", b"br", b"gzip;q=0", b"gzip;q=0.000", b"x-gzipped"])
async def test_other_clients_get_uncompressed_replies(accepted: bytes) -> None:
    assert (await compress(Response(LARGE), make_request(accepted), "on")).body == LARGE


@for_each("head", [STREAM_HEAD.replace(b"text/event-stream", b"image/png"), b"etag: x\r\n" + JSON_HEAD])
async def test_binary_replies_are_not_compressed(head: bytes) -> None:
    assert (await compress(Response(LARGE, 200, head), make_request(), "on")).body == LARGE


@for_each("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
async def test_clients_on_this_machine_get_uncompressed_replies_unless_a_proxy_forwards_them(peer: str) -> None:
    assert (await compress(Response(LARGE), make_request(peer=peer), "auto")).body == LARGE
    for header in ("x_forwarded_for", "forwarded", "via"):
        forwarded = make_request(peer=peer, **{header: b"x"})
        assert gzip.decompress((await compress(Response(LARGE), forwarded, "auto")).body) == LARGE
    assert gzip.decompress((await compress(Response(LARGE), make_request(peer=peer), "on")).body) == LARGE


@for_each("peer", ["", "192.0.2.1", "::12", "1.127.0.0"])
async def test_other_peers_get_compressed_replies(peer: str) -> None:
    request = make_request(peer=peer)
    assert gzip.decompress((await compress(Response(LARGE), request, "auto")).body) == LARGE
    assert (await compress(Response(LARGE), request, "off")).body == LARGE


@for_each("lane", [True, False], ids=["own", "asgi"])
async def test_very_large_replies_are_compressed_in_a_thread(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"/small": 4096, "/medium": message.LARGE, "/large": message.LARGE + 1}
    threads: list[bool] = []

    def note(data: bytes) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return gzip.compress(data)

    async def answer(request: HttpRequest) -> Response:
        return Response(b"x" * sizes[request.path])

    monkeypatch.setattr(message, "gzip_member", note)
    app = ToyApp({("POST", path): answer for path in sizes}, Settings(compression="on"))
    async with serve(app, lane=lane) as running:
        peer = await running.connect()
        for path, size in sizes.items():
            await peer.send(encode_request("POST", path, b"", b"Accept-Encoding: gzip\r\n"))
            _, headers, body = await peer.reply()
            assert headers[b"content-encoding"] == b"gzip"
            assert gzip.decompress(body) == b"x" * size
    assert threads == [True, True, False]


def test_compressed_events_form_one_gzip_member() -> None:
    """Browsers, curl, and httpx2 stop after the first member."""
    events = [encode_sse_gzip(Event("broadcast", data, None, id=f"e.{n}")) for n, data in enumerate((b"a", b"b c"))]
    reader = zlib.decompressobj(31)
    assert reader.decompress(GZIP_START + events[0]) == b"id: e.0\ndata: a\n\n"
    assert reader.decompress(events[1]) == b"id: e.1\ndata: b c\n\n"
    assert (reader.eof, reader.unused_data) == (False, b"")


def test_long_accept_values_are_not_kept() -> None:
    with measured() as growth:
        for number in range(100):
            assert parse_accept(b"application/json" + 30_000 * b" " + b",a/%d" % number).json
    assert growth.bytes < MIB
