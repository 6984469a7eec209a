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
  const { Parser } = await import(new URL("assets/hub.js", document.baseURI));
  const parser = new Parser();
  return { events: pieces.flatMap((piece) => [...parser.feed(piece)]), id: parser.lastEventId, retry: parser.retryMs };
}"""


def test_chunk_boundaries_do_not_change_events(hub: str, open_page: OpenPage) -> None:
    """HTML standard, 9.2.6: line ends of three kinds, comments, ids without data."""
    page = open_page(f"{hub}/docs")
    cuts = [[0, len(STREAM)], list(range(len(STREAM) + 1)), *([0, at, len(STREAM)] for at in range(1, len(STREAM)))]
    for cut in cuts:
        pieces = [STREAM[start:end] for start, end in pairwise(cut)]
        assert page.evaluate(PARSE, pieces) == {"events": EVENTS, "id": "2", "retry": 50}


FEED = """async () => {
  const { Feed } = await import(new URL("assets/hub.js", document.baseURI));
  const asked = [];
  const heard = [];
  window.fetch = async (url) => {
    asked.push(url.searchParams.get("last_event_id"));
    const text = "retry: 1\\n\\nid: 1\\ndata: one\\n\\nid: 2\\ndata: bad\\n\\nid: 3\\ndata: three\\n\\n";
    return new Response(text, { headers: { "content-type": "text/event-stream" } });
  };
  console.error = (error) => heard.push(`told: ${error.message}`);
  await new Promise((resolve) => {
    const feed = new Feed("events", ({ data }) => {
      if (asked.length > 1) {
        feed.stop();
        resolve();
        return;
      }
      if (data === "bad") throw new RangeError("Invalid time value");
      heard.push(data);
    });
    feed.start();
  });
  return { heard, asked };
}"""


def test_failing_event_handler_does_not_drop_later_events(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/docs")
    heard = ["one", "told: Invalid time value", "three"]
    assert page.evaluate(FEED) == {"heard": heard, "asked": [None, "3"]}


TAKEN = """async () => {
  const { Parser } = await import(new URL("assets/hub.js", document.baseURI));
  const parser = new Parser();
  const ids = [];
  const chunk = "id: 1\\ndata: one\\n\\nid: 2\\ndata: two\\n\\nid: 3\\n\\n";
  for (const event of parser.feed(chunk)) ids.push(parser.lastEventId);
  return [...ids, parser.lastEventId];
}"""


def test_last_event_id_belongs_to_the_handled_event(hub: str, open_page: OpenPage) -> None:
    assert open_page(f"{hub}/docs").evaluate(TAKEN) == ["1", "2", "3"]
