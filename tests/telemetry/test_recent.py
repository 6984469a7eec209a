from hypothesis import given
from hypothesis import strategies as st

from millstream._telemetry.process import Growth, PerSecond


def count(ring: PerSecond, *seconds: int) -> None:
    """Count once in each of these seconds."""
    for second in seconds:
        if second >= ring.until:
            ring.turn(second)
        ring.count += 1


def test_completed_seconds_are_listed_oldest_first() -> None:
    ring = PerSecond(8)
    count(ring, 3, 3, 4, 6, 7)
    assert ring.last(7, 5) == [0, 2, 1, 0, 1]


@given(st.lists(st.integers(0, 100)))
def test_ring_buffers_never_show_stale_counts(seconds: list[int]) -> None:
    ring = PerSecond(16)
    count(ring, *sorted(seconds))
    now = max(seconds, default=0) + 1
    assert ring.last(now, 10) == [seconds.count(each) for each in range(now - 10, now)]


def test_growth_covers_ten_to_fifteen_seconds() -> None:
    growth: Growth[str] = Growth(100.0)
    assert growth.since(101.0, {"a": [1, 0]}) == (1.0, {"a": [1, 0]})
    for second in range(102, 160):
        passed, grown = growth.since(float(second), {"a": [second - 100, 0], "b": [0, 5]})
        assert grown["a"] == [round(passed), 0] if passed < second - 100 else [second - 100, 0]
        assert passed <= 15
        if second > 111:
            assert passed >= 10


def test_new_keys_start_at_zero() -> None:
    growth: Growth[str] = Growth(0.0)
    growth.since(1.0, {"a": [1]})
    assert growth.since(2.0, {"a": [4], "b": [2]}) == (1.0, {"a": [3], "b": [2]})


def test_growth_after_a_long_pause_covers_the_pause() -> None:
    growth: Growth[str] = Growth(0.0)
    growth.since(1.0, {"a": [1]})
    assert growth.since(500.0, {"a": [9]}) == (500.0, {"a": [9]})
    assert growth.since(501.0, {"a": [10]}) == (1.0, {"a": [1]})
