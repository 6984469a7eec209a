import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream import ProtocolError
from millstream._protocol import sse
from millstream._protocol.sse import Decoder, SseEvent
from strategies import bytewise, cuts, line_ends, one_line_texts, texts


def decode(stream: bytes) -> list[SseEvent]:
    """The events of a stream, fed whole; also fed byte by byte and with trailing bytes, which must not differ."""
    events = Decoder().feed(stream)
    decoder = Decoder()
    assert [event for byte in bytewise(stream) for event in decoder.feed(byte)] == events
    assert Decoder().feed(stream + b"data: unfinished") == events
    return events


# encoding


def test_events_without_options_are_only_data() -> None:
    """WHATWG HTML §9.2.5."""
    assert sse.encode_event(b"x") == b"data: x\n\n"


def test_fields_precede_the_data() -> None:
    encoded = sse.encode_event(b"x", event="tick", id="7", retry_ms=0)
    assert encoded == b"id: 7\nevent: tick\nretry: 0\ndata: x\n\n"


@for_each("end", [b"\n", b"\r", b"\r\n"])
def test_each_line_of_data_gets_its_own_field(end: bytes) -> None:
    """WHATWG HTML §9.2.5: CRLF, LF and CR all end a line."""
    assert sse.encode_event(b"a" + end + b"b" + end) == b"data: a\ndata: b\ndata: \n\n"


def test_messages_become_message_events() -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse: every server message is an ``event: message``."""
    assert sse.encode_message(b"{}") == b"event: message\ndata: {}\n\n"
    assert sse.encode_message(b"{}", "a.7") == b"id: a.7\nevent: message\ndata: {}\n\n"


def test_a_priming_event_has_an_id_and_empty_data() -> None:
    """MCP 2025-11-25, basic/transports."""
    assert sse.prime("a.0") == b"id: a.0\ndata:\n\n"


def test_block_with_only_a_retry_field_dispatches_no_event() -> None:
    """MCP 2025-11-25, basic/transports."""
    assert sse.retry(500) == b"retry: 500\n\n"
    assert decode(sse.retry(500)) == []


def test_the_endpoint_event_carries_the_url() -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse."""
    assert sse.endpoint("/messages/?session_id=1") == b"event: endpoint\ndata: /messages/?session_id=1\n\n"


@for_each("character", ["\r", "\n", "\0"])
def test_line_breaks_and_nul_in_single_line_fields_are_rejected(character: str) -> None:
    """WHATWG HTML §9.2.6."""
    for encode in (sse.prime, sse.endpoint, lambda id: sse.encode_message(b"{}", id)):
        with pytest.raises(ValueError, match="CR, LF, or NUL"):
            encode(f"a{character}b")


def test_a_negative_retry_is_rejected() -> None:
    """WHATWG HTML §9.2.6."""
    for encode in (sse.retry, lambda ms: sse.encode_event(b"", retry_ms=ms)):
        with pytest.raises(ValueError, match="-1"):
            encode(-1)


# decoding: the standard's own examples


def test_examples_in_the_standard_are_decoded_as_it_describes() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [SseEvent("YHOO\n+2\n10")]
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"
    assert decode(stream + b"\n") == [
        SseEvent("first event", id="1"),
        SseEvent("second event"),
        SseEvent(" third event"),
    ]
    assert decode(stream) == [SseEvent("first event", id="1"), SseEvent("second event")]
    assert decode(b"data\n\ndata\ndata\n\ndata:") == [SseEvent(""), SseEvent("\n")]
    assert decode(b"data:test\n\ndata: test\n\n") == [SseEvent("test"), SseEvent("test")]


@for_each("end", ["\n", "\r", "\r\n"])
def test_every_type_of_line_break_is_recognized(end: str) -> None:
    assert decode(f"event: a{end}data: 1{end}data: 2{end}{end}data: 3{end}{end}".encode()) == [
        SseEvent("1\n2", "a"),
        SseEvent("3"),
    ]


def test_event_ended_by_cr_is_dispatched_before_the_lf() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: x\r\n\r") == [SseEvent("x")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: y\n\n") == [SseEvent("y")]


def test_one_byte_order_mark_is_skipped() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(b"\xef\xbb\xbfdata: x\n\n") == [SseEvent("x")]
    assert decode(b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: \xef\xbb\xbf\n\n") == [SseEvent("\ufeff")]


def test_invalid_utf8_becomes_replacement_characters() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(b"data: a\xffb\xe2\x82\n\n") == [SseEvent("a\ufffdb\ufffd")]


def test_comments_unknown_fields_and_field_names_in_other_case_are_ignored() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(sse.COMMENT + b"Data: no\nfoo: bar\n data: no\n:data: no\ndata: x\n\n") == [SseEvent("x")]


def test_the_last_event_id_persists_and_an_empty_id_resets_it() -> None:
    """WHATWG HTML §9.2.6."""
    events = decode(b"id: 1\ndata: a\n\ndata: b\n\nid:\ndata: c\n\n")
    assert events == [SseEvent("a", id="1"), SseEvent("b", id="1"), SseEvent("c")]


def test_an_id_with_nul_is_ignored() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(b"id: 1\nid: 2\0\ndata: a\n\n") == [SseEvent("a", id="1")]


def test_event_name_does_not_apply_to_later_events() -> None:
    """WHATWG HTML §9.2.6."""
    assert decode(b"event: tick\n\ndata: a\n\n") == [SseEvent("a")]


def test_ids_take_effect_at_the_blank_line() -> None:
    """WHATWG HTML §9.2.6."""
    decoder = Decoder()
    decoder.feed(b"id: 1\n\nid: 2\ndata: cut")
    assert decoder.last_event_id == "1"


def test_a_priming_event_is_an_event_with_empty_data() -> None:
    """MCP 2025-11-25, basic/transports."""
    assert decode(b"id: a.0\nretry: 500\ndata:\n\n") == [SseEvent("", id="a.0", retry_ms=500)]
    decoder = Decoder()
    assert decoder.retry_ms is None
    assert decoder.feed(b"id: a.1\nretry: 900\n\n") == []
    assert (decoder.last_event_id, decoder.retry_ms) == ("a.1", 900)
    assert decoder.feed(b"data: x\n\n") == [SseEvent("x", id="a.1")]


@for_each("value", ["", "-1", "+1", "1.5", "1e3", "1s", "\u0661", "9" * 16, "9" * 5000])
def test_a_retry_that_is_not_digits_or_too_long_is_ignored(value: str) -> None:
    """WHATWG HTML §9.2.6."""
    decoder = Decoder()
    decoder.feed(f"retry: 5\nretry: {value}\n\n".encode())
    assert decoder.retry_ms == 5


def test_leading_zeros_in_a_retry_are_ignored() -> None:
    """WHATWG HTML §9.2.6."""
    decoder = Decoder()
    assert decoder.feed(b"retry: " + b"0" * 5000 + b"12\ndata\n\n") == [SseEvent("", retry_ms=12)]


# decoding: limits


@for_each(
    "stream",
    [b"data: 12345", b"data: 12345\n", b"data:1234\ndata:12345\ndata\n", b": comment..\n", b"data\n" * 11],
)
def test_oversized_lines_and_events_end_the_decoder(stream: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        decoder = Decoder(max_event_bytes=10)
        with pytest.raises(ProtocolError, match="10 bytes") as caught:
            collections.deque(map(decoder.feed, chunks))
        assert caught.value.code == -32700
        with pytest.raises(ProtocolError):
            decoder.feed(b"\n\n")


def test_events_before_an_error_are_returned_first() -> None:
    decoder = Decoder(max_event_bytes=10)
    assert decoder.feed(b"data: a\n\ndata: 123456") == [SseEvent("a")]
    with pytest.raises(ProtocolError):
        decoder.feed(b"")


def test_size_cap_applies_to_each_event() -> None:
    decoder = Decoder(max_event_bytes=10)
    assert decoder.feed(b"data: 1234\ndata:123\n\n" * 3) == [SseEvent("1234\n123")] * 3


def test_comments_are_not_limited() -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    decoder = Decoder(max_event_bytes=10)
    assert decoder.feed(b"data: a\n" + b":\n" * 1000 + b"\n") == [SseEvent("a")]


# properties


@given(texts, one_line_texts, one_line_texts, st.integers(0, 10**15 - 1), st.data())
def test_events_round_trip(text: str, name: str, id: str, retry_ms: int, data: st.DataObject) -> None:
    stream = sse.encode_event(text.encode(), event=name, id=id, retry_ms=retry_ms)
    expected = SseEvent(text.replace("\r\n", "\n").replace("\r", "\n"), name or "message", id, retry_ms)
    assert decode(stream) == [expected]
    decoder = Decoder()
    assert [event for chunk in data.draw(cuts(stream * 2)) for event in decoder.feed(chunk)] == [expected] * 2


@given(st.lists(st.tuples(st.sampled_from(["data", "data: x", "id: 1", "event: e", ":", "", "retry: 2"]), line_ends)))
def test_mixed_line_breaks_are_equivalent_to_lf(lines: list[tuple[str, str]]) -> None:
    mixed = "".join(line + (":" if end != "\r\n" and not line else "") + end for line, end in lines)
    plain = mixed.replace("\r\n", "\n").replace("\r", "\n")
    assert decode(mixed.encode()) == decode(plain.encode())


@given(st.binary() | st.text("\r\n\0:daitvenry 0\ufeff").map(str.encode), st.integers(0, 40), st.data())
def test_chunk_boundaries_do_not_change_the_events(stream: bytes, cap: int, data: st.DataObject) -> None:

    def run(chunks: list[bytes]) -> tuple[list[SseEvent], bool]:
        decoder, events = Decoder(max_event_bytes=cap), list[SseEvent]()
        try:
            for chunk in [*chunks, b""]:
                events += decoder.feed(chunk)
        except ProtocolError:
            return events, True
        return events, False

    whole = run([stream])
    assert run(list(bytewise(stream))) == whole
    assert run(data.draw(cuts(stream))) == whole
