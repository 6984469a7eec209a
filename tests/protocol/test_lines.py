"""Lines of stdio. What any cut of the bytes gives is in `properties/test_splitting.py`."""

from millstream._protocol.lines import LineSplitter


def test_a_last_line_without_an_end_counts_when_the_input_ends() -> None:
    """Our choice: a script may print its last message without a newline."""
    splitter = LineSplitter(100)
    assert splitter.feed(b'{"a":1}\r\n{"b"') == [b'{"a":1}']
    assert splitter.feed(b":2}") == []
    assert splitter.end() == [b'{"b":2}']
    assert splitter.end() == []


def test_a_line_that_is_too_long_is_reported_once_and_keeps_no_bytes() -> None:
    """Our choice: the memory of a connection is bounded, and the lines behind a bad one are read."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"12345") == [None]
    assert splitter.feed(b"6" * 1000) == []
    assert splitter.feed(b"7\nab\n") == [b"ab"]
