from millstream._protocol.jsonrpc import LineSplitter, LineStart


def test_last_line_without_a_newline_is_read_at_end_of_input() -> None:
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


def test_clipped_lines_keep_start_and_end() -> None:
    splitter = LineSplitter(1000, clip=True)
    line = b"<" * 300 + b"x" * 2000 + b">" * 300
    for size in (1, 7, 5000):
        found = [each for at in range(0, len(line), size) for each in splitter.feed(line[at : at + size])]
        assert found == []
        found = splitter.feed(b"\nab\n")
        assert found == [b"<" * 200 + b">" * 200, b"ab"]
        assert type(found[0]) is LineStart
    assert splitter.feed(b"x" * 4001) == [None]
    assert splitter.feed(b"x" * 4001) == []
