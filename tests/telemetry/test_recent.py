from hypothesis import given
from hypothesis import strategies as st

from millstream._telemetry.process import PerSecond


@given(st.lists(st.integers(0, 20)))
def test_counts_of_the_last_second_are_never_stale(seconds: list[int]) -> None:
    ring = PerSecond()
    for second in sorted(seconds):
        if second >= ring.until:
            ring.turn(second)
        ring.count += 1
    last = max(seconds, default=0)
    assert ring.last(last) == (seconds.count(last - 1) if seconds else 0)
    assert ring.last(last + 1) == (seconds.count(last) if seconds else 0)
    assert ring.last(last + 3) == 0
