from millstream._telemetry.metrics import Labels
from millstream._telemetry.process import IDLE_SECONDS, ActiveSessions

HTTP = ("http", "2025-11-25")


def table(**given: int) -> tuple[ActiveSessions, list[tuple[Labels, float]]]:
    ended: list[tuple[Labels, float]] = []
    return ActiveSessions(lambda labels, seconds: ended.append((labels, seconds)), **given), ended


def test_sessions_are_active_while_used() -> None:
    sessions, ended = table()
    sessions.note("a", 10.0, *HTTP)
    sessions.note("a", 20.0, *HTTP)
    sessions.note("b", 20.0, "stdio", "2024-11-05")
    assert sessions.count(20.0 + IDLE_SECONDS) == {HTTP: 1, ("stdio", "2024-11-05"): 1}
    assert sessions.count(21.0 + IDLE_SECONDS) == {}
    assert ended == [(HTTP, 10.0), (("stdio", "2024-11-05"), 0.0)]


def test_ended_sessions_are_counted_once() -> None:
    sessions, ended = table()
    sessions.note("a", 1.0, *HTTP)
    sessions.over("a")
    sessions.over("a")
    assert ended == [(HTTP, 0.0)]
    assert len(sessions) == 0


def test_session_floods_use_bounded_memory() -> None:
    sessions, ended = table(max_sessions=3)
    for number in range(10):
        sessions.note(str(number), float(number), *HTTP)
    assert len(sessions) == 3
    assert len(ended) == 7
