"""What runs other libraries' suites with Millstream in the middle."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benches.middle.__main__ import check, find_exceptions
from benches.middle.golang import GoSuite, run_function
from benches.middle.starter import open_starter
from benches.middle.typescript import Outcomes, SourceMissing, TypeScriptSuite

pytestmark = pytest.mark.check
WAIT = 60.0
SERVER = 'from millstream import Server\n\nserver = Server("echo")\n'
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


def order(starter: Path, *arguments: str, **more: Any) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT)
    connection.connect(str(starter))
    connection.sendall(json.dumps({"arguments": arguments, **more}).encode() + b"\n")
    return connection


def test_starter_runs_each_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "echo.py")
    first = json.dumps(INITIALIZE).encode() + b"\n"
    with open_starter(tmp_path / "logs") as starter:
        written = {"files": {path: SERVER}}
        with (
            order(starter, "run", "--transport", "stdio", path, stdio=True, **written) as stdio,
            stdio.makefile("rb") as output,
        ):
            stdio.sendall(first)
            assert json.loads(output.readline())["result"]["serverInfo"]["name"] == "echo"
            stdio.shutdown(socket.SHUT_WR)
            assert not output.read()
        with order(starter, "run", path) as web, web.makefile("rb") as replies:
            port = json.loads(replies.readline())["port"]
            headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
            reply = httpx2.post(f"http://127.0.0.1:{port}/mcp", content=first, headers=headers, timeout=WAIT)
            assert reply.json()["result"]["serverInfo"]["name"] == "echo"
    assert "is serving" in (tmp_path / "logs" / "2.log").read_text("utf-8")


def test_exception_with_a_star_covers_all_tests_that_begin_so() -> None:
    outcomes = dict.fromkeys(("f: a [x 1] t", "f: a [y 1] t", "f: b [x 1] t"), ("failed", ""))
    assert find_exceptions({"f: a [*": "1", "f: b [x 1] t": "2"}, outcomes) == {
        "f: a [x 1] t": "1",
        "f: a [y 1] t": "1",
        "f: b [x 1] t": "2",
    }


class Replayed(TypeScriptSuite, kw_only=True):
    """A suite whose tests have run."""

    runs: list[Outcomes]

    def fetch(self) -> Path:
        return Path()

    def run(self, source: Path, tests: Any, *, alone: bool = False) -> Outcomes:
        return self.runs.pop(0)


def test_suite_has_problems_if_other_tests_fail_than_the_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {
        "steady": ("failed", ""),
        "once": ("failed", ""),
        "alone": ("failed", ""),
        "listed": ("passed", ""),
        "maybe": ("passed", ""),
    }
    alone = {"steady": ("passed", ""), "once": ("passed", ""), "alone": ("failed", "")}
    again = {"steady": ("failed", ""), "once": ("passed", "")}
    suite = Replayed("suite", "", "", 0.5, runs=[outcomes, alone, again])
    assert check(suite, {"listed": "why", "maybe": "Unsteady: why"}) == 2
    printed = capsys.readouterr().out
    assert "suite: 3 of 4 pass" in printed
    assert "fails: steady" in printed
    assert "passes, but is an exception: listed" in printed


def test_suite_without_its_source_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TYPESCRIPT_SDK", raising=False)
    suite = TypeScriptSuite("typescript-sdk", "abc", "TYPESCRIPT_SDK", 1.0)
    with pytest.raises(SourceMissing, match=r"at abc.* set TYPESCRIPT_SDK"):
        suite.fetch()


GO_OUTPUT = """#!/bin/sh
cat <<'END'
=== RUN   TestOne
CONNECTED
=== RUN   TestOne/a
=== RUN   TestOne/b
    one_test.go:1: no answer
--- FAIL: TestOne (0.00s)
    --- PASS: TestOne/a (0.00s)
    --- FAIL: TestOne/b (0.00s)
=== RUN   TestTwo
--- PASS: TestTwo (0.00s)
=== RUN   TestThree
CONNECTED
panic: test timed out after 1m0s
END
exit 1
"""


def test_go_tests_count_if_they_connect_and_fail_if_they_hang(tmp_path: Path) -> None:
    program = tmp_path / "tests"
    program.write_text(GO_OUTPUT)
    program.chmod(0o700)
    assert run_function(program, tmp_path, {}, "TestOne") == {
        "TestOne/a": ("passed", ""),
        "TestOne/b": ("failed", "one_test.go:1: no answer"),
        "TestTwo": ("skipped", ""),
        "TestThree": ("failed", "panic: test timed out after 1m0s"),
    }


def test_go_suite_without_its_source_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GO_SDK", raising=False)
    with pytest.raises(SourceMissing, match=r"at abc.* set GO_SDK"):
        GoSuite("go-sdk", "abc", "GO_SDK", 1.0, {}).fetch()
