import gzip
import zlib

from cases import for_each
from millstream._http.message import JSON_HEAD, STREAM_HEAD, Response, compress
from millstream._transports.hub_routes import GZIP_START, encode_sse_gzip
from millstream.hub import Event

LARGE = b'{"text":"' + b"again and again " * 1000 + b'"}'


@for_each("accepted", [b"gzip", b"br, gzip", b"GZIP;q=0.5, identity", b"gzip;q=1.0"])
def test_large_replies_are_compressed_for_gzip_clients(accepted: bytes) -> None:
    reply = compress(Response(LARGE), {b"accept-encoding": accepted})
    assert gzip.decompress(reply.body) == LARGE
    assert len(reply.body) < len(LARGE) / 5
    assert b"content-encoding: gzip\r\nvary: accept-encoding\r\n" in reply.head


@for_each("accepted", [b"", b"br", b"gzip;q=0", b"gzip;q=0.000", b"x-gzipped"])
def test_other_clients_get_uncompressed_replies(accepted: bytes) -> None:
    assert compress(Response(LARGE), {b"accept-encoding": accepted}).body == LARGE


@for_each("head", [STREAM_HEAD.replace(b"text/event-stream", b"image/png"), b"etag: x\r\n" + JSON_HEAD])
def test_binary_replies_are_not_compressed(head: bytes) -> None:
    assert compress(Response(LARGE, 200, head), {b"accept-encoding": b"gzip"}).body == LARGE


def test_compressed_events_form_one_gzip_member() -> None:
    """Browsers, curl, and httpx2 stop after the first member."""
    events = [encode_sse_gzip(Event("broadcast", data, None, id=f"e.{n}")) for n, data in enumerate((b"a", b"b c"))]
    reader = zlib.decompressobj(31)
    assert reader.decompress(GZIP_START + events[0]) == b"id: e.0\ndata: a\n\n"
    assert reader.decompress(events[1]) == b"id: e.1\ndata: b c\n\n"
    assert (reader.eof, reader.unused_data) == (False, b"")
