import pytest

from millstream._telemetry.metrics import FINE, Labels, Series
from millstream._telemetry.process import (
    MAX_INTERVALS,
    MAX_OPERATIONS,
    REST,
    SECONDS_EACH,
    Gauges,
    History,
    HistoryWindow,
)

START = 900 * 2_000_000
ADD, SLOW = ("tools/call", "add"), ("tools/call", "slow")


def make_history() -> tuple[History, dict[Labels, Series]]:
    """Return a history and its series."""
    outcomes = ((*ADD, ""), (*ADD, "tool_error"), (*ADD, "server_error"), (*SLOW, ""))
    series = {labels: Series(FINE) for labels in outcomes}
    return History(FINE), dict(series)


def calls(past: HistoryWindow) -> list[int]:
    """Return the calls of each point."""
    return [sum(tally.buckets.values()) for _, (tally, _) in sorted(past.points.items())]


def test_history_intervals_contain_increments() -> None:
    history, series = make_history()
    for second, number in ((0, 3), (1, 0), (10, 2), (11, 1)):
        for _ in range(number):
            series[(*ADD, "")].observe(0.001)
        series[(*ADD, "tool_error" if second else "server_error")].observe(1.0)
        history.take(START + second, series, Gauges(lag=0.01 * second, cpu=0.5, memory=10 + second))
    past = history.look(60, ADD)
    assert (past.step, past.until, calls(past)) == (SECONDS_EACH, START + 12, [5, 5])
    assert (past.operations[ADD].errors, past.operations[ADD].server_errors) == (4, 1)
    assert past.chosen.keys() == past.points.keys()
    assert SLOW not in past.operations
    assert past.points[START + 10][1] == Gauges(0.11, 1.0, 21)


def test_longer_ranges_sum_their_intervals() -> None:
    history, series = make_history()
    for second in range(4_000):
        series[(*ADD, "")].observe(0.001)
        history.take(START + second, series, Gauges(cpu=0.1, memory=second))
    for seconds, step, points in ((900, 10, 90), (3_600, 60, 61)):
        past = history.look(seconds)
        assert (past.step, len(past.points)) == (step, points), seconds
        counted = calls(past)
        assert counted[1:-1] == [step] * (points - 2), seconds
        assert counted[-1] == (4_000 % step or step), seconds
        assert sum(counted) == past.operations[ADD].buckets.popitem()[1]
        full = sorted(past.points)[1]
        assert past.points[full][1].cpu == pytest.approx(0.1 * step)


def test_day_has_points_of_five_minutes_and_is_bounded() -> None:
    history, series = make_history()
    for second in range(0, 100_000, 20):
        series[(*ADD, "")].observe(0.001)
        history.take(START + second, series, Gauges(cpu=0.1, memory=second))
    past = history.look(86_400, ADD)
    counted = calls(past)
    assert (past.step, len(counted)) == (300, 289)
    assert counted[1:-1] == [15] * 287
    assert past.chosen.keys() == past.points.keys()
    assert min(past.points) > past.until - 86_400 - 300
    assert len(history.look(3_600).points) == 61


def test_history_is_bounded() -> None:
    history, _ = make_history()
    series: dict[Labels, Series] = {("tools/call", f"tool_{number:03d}", ""): Series(FINE) for number in range(500)}
    for second in range(0, 2 * 3_600, 20):
        for number, each in enumerate(series.values()):
            each.observe(0.0001 * (1 + number))
        history.take(START + second, series, Gauges(memory=2**33))
    past = history.look(3_600)
    assert len(past.operations) == MAX_OPERATIONS + 1
    assert sum(past.operations[REST].buckets.values()) > 0
    whole = 500 * 3_600 // 20
    assert abs(sum(calls(past)) - whole) <= 1_500  # one point
    assert sum(map(len, history._hour.packed)) < MAX_INTERVALS * (40 + 12 * (MAX_OPERATIONS + 1))


def test_stalled_and_reversed_clocks_change_nothing() -> None:
    history, series = make_history()
    series[(*ADD, "")].observe(0.1)
    history.take(START, series, Gauges())
    series[(*ADD, "")].observe(0.1)
    history.take(START, series, Gauges())
    history.take(START - 5, series, Gauges())
    assert calls(history.look(60)) == [1]
    history.take(START + SECONDS_EACH, series, Gauges())
    assert calls(history.look(60)) == [1, 1]


def test_empty_history_has_no_points() -> None:
    past = make_history()[0].look(3_600, ADD)
    assert (past.points, past.operations, past.chosen) == ({}, {}, {})
