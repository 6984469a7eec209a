import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cases import for_each
from cli.test_control_characters import BAD, at_a_terminal
from cli.test_faults import run
from client.misbehaving_servers import DONE, OFFER, ReceivedRequest, misbehaving
from millstream._cli import connect_options as connecting
from millstream._cli.tables import Progress, choices_of, describe_progress, print_rows, value_of
from millstream.client._questions import Question
from millstream.client._results import describe_mismatch
from patience import WAIT

LINES = "one\ntwo"
MARK = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
TOOLS = [
    {"name": f"t{LINES}", "description": LINES, "inputSchema": {"type": "object", "properties": "x"}},
    {"name": "list", "inputSchema": {"type": "object", "properties": [1]}},
    {"name": "five", "inputSchema": {"type": "object", "properties": {"a": 5}}},
]


async def behave(asked: ReceivedRequest) -> None:
    if asked.method == "server/discover":
        about = {"io.modelcontextprotocol/serverInfo": {"name": LINES, "version": LINES}}
        await asked.result({**OFFER, "_meta": about})
    elif asked.method == "tools/list":
        await asked.result({**MARK, "tools": TOOLS})
    elif asked.method == "resources/list":
        await asked.result({**MARK, "resources": [{"uri": f"u:{LINES}", "name": LINES}]})
    elif asked.method == "resources/templates/list":
        await asked.result({**MARK, "resourceTemplates": []})
    elif asked.method == "subscriptions/listen":
        await asked.stream()
        mark = {"io.modelcontextprotocol/subscriptionId": asked.message["id"]}
        for method, params in (
            ("subscriptions/acknowledged", {}),
            ("x", {"number": "@"}),
            ("message", {"level": LINES, "data": "Here!"}),
            ("resources/updated", {"uri": f"u:{LINES}"}),
        ):
            note = {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": {**params, "_meta": mark}}
            await asked.event(json.dumps(note).replace('"@"', "1e999").encode())
        while True:
            await asked.event(json.dumps(note).encode())
            await asyncio.sleep(0.01)
    elif asked.message["params"]["name"] == "fail":
        error = {"code": 5, "message": f"{LINES} " * 9999}
        await asked.reply(json.dumps({"jsonrpc": "2.0", "id": asked.message["id"], "error": error}).encode())
    elif asked.message["params"]["name"] == "number":
        content = asked.answer({**DONE, "structuredContent": {"a": "@"}})
        await asked.reply(content.replace(b'"@"', b"1e999"))
    else:
        await asked.result(DONE)


@for_each(
    ("arguments", "status", "words"),
    [
        (["call", "list", "a=1"], 0, "done"),
        (["call", "five", "a=1"], 0, "done"),
        (["call", "number"], 0, "done"),
        (["call", "number", "--json"], 1, "is malformed"),
        (["call", "fail"], 1, "characters)"),
        (["call", "five", "a=\udcff"], 1, "half of a surrogate pair"),
        (["call", "\udcff", "--json"], 1, "half of a surrogate pair"),
        (["call", "five", "--input", '{"a": "\\ud800"}'], 1, "half of a surrogate pair"),
        (["read", "u:\udcff"], 2, "can't be encoded as UTF-8"),
        (["prompt", "p", "a=\udcff"], 1, "half of a surrogate pair"),
        (["ping"], 0, "one two: "),
        (["watch", "--count", "1"], 0, "log\tone two\tHere!"),
        (["watch", "--count", "1", "--json"], 0, '"Here!"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_unusual_values_cause_no_traceback(arguments: list[str], status: int, words: str) -> None:
    async with misbehaving(behave) as server:
        code, out, error = await run(arguments[0], server.url, *arguments[1:])
    assert (code, words in out + error) == (status, True), (code, out, error)
    assert len(error) < 2500
    assert error.count("\n") <= 1


def test_deeply_nested_lists_stay_strings() -> None:
    deep = "[" * 100_000
    assert value_of(deep, {"type": "array"}) == [deep]


@for_each(
    ("text", "kind", "value"),
    [
        ("a,b", {"type": "array", "items": {"type": "string"}}, ["a", "b"]),
        ("1,b", {"type": "array"}, ["1", "b"]),
        ("1, 2", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ("yes,no", {"type": "array", "items": {"type": "boolean"}}, [True, False]),
        ("12", {"type": "string"}, "12"),
        ("null", {"type": "string"}, "null"),
        ("a", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, [["a"]]),
    ],
)
def test_optional_values_are_read_like_required_ones(text: str, kind: dict[str, Any], value: Any) -> None:
    optional = ({"anyOf": [kind, {"type": "null"}]}, {**kind, "type": [kind["type"], "null"]})
    assert value_of(text, kind) == value
    assert [value_of(text, each) for each in optional] == [None if text == "null" else value] * 2
    assert [value_of("null", each) for each in optional] == [None, None]
    assert value_of("1,2", {"anyOf": [kind, {"type": "object"}]}) == "1,2"


@pytest.mark.parametrize("properties", [[1], "x", 5, {"a": 5}])
async def test_malformed_forms_are_filled_in_partially(properties: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_read", lambda prompt: "yes")
    question = Question(message="Well?", requested_schema={"type": "object", "properties": properties})
    async with asyncio.timeout(WAIT):
        assert await connecting._ask(question) == ({"a": "yes"} if isinstance(properties, dict) else {})
    assert question.defaults == {}


@for_each("field", [{"oneOf": 5}, {"enum": 5}, {"oneOf": [5]}, {"type": "array", "items": 5}, {"type": ""}])
def test_malformed_fields_can_be_answered_in_chat(field: dict[str, Any]) -> None:
    assert describe_mismatch("x", field | {"type": "string"}, "This") == ""
    assert choices_of(field) in ([], ["None"])


def test_progress_of_any_magnitude_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with at_a_terminal(monkeypatch) as read:
        progress = Progress()
        for value, total in ((1e308, 1e-308), (-1.0, 3.0), (1.0, -1.0)):
            progress.step(value, total, BAD)
        progress.close()
        assert "1e+308" in read()
    for value, shown in ((0.0004, "0/3"), (2.0003, "2/3"), (0.25, "0.25/3")):
        assert describe_progress(value, 3, "") == shown


def test_overlong_names_do_not_widen_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    screen = SimpleNamespace(isatty=lambda: True, write=written.append)
    monkeypatch.setattr(sys, "stdout", screen)
    print_rows([["tool", "x" * 1_000_000, ""], ["tool", "y", "short"]], ["KIND", "NAME", "DESCRIPTION"])
    monkeypatch.undo()
    assert len(written[-1]) < 1000


@pytest.mark.server
async def test_watch_ends_when_its_output_is_closed() -> None:
    command = [sys.executable, "-c", "from millstream._cli import main; main()", "watch"]
    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        process = await asyncio.create_subprocess_exec(
            *command, server.url, "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"Here!" in await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head -1` does
        assert await process.wait() == 0
        assert await process.stderr.read() == b""


def test_tables_truncate_descriptions_after_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [
        ["tool", "order(isbn)", "Order a book that is in stock, by its number."],
        ["tool", "search(words, language?, published_after?)", "Find books."],
    ]
    print_rows(rows, ["KIND", "NAME", "DESCRIPTION"])
    assert capsys.readouterr().out.splitlines() == [
        "KIND  NAME         DESCRIPTION",
        "tool  order(isbn)  Order a book that is in stock,…",
        "tool  search(words, language?, published_after?)",
        "        Find books.",
    ]
