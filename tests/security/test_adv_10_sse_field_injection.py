"""Advisory 10: injection into event streams with CR, LF, and NUL (CVE-2026-43968, CVE-2026-44214)."""

import random
from collections.abc import Callable

import msgspec
import pytest

from cases import for_each
from millstream._protocol import sse
from millstream._protocol.sse import Decoder, SseEvent

PAYLOADS = ["\n", "\r", "\r\n", "\0", "a\n\nevent: evil\ndata: x", "a\rdata: x", "a\r\rid: 9", "\nretry: 1", "a\n"]

ENCODERS: dict[str, Callable[[str], bytes]] = {
    "event": lambda text: sse.encode_event(b"", event=text),
    "id": lambda text: sse.encode_event(b"", id=text),
    "message id": lambda text: sse.encode_message(b"{}", text),
    "priming id": sse.prime,
    "endpoint": sse.endpoint,
}


@for_each("payload", PAYLOADS)
@for_each("encode", ENCODERS.values(), ids=ENCODERS.keys())
def test_single_line_fields_reject_line_breaks_and_nul(encode: Callable[[str], bytes], payload: str) -> None:
    """CVE-2026-43968 was a bare CR in an event name."""
    with pytest.raises(ValueError, match="CR, LF, or NUL"):
        encode(payload)


@for_each("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\ufeff", " ", ":"])
@for_each("encode", ENCODERS.values(), ids=ENCODERS.keys())
def test_only_line_breaks_end_a_line(encode: Callable[[str], bytes], separator: str) -> None:
    """WHATWG HTML §9.2.5."""
    text = f"{separator}a{separator}data: evil"
    events = Decoder().feed(encode(text))
    assert len(events) == 1
    assert text in (events[0].event, events[0].id, events[0].data)


@for_each("payload", PAYLOADS)
def test_line_breaks_in_data_stay_data(payload: str) -> None:
    """CVE-2026-44214."""
    stream = sse.encode_event(payload.encode(), event="tick", id="1")
    assert Decoder().feed(stream) == [SseEvent(payload.replace("\r\n", "\n").replace("\r", "\n"), "tick", "1")]


@for_each("payload", [*PAYLOADS, "\u2028", "\x85"])
def test_json_messages_are_always_one_line(payload: str) -> None:
    """WHATWG HTML §9.2: JSON without pretty-printing is safe."""
    message = msgspec.json.encode({payload: payload})
    events = Decoder().feed(sse.encode_message(message, "7"))
    assert events == [SseEvent(message.decode(), "message", "7")]
    assert msgspec.json.decode(events[0].data) == {payload: payload}


@pytest.mark.many
def test_strings_round_trip_through_an_event_stream() -> None:
    source = random.Random(10)
    alphabet = "\r\n\r\n: aidevntry0\0\ufeff\u2028é😀"
    strings = ["".join(source.choices(alphabet, k=source.randrange(12))) for _ in range(100_000)]
    stream = b"".join(sse.encode_event(text.encode(), id=str(n)) for n, text in enumerate(strings))
    decoder = Decoder()
    cuts = range(0, len(stream), 4_093)
    events = [event for start in cuts for event in decoder.feed(stream[start : start + 4_093])]
    assert [event.data for event in events] == [text.replace("\r\n", "\n").replace("\r", "\n") for text in strings]
    assert [event.id for event in events] == [str(n) for n in range(100_000)]
