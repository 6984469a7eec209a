import asyncio
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auth_world import ALICE, BOB, ROOT, make_server, run_guarded
from cases import for_each
from http_peer import serve
from millstream import Client, Context, Server, Settings, ToolError
from millstream._protocol.errors import LocalError
from millstream._telemetry.messages import MAX_LINES, START, AuditEntry, AuditLog, BrokenAuditLog, newest, verify
from millstream.client import ServerError
from patience import WAIT
from wire import request


def written(path: Path, *methods: str) -> AuditLog:
    """Write a closed log with some lines."""
    log = AuditLog(path)
    for method in methods:
        log.write(AuditEntry("2026-01-01T00:00:00.000Z", method))
    log.close()
    return log


async def test_calls_publications_and_rejected_credentials_are_audited(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with run_guarded(make_server(audit_log=str(path))) as world:
        await world.call(ALICE, "order", {"isbn": "9780261103573"})
        await world.call(BOB, "order", {"isbn": "1"})
        await world.post("wrong-key", request("tools/list"))
        await world.ask(BOB, "POST", "/tools/who", b"{}", content_type="application/json")
        async with world.socket(ALICE) as socket:
            await socket.recv()
            await socket.send('{"type":"mcp_call","tool":"who"}')
            await socket.recv()
        async with world.socket(ROOT) as socket:
            await socket.recv()
            await socket.send('{"type":"publish","channel":"news","data":"over a socket"}')
            await socket.recv()
        for body in (b'{"channel":"news","data":"over HTTP"}', b"no event"):
            await world.ask(ROOT, "POST", "/publish", body, content_type="application/json")
        await world.ask(BOB, "POST", "/publish", b'{"channel":"news","data":""}', content_type="application/json")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    names = {"subject": "", "method": "", "target": "", "outcome": "ok", "transport": ""}
    told = [tuple(each.get(name, default) for name, default in names.items()) for each in lines]
    assert told == [
        ("alice", "tools/call", "order", "ok", "http"),
        ("bob", "tools/call", "order", "-31403", "http"),
        ("", "sign-in", "", "refused", ""),
        ("bob", "tools/call", "who", "ok", "rest"),
        ("alice", "tools/call", "who", "ok", "websocket"),
        ("key", "hub/publish", "news", "ok", "websocket"),
        ("key", "hub/publish", "news", "ok", "http"),
        ("key", "hub/publish", "", "400", "http"),
        ("bob", "hub/publish", "", "403", "http"),
    ]
    assert all(each["address"] == "127.0.0.1" for each in lines)
    text = path.read_text("utf-8")
    assert not any(secret in text for secret in (ALICE, BOB, "wrong-key", "9780261103573", "over"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify(path) == (9, lines[-1]["hash"], 0)


@pytest.mark.parametrize("path", ["/tools/wait", "/mcp/tools/call"])
async def test_calls_of_clients_that_disconnect_have_an_outcome(tmp_path: Path, path: str) -> None:
    mcp = Server("shop", serve="rest", settings=Settings(audit_log=str(tmp_path / "a")))
    started, ended = asyncio.Event(), asyncio.Event()

    @mcp.tool
    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with mcp.running(), serve(mcp) as front:
        _, writer = await asyncio.open_connection("127.0.0.1", front.port)
        body = b'{"name":"wait"}' if path.startswith("/mcp") else b"{}"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await started.wait()
        writer.close()
        await ended.wait()
    assert [json.loads(line).get("outcome") for line in (tmp_path / "a").read_text("utf-8").splitlines()] == [
        "cancelled"
    ]


async def test_task_has_a_second_line_when_it_ends(tmp_path: Path) -> None:
    mcp = Server("shop", settings=Settings(audit_log=str(tmp_path / "a")))

    @mcp.tool(task="allowed")
    async def order() -> str:
        raise ToolError("Sold out.")

    async with Client(mcp) as client:
        assert (await client.call("order", task=True, raise_on_error=False)).is_error
    lines = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    assert [each.get("outcome") for each in lines if each["method"] == "tools/call"] == [None, "tool_error"]


async def test_call_that_stops_for_a_question_has_an_outcome(tmp_path: Path) -> None:
    mcp = Server("shop", settings=Settings(audit_log=str(tmp_path / "a")))

    @mcp.tool
    async def delete(ctx: Context) -> str:
        await ctx.elicit("Delete it?", {"type": "object", "properties": {}})
        return "Deleted."

    async with Client(mcp, elicit=lambda _: {}, revision="2026-07-28") as client:
        assert (await client.call("delete")).text == "Deleted."
    lines = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    first, second = calls = [each for each in lines if each["method"] == "tools/call"]
    assert [each.get("outcome") for each in calls] == ["input_required", None]
    assert first["call"] == second["call"] != ""
    assert first["program"].startswith("millstream ")
    assert not any("call" in each for each in lines if each["method"] != "tools/call")


async def test_tools_that_read_name_what_they_read(tmp_path: Path) -> None:
    mcp = Server("shop", settings=Settings(audit_log=str(tmp_path / "a"), resource_tools="on"))
    mcp.resource("doc://{name}", name="doc")(lambda name: name)
    mcp.prompt(lambda: "Review it.", name="review")
    mcp.tool(lambda: "line\n" * 100, name="report", result_tokens=10)
    async with Client(mcp) as client:
        await client.read("doc://hours")
        await client.call("list_resources")
        await client.call("read_resource", uri="doc://staff")
        await client.call("read_resource", uri="other://staff", raise_on_error=False)
        await client.call("get_prompt", name="review")
        uri = (await client.call("report")).text.rpartition(" ")[2]
        await client.call("read_resource", uri=uri)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    assert [(each["target"], each.get("read")) for each in lines if "target" in each] == [
        ("doc://hours", None),
        ("list_resources", None),
        ("read_resource", "doc://staff"),
        ("read_resource", "other://staff"),
        ("get_prompt", "review"),
        ("report", None),
        ("read_resource", uri),
    ]
    assert [each["read"] for each in newest(tmp_path / "a", words="doc://staff")] == ["doc://staff"]


def test_audit_log_continues_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert written(path).hash == START
    first = written(path, "a", "b")
    second = written(path, "c")
    assert (second.seq, verify(path)) == (3, (3, second.hash, 0))
    assert first.hash in path.read_text("utf-8").splitlines()[2]


def test_two_processes_share_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "a"
    one, two = AuditLog(path), AuditLog(path)
    try:
        assert (one.path, two.path) == (path, tmp_path / "a.1")
    finally:
        one.close()
        two.close()


def change(lines: list[bytes], what: str) -> list[bytes]:
    """Return the lines with a change that keeps the hashes."""
    kinds = {
        "a word": lambda: [*lines[:1], lines[1].replace(b"two", b"six"), *lines[2:]],
        "a line is gone": lambda: [lines[0], *lines[2:]],
        "the first line is gone": lambda: lines[1:],
        "a line is there twice": lambda: [lines[0], lines[0], *lines[1:]],
        "two lines changed places": lambda: [lines[1], lines[0], *lines[2:]],
        "a line of another log": lambda: [lines[0], lines[0].replace(b"one", b"own"), *lines[1:]],
        "an empty line": lambda: [lines[0], b"\n", *lines[1:]],
        "no end": lambda: [*lines[:-1], lines[-1][:-1]],
        "no JSON": lambda: [*lines, b"x\n"],
    }
    return kinds[what]()


@pytest.mark.parametrize("what", ["a word", "a line is gone", "the first line is gone", "a line is there twice",
                                  "two lines changed places", "a line of another log", "an empty line", "no end",
                                  "no JSON"])  # fmt: skip
def test_tampering_with_the_audit_log_is_detected(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    written(path, "one", "two", "three", "four")
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True), what)))
    with pytest.raises(BrokenAuditLog):
        verify(path)


def test_recomputed_hashes_are_detected_in_the_next_line(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    written(path, "one", "two", "three")
    written(other, "one", "six")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = other.read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(BrokenAuditLog, match="line 3"):
        verify(path)


@example("\udcff", "")
@given(st.text(max_size=60), st.text(max_size=600))
def test_client_text_cannot_break_audit_lines(tmp_path_factory: pytest.TempPathFactory, one: str, two: str) -> None:
    path = tmp_path_factory.mktemp("audit") / "a"
    log = AuditLog(path)
    for text in (one, two, f'{one}","hash":"{two}', f"{one}\r\n{two}\x00"):
        log.write(AuditEntry("now", "tools/call", text, subject=text))
    log.close()
    assert verify(path)[0] == 4
    assert written(path, "more").seq == 5


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """Let this process's files grow up to a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    log = AuditLog(path)
    log.write(AuditEntry("now", "one"))
    with full_at(path.stat().st_size + 20):
        for _ in range(2):
            with pytest.raises(OSError, match=r"full|large"):
                log.write(AuditEntry("now", "two"))
    log.write(AuditEntry("now", "three", address="x" * 10_000 + "\udc80"))
    log.close()
    assert verify(path)[::2] == (3, 2)
    missing = json.loads(path.read_text("utf-8").splitlines()[1])
    assert (missing["method"], missing["lost"], missing["from"], missing["to"]) == ("lost", 2, "now", "now")
    assert path.stat().st_size < 2000


def test_records_lost_at_the_end_are_counted_at_the_close(tmp_path: Path) -> None:
    path = tmp_path / "a"
    log = AuditLog(path)
    log.write(AuditEntry("now", "one"))
    with full_at(path.stat().st_size), pytest.raises(OSError, match=r"full|large"):
        log.write(AuditEntry("then", "two"))
    log.close()
    assert verify(path)[::2] == (2, 1)
    assert written(path, "more").seq == 3


@for_each("required", [False, True])
async def test_calls_that_the_audit_log_misses_are_counted_or_refused(
    required: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ("required" if required else "free")
    mcp = Server("shop", settings=Settings(audit_log=str(path), audit_required=required))
    mcp.tool(lambda: "done", name="order")
    async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client:
        await client.call("order")
        with full_at(path.stat().st_size):
            assert (await client.call("order")).text == "done"
            assert runtime.host.degraded_reasons() == ["the audit log can't be written"]
            if required:
                with pytest.raises(ServerError, match="its audit log can't be written"):
                    await client.call("order")
            else:
                assert (await client.call("order")).text == "done"
        assert (await client.call("order")).text == "done"
        assert runtime.host.degraded_reasons() == []
    texts = [each.getMessage() for each in caplog.records if "audit log" in each.getMessage()]
    assert [text.partition(":")[0].partition(",")[0].partition(" It failed")[0] for text in texts] == [
        "The audit log can't be written",
        "The audit log can be written again. A line in it counts what is missing.",
    ]
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line.get("lost") for line in lines if line["method"] == "lost"] == [2]
    assert verify(path).lost == 2
    caplog.clear()


def test_audit_records_are_not_appended_to_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for text in (b"x\n", b'{"hash":"x"}\n', b"half a line"):
        path.write_bytes(text)
        with pytest.raises(LocalError, match="Move the file away"):
            AuditLog(path)
    with pytest.raises(LocalError, match="can't be written"):
        AuditLog(tmp_path / "none" / "a")


def test_audit_log_must_be_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout is in a container
    with pytest.raises(LocalError, match="it isn't a regular file"):
        AuditLog(tmp_path / "pipe")


@pytest.mark.server
def test_audit_command_verifies_a_log(tmp_path: Path) -> None:
    path = tmp_path / "a"
    last = written(path, "one", "two").hash
    start = [sys.executable, "-c", "from millstream._cli import main; main()", "audit", "verify", str(path)]

    def run(*more: str) -> tuple[int, str]:
        done = subprocess.run([*start, *more], capture_output=True, timeout=WAIT, check=False)
        return done.returncode, (done.stdout + done.stderr).decode()

    assert run() == (0, f"Checked 2 lines. None were changed. The last line has the hash {last}\n")
    assert run("--last", last)[0] == 0
    assert json.loads(run("--json")[1]) == {"lines": 2, "hash": last, "lost": 0}
    written(path, "three")
    assert run("--last", last)[0] == 1
    path.write_bytes(path.read_bytes().replace(b"one", b"own"))
    status, said = run()
    assert (status, "Line 1" in said, "Traceback" in said) == (1, True, False)


async def test_newest_records_require_the_watch_scope(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(tmp_path / "audit.jsonl.1", "ping")
    written(tmp_path / "audit.jsonl.backup", "not a worker's")
    async with run_guarded(make_server(audit_log=str(path))) as world:
        await world.call(ALICE, "order", {"isbn": "<script>alert(1)</script>"})
        await world.call(BOB, "order", {"isbn": "1"})
        await world.post("wrong-key", request("tools/list"))

        async def shown(query: str = "") -> list[tuple[str, str]]:
            reply = await world.ask(ROOT, "GET", f"/dashboard/audit{query}")
            assert (reply.status, reply.headers[b"cache-control"]) == (200, b"no-store")
            found = json.loads(reply.body)
            assert found["kept"] is True
            assert all(record["at"] and "hash" not in record and "prev" not in record for record in found["records"])
            return [(record.get("subject", ""), record["method"]) for record in found["records"]]

        bob, alice = ("bob", "tools/call"), ("alice", "tools/call")
        assert await shown() == [("", "sign-in"), bob, alice, ("", "ping")]
        assert await shown("?q=ALICE%20order") == [alice]
        assert await shown("?q=order&failed=1") == [bob]
        assert await shown("?q=nobody") == []
        assert (await world.ask(ALICE, "GET", "/dashboard/audit")).status == 403
        assert (await world.ask(None, "GET", "/dashboard/audit")).status == 401


async def test_dashboard_reports_a_missing_audit_log() -> None:
    async with run_guarded() as world:
        reply = await world.ask(ROOT, "GET", "/dashboard/audit")
        assert json.loads(reply.body) == {"kept": False, "records": []}


def test_only_the_end_of_a_long_audit_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    written(path, *(f"m{number}" for number in range(4000)))
    with path.open("ab") as file:
        file.write(b'[1]\n{"at":"x"\n')
    found = newest(path, limit=10_000)
    assert len(found) == MAX_LINES
    assert {each["method"] for each in newest(path, words="m3999")} == {"m3999"}
    assert newest(path, words="m1 m3999") == newest(tmp_path / "none") == newest(tmp_path / "no" / "folder") == []
