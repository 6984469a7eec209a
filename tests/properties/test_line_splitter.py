from hypothesis import given
from hypothesis import strategies as st

from millstream._protocol.jsonrpc import LineSplitter
from strategies import bytewise, cuts

LIMIT = 12
streams = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"{}", b"\xc3\xa9", b"\xff", b"x" * 11, b"x" * 12, b"x" * 13]),
    max_size=12,
).map(b"".join)


def lines_of(pieces: list[bytes]) -> list[bytes | None]:
    """Return the lines that a splitter returns for the pieces."""
    splitter = LineSplitter(LIMIT)
    return [line for piece in pieces for line in splitter.feed(piece)]


@given(streams.flatmap(lambda data: st.tuples(st.just(data), cuts(data))))
def test_chunk_boundaries_do_not_change_the_lines(case: tuple[bytes, list[bytes]]) -> None:
    data, pieces = case
    whole = lines_of([data])
    assert lines_of(pieces) == whole
    assert lines_of(list(bytewise(data))) == whole


@given(streams)
def test_overlong_lines_are_reported_in_place(data: bytes) -> None:
    *complete, rest = data.split(b"\n")
    expected = [None if len(line) > LIMIT else line.strip(b" \t\r") for line in complete]
    expected += [None] if len(rest) > LIMIT else []
    assert lines_of([data]) == [line for line in expected if line != b""]
