"""The parser of event streams in the pages: any cut, any line end."""

from itertools import pairwise

import pytest

from pages_world import OpenPage

pytestmark = pytest.mark.server

STREAM = (
    ": hello\n\nid: 1\ndata: one\n\nevent: named\rdata: two\rdata:  lines\r\rid: 2\r\n\r\n"
    "data\n\nretry: 50\nunknown: x\ndata: ä€😀\r\n\r\ndata: never ended"
)
EVENTS = [
    {"type": "message", "data": "one", "id": "1"},
    {"type": "named", "data": "two\n lines", "id": "1"},
    {"type": "message", "data": "", "id": "2"},
    {"type": "message", "data": "ä€😀", "id": "2"},
]
PARSE = """async (pieces) => {
  const { Parser } = await import(new URL("assets/sse.js", document.baseURI));
  const parser = new Parser();
  return { events: pieces.flatMap((piece) => parser.feed(piece)), id: parser.lastEventId, retry: parser.retryMs };
}"""


def test_events_are_the_same_wherever_the_stream_is_cut(hub: str, open_page: OpenPage) -> None:
    """HTML standard, 9.2.6: line ends of three kinds, comments, ids without data."""
    page = open_page(f"{hub}/docs")
    cuts = [[0, len(STREAM)], list(range(len(STREAM) + 1)), *([0, at, len(STREAM)] for at in range(1, len(STREAM)))]
    for cut in cuts:
        pieces = [STREAM[start:end] for start, end in pairwise(cut)]
        assert page.evaluate(PARSE, pieces) == {"events": EVENTS, "id": "2", "retry": 50}
