from millstream._protocol.lines import LineSplitter


def test_last_line_without_newline_counts_at_end_of_input() -> None:
    splitter = LineSplitter(100)
    assert splitter.feed(b'{"a":1}\r\n{"b"') == [b'{"a":1}']
    assert splitter.feed(b":2}") == []
    assert splitter.end() == [b'{"b":2}']
    assert splitter.end() == []


def test_overlong_lines_are_reported_once_and_not_kept() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"12345") == [None]
    assert splitter.feed(b"6" * 1000) == []
    assert splitter.feed(b"7\nab\n") == [b"ab"]
