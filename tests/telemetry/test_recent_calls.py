import json
from typing import Any

import msgspec

from cases import for_each
from millstream import Principal
from millstream._protocol.errors import ProtocolError
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import FIRST, NEWEST
from millstream._server.calls.call import CallFailure
from millstream._server.observability import history_values
from millstream._server.observability.recent_calls import (
    MAX_ARGUMENTS,
    MAX_CALLS,
    MAX_CLIENTS,
    MAX_ERRORS,
    MAX_FAILURES,
    MAX_READ,
    READ_EACH_SECOND,
    RecentCalls,
    WorkerCalls,
    call_values,
)  # fmt: skip
from millstream._telemetry.metrics import OTHER
from millstream._telemetry.process import Gauges, HistoryWindow, OperationTally
from telemetry_parts import make_call


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def call_with(arguments: Any, **given: Any) -> Any:
    """Return a tool call with arguments as JSON."""
    params = msgspec.json.encode({"name": "add", "arguments": arguments})
    return make_call(method="tools/call", name="add", params=params, **given)


def page_of(recent: RecentCalls) -> dict[str, Any]:
    """Return the page's data, read through another worker."""
    return call_values([msgspec.msgpack.decode(msgspec.msgpack.encode(recent.look()), type=WorkerCalls)])


def test_arguments_are_kept_for_failed_slow_and_watched_calls() -> None:
    clock = Clock()
    recent = RecentCalls(clock=clock)
    recent.observe(call_with({"n": 1}), 0.001, b"{}")
    recent.observe(call_with({"n": 2}, outcome="tool_error"), 0.001, b"{}")
    recent.observe(call_with({"n": 3}), 2.0, b"{}")
    assert {each["arguments"] for each in page_of(recent)["calls"]} == {None, '{"n":2}', '{"n":3}'}
    recent.observe(call_with({"n": 4}), 0.001, b"{}")
    clock.now += 60
    recent.observe(call_with({"n": 5}), 0.001, b"{}")
    kept = [each["arguments"] for each in page_of(recent)["calls"]]
    assert '{"n":4}' in kept
    assert '{"n":5}' not in kept


@for_each(
    ("given", "shown"),
    [
        ({"password": "hunter2", "user": "ada"}, '{"password":"***","user":"ada"}'),
        ({"deep": [{"apiKey": "abc", "x": 1}]}, '{"deep":[{"apiKey":"***","x":1}]}'),
        ({"note": "Authorization: Bearer abcdefghijkl"}, '{"note":"Authorization: ***"}'),
        ({"url": "https://x/?token=abcdef&y=1"}, '{"url":"https://x/?token=***&y=1"}'),
        ({"text": "x" * 5_000}, None),
        ({}, "{}"),
    ],
)
def test_secrets_in_arguments_are_hidden(given: Any, shown: str | None) -> None:
    recent = RecentCalls()
    recent.observe(call_with(given, outcome="tool_error"), 0.1, b"")
    text = page_of(recent)["calls"][0]["arguments"]
    if shown is None:
        assert len(text) == MAX_ARGUMENTS + 1
    else:
        assert text == shown


def test_arguments_are_shown_as_received() -> None:
    recent = RecentCalls()
    body = b'{"id":1,"params":{"arguments":{"secret_token":"s3cret","count":3.0}}}'
    recent.observe(make_call(method="tools/call", name="t", tool=object(), body=body, outcome="-1"), 0.1, b"")
    recent.observe(call_with({"big": "x" * 10}, outcome="-1"), 0.1, b"")
    huge = b'{"arguments":{"x":"' + b"y" * MAX_READ + b'"}}'
    recent.observe(make_call(method="tools/call", name="t", params=huge, outcome="-1"), 0.1, b"")
    recent.observe(make_call(method="tools/call", name="t", params=b"{broken", outcome="-1"), 0.1, b"")
    kept = [each["arguments"] for each in page_of(recent)["calls"]]
    assert sorted(kept, key=str) == [None, None, '{"big":"xxxxxxxxxx"}', '{"secret_token":"***","count":3.0}']
    assert "s3cret" not in json.dumps(page_of(recent))


def test_failures_show_the_reply_without_secrets() -> None:
    recent = RecentCalls()
    content = b'"content":[{"type":"text","text":"No such user; password=hunter2"}]'
    told = b'{"jsonrpc":"2.0","id":1,"result":{%b,"isError":true}}' % content
    bare = b'{"content":[{"type":"text","text":"Cold."}],"isError":true}'
    recent.observe(call_with({}, outcome="tool_error", incident="abc"), 0.1, told)
    recent.observe(call_with({}, outcome="tool_error"), 0.1, bare)
    recent.observe(call_with({}, failure=CallFailure("-32602", ProtocolError(-32602, "Unknown tool"))), 0.1, b"")
    recent.observe(call_with({}, outcome="tool_error"), 0.1, b"not JSON")
    recent.observe(call_with({}, cancelled=True), 0.1, b"")
    calls = page_of(recent)["calls"]
    assert {each["error"] for each in calls} == {"No such user; password=***", "Cold.", "Unknown tool", ""}
    assert {each["incident"] for each in calls} == {"abc", ""}
    assert {each["outcome"] for each in calls} == {"tool_error", "-32602", "cancelled"}


def test_failures_outlast_successful_calls() -> None:
    clock = Clock()
    recent = RecentCalls(clock=clock)
    recent.observe(call_with({}, outcome="tool_error"), 0.1, b"")
    for _ in range(3 * MAX_CALLS):
        clock.now += 0.001
        recent.observe(call_with({}), 0.001, b"")
    for _ in range(3 * MAX_FAILURES):
        recent.observe(call_with({}, outcome="-32602"), 0.001, b"")
    calls = page_of(recent)["calls"]
    assert len(calls) == MAX_CALLS
    assert sum(each["outcome"] != "" for each in calls) == MAX_FAILURES
    assert sum(each["arguments"] is not None for each in calls) <= 2 * READ_EACH_SECOND


def test_client_counts_are_bounded() -> None:
    recent, other = RecentCalls(), RecentCalls()
    for number in range(MAX_CLIENTS + 50):
        recent.observe(make_call(client=ClientInfo({}, f"agent-{number}", "1")), 0.1, b"")
    recent.observe(make_call(client=ClientInfo({}, "agent-0", "1"), outcome="-1", transport="stdio"), 0.1, b"")
    other.observe(make_call(principal=Principal("ada")), 0.1, b"")
    clients = {(each["name"], each["version"]): each for each in page_of(recent)["clients"]}
    assert len(clients) == MAX_CLIENTS + 1
    assert clients[(OTHER, "")]["calls"] == 50
    assert (clients[("agent-0", "1")]["calls"], clients[("agent-0", "1")]["errors"]) == (2, 1)
    assert clients[("agent-0", "1")]["transport"] == "stdio"
    assert page_of(other)["calls"][0]["caller"] == "ada"
    both = call_values([recent.look(), recent.look()])
    assert next(each for each in both["clients"] if each["name"] == "agent-0")["calls"] == 4


def test_ended_subscriptions_are_not_recent_calls() -> None:
    recent = RecentCalls()
    for given in ({}, {"cancelled": True}, {"outcome": "-32603"}):
        recent.observe(
            make_call(method="subscriptions/listen", client=ClientInfo({}, "ide", "1.0"), **given), 3_600.0, b""
        )
    assert page_of(recent) == {"calls": [], "clients": [], "errors": []}
    recent.observe(call_with({}, client=ClientInfo({}, "ide", "1.0")), 0.001, b"{}")
    found = page_of(recent)
    assert [each["method"] for each in found["calls"]] == ["tools/call"]
    assert [(each["name"], each["calls"], each["errors"]) for each in found["clients"]] == [("ide", 1, 0)]


def past(until: int, **given: Any) -> HistoryWindow:
    """Return a minute of a worker with two calls per second, one of which failed."""
    points = {at: (OperationTally(1, {3: 1, 5: 1}), Gauges(0.01, 0.5, 100)) for at in range(until - 60, until)}
    base = {"step": 1, "until": until, "bounds": tuple(0.001 * n for n in range(1, 9)), "points": points, "chosen": {},
            "operations": {("tools/call", "add"): OperationTally(60, {3: 60, 5: 60}),
                           ("", ""): OperationTally(0, {1: 7})}}  # fmt: skip
    return HistoryWindow(**{**base, **given})


def test_worker_histories_are_summed_up_to_the_common_second() -> None:
    page = history_values([past(1_000), past(998), past(400), past(1_000, bounds=(1.0,))], 60)
    assert (page["until"], len(page["at"]), page["at"][-1]) == (998, 60, 997)
    assert page["all"]["calls"][-1] == 4
    assert (page["all"]["rate"][-1], page["all"]["client_error_rate"][-1], page["all"]["server_error_rate"][-1]) == (
        4,
        2,
        0,
    )
    assert page["process"]["memory_bytes"][-1] == 200
    assert page["process"]["lag_ms"][-1] == 10
    assert page["process"]["cpu_percent"][-1] == 100
    row = page["operations"][0]
    assert (row["name"], row["calls"], row["errors"]) == ("add", 360, 180)
    alone = history_values([past(1_000, points={})], 60)
    assert alone["all"]["calls"] == [None] * 60
    json.dumps(page)


def test_the_newest_point_also_covers_the_one_before() -> None:
    points = {
        990: (OperationTally(4, {3: 20}, 1), Gauges(lag=0.5, cpu=5.0)),
        1_000: (OperationTally(1, {3: 4}, 1), Gauges(lag=0.1, cpu=1.0)),
    }
    page = history_values([past(1_002, step=10, points=points)], 60)
    assert page["process"]["cpu_percent"][-2:] == [50, 50]
    assert page["process"]["lag_ms"][-2:] == [500, 500]
    assert page["all"]["rate"][-2:] == [2, 2]
    assert page["all"]["server_error_rate"][-2:] == [0.1, 2 / 12]
    assert page["all"]["client_error_rate"][-2:] == [0.3, 3 / 12]
    assert page["all"]["calls"][-2:] == [20, 4], "each call is counted once"
    alone = history_values([past(1_002, step=10, points={1_000: points[1_000]})], 60)
    assert alone["all"]["rate"][-1] == 2
    assert alone["all"]["rate"][-2] is None


def test_one_mistake_has_one_row_in_all_revisions() -> None:
    recent = RecentCalls()
    said = b'{"content":[{"type":"text","text":"copies is missing."}],"isError":true}'
    recent.observe(call_with({}, outcome="tool_error", revision=NEWEST), 0.1, said)
    refused = CallFailure("-32602", ProtocolError(-32602, "copies is missing."))
    recent.observe(call_with({}, failure=refused, revision=FIRST), 0.1, b"")
    crashed = CallFailure("-32603", ProtocolError(-32603, "copies is missing."))
    recent.observe(call_with({}, failure=crashed, revision=FIRST), 0.1, b"")
    page = page_of(recent)
    assert [(each["count"], each["by_server"]) for each in page["errors"]] == [(2, False), (1, True)]
    assert sorted((each["revision"], each["errors"], each["server_errors"]) for each in page["clients"]) == [
        (FIRST.date, 2, 1),
        (NEWEST.date, 1, 0),
    ]
    assert [each["by_server"] for each in page["calls"]].count(True) == 1


def test_errors_are_counted_by_message_without_numbers_and_ids() -> None:
    clock = Clock()
    recent, other = RecentCalls(clock=clock), RecentCalls(clock=clock)

    def fail(where: RecentCalls, text: str, name: str = "find") -> None:
        clock.now += 1
        said = msgspec.json.encode({"content": [{"type": "text", "text": text}], "isError": True})
        where.observe(make_call(method="tools/call", name=name, params=b"{}", outcome="tool_error"), 0.1, said)

    for number in (7, 99, 1_234.5):
        fail(recent, f"No note {number} in 123e4567-e89b-42d3-a456-426614174000.")
    fail(other, "No note 5 in deadbeefdeadbeef.", "open")
    fail(other, 'Traceback (most recent call last):\n  File "/home/ada/shop.py", line 7, in f\n    1 / 0\nOops: 1 / 0')
    first, second = call_values([recent.look(), other.look()])["errors"]
    assert (first["message"], first["count"], first["tools"]) == ("No note … in ….", 4, ["find", "open"])
    assert (first["first"], first["last"], first["example"]) == (1_001.0, 1_004.0, "No note 5 in deadbeefdeadbeef.")
    assert second["example"] == "Oops: 1 / 0 (shop.py:7)"
    for number in range(2 * MAX_ERRORS):
        fail(recent, "word" + "s" * number)
    assert len(recent.look().errors) == MAX_ERRORS
    assert recent.look().errors[0].message != "No note … in …."
