import asyncio
import gc
import os
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from fleet import until
from millstream import Client, Server
from millstream.client import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    Options,
    RequestTimeout,
    TargetError,
    TooLarge,
)
from patience import WAIT

pytestmark = pytest.mark.server

LINES = """
    import json, os, sys, time

    def say(text):
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()

    def answer(message, result):
        say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    OFFER = {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
             "ttlMs": 0, "cacheScope": "private"}
    DONE = {"resultType": "complete", "content": [{"type": "text", "text": str(os.getpid())}]}
"""
LOOP = """
    for line in sys.stdin:
        message = json.loads(line)
        if message["method"] == "server/discover":
            answer(message, OFFER)
        elif message["method"] == "tools/call":
            tool = message["params"]["name"]
            if tool == "die":
                sys.stderr.write("out of paper\\n")
                sys.exit(3)
            elif tool == "flood":
                while True:
                    sys.stdout.write("x" * 65536)
            elif tool == "chatty":
                for number in range(1200):
                    say(f"[INFO] step {number}")
                for line in ("{not json", "{}", "[]", '[{"level": "info"}]', '{"level": "info", "msg": "started"}',
                             '{"jsonrpc": "2.0", "method": 5}', "\ufeff{}"):
                    say(line)
                answer({"id": 999}, DONE)
                answer({"id": "x"}, DONE)
                answer(message, DONE)
            elif tool == "invalid":
                say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}, "error": {"code": 1}}))
            elif tool == "hang":
                pass
            else:
                answer(message, DONE)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write a server that behaves as its arguments say."""
    return write(tmp_path, LOOP)


def write(folder: Path, program: str) -> Path:
    path = folder / "server.py"
    path.write_text(textwrap.dedent(LINES) + textwrap.dedent(program))
    return path


def alive(pid: int) -> bool:
    """Return whether a process runs, and isn't a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("tool", "expected", "words"),
    [
        ("die", ConnectionLost, "code 3. Its last output: out of paper"),
        ("flood", TooLarge, "1,000,000 bytes"),
        ("invalid", InvalidResponse, "sent an invalid response"),
        ("hang", RequestTimeout, "within"),
    ],
)
async def test_misbehaving_processes_are_explained(
    script: Path, tool: str, expected: type[ClientError], words: str
) -> None:
    options = Options(max_bytes=1_000_000)
    async with asyncio.timeout(WAIT), Client(script, options=options) as client:
        first = int((await client.call("pid")).text)
        with pytest.raises(expected, match=words):
            await client.call(tool, timeout=0.2 if tool == "hang" else WAIT)
        second = int((await client.call("pid")).text)
        assert (first == second) == (tool in ("hang", "invalid"))
    assert not alive(first)
    assert not alive(second)


NODE = """node:internal/modules/cjs/loader:1210
  throw err;
  ^

Error: Cannot find module './nope'
Require stack:
- /srv/server.js
    at Module._resolveFilename (node:internal/modules/cjs/loader:1207:15)
    at node:internal/main/run_main_module:28:49 {
  code: 'MODULE_NOT_FOUND',
  requireStack: [ '/srv/server.js' ]
}

Node.js v20.20.2
"""
NODE_CODE = """file:///srv/server.mjs:3
    throw error
    ^

Error: connect ECONNREFUSED 127.0.0.1:5432
    at ModuleJob.run (node:internal/modules/esm/module_job:325:25) {
  code: 'ECONNREFUSED'
}

Node.js v24.1.0
"""
NPM = """npm error code E404
npm error 404 Not Found - GET https://npm.example/typo
npm error 404
npm error 404  'typo@*' could not be found.
npm error A complete log of this run can be found in: /home/ada/.npm/_logs/2026.log
"""
GO = """panic: assignment to entry in nil map

goroutine 1 [running]:
main.main()
\t/srv/main.go:2 +0x28
exit status 2
"""
RUST = """thread 'main' (5560) panicked at src/main.rs:1:39:
API_KEY must be set
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""
DOCKER = """docker: Cannot connect to the Docker daemon. Is it running?

Run 'docker run --help' for more information
"""
GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "server.py", line 4, in main
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "server.py", line 5, in start
    | ValueError: API_KEY is missing
    +------------------------------------
"""


@for_each(
    ("output", "message"),
    [
        (NODE, "Error: Cannot find module './nope'"),
        (NODE_CODE, "Error: connect ECONNREFUSED 127.0.0.1:5432 code: 'ECONNREFUSED'"),
        (NPM, "npm error code E404 404 Not Found - GET https://npm.example/typo 404 404 'typo@*' could not be found."),
        (GO, "panic: assignment to entry in nil map"),
        (RUST, "API_KEY must be set"),
        (DOCKER, "docker: Cannot connect to the Docker daemon. Is it running?"),
        (GROUP, "ValueError: API_KEY is missing"),
        ("Listening\nAPI_KEY is missing\n}\n", "API_KEY is missing"),
    ],
)
async def test_crash_reports_are_reduced_to_their_message(output: str, message: str) -> None:
    crash = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1])", output]
    with pytest.raises(ConnectionLost) as caught:
        async with Client(crash, timeout=WAIT) as client:
            await client.tools()
    assert str(caught.value) == f"The server exited with code 1. Its last output: {message.rstrip('.')}."


async def test_lines_that_are_not_messages_are_skipped(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(WAIT), Client(script) as client:
        first, rest = await asyncio.gather(client.call("pid"), client.call("chatty"))
        assert rest.text == first.text == (await client.call("pid")).text
    [record] = [each for each in caplog.records if each.message.startswith("Skipped a message")]
    assert "[INFO] step 0" in record.message


async def test_log_of_a_gateway_names_the_server_whose_lines_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = 'import os\nfrom millstream import Server\nmcp = Server("shop")\nmcp.tool(lambda: "", name="buy")\n'
    front = Server("front")
    for name, line in (("quiet", ""), ("loud", 'os.write(1, b"Loading\\n")\n')):
        (tmp_path / f"{name}.py").write_text(f"{start}{line}mcp.run()\n")
        front.upstream(name, [sys.executable, str(tmp_path / f"{name}.py")], start_timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(front) as client:
        await client.call("loud_buy")
        await client.call("quiet_buy")
    skipped = [each for each in caplog.records if each.message.startswith("Skipped a message")]
    assert {vars(each)["upstream"] for each in skipped} == {"loud"}


async def test_programs_that_exit_immediately_get_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "greet.py").write_text("print('no mcp.run() here')\n", "utf-8")
    with pytest.raises(ConnectionLost, match=r"code 0.*millstream run FILE --transport stdio"):
        async with Client([sys.executable, str(tmp_path / "greet.py")], timeout=WAIT) as client:
            await client.tools()


async def test_closed_process_is_not_kept_in_memory(script: Path) -> None:
    async with Client([sys.executable, str(script)], timeout=WAIT) as client:
        kept = weakref.ref(client.conversation.transport)
    del client
    for _ in range(10):
        await asyncio.sleep(0)  # the loop reports the end of the pipes
    gc.collect()
    assert kept() is None


async def test_concurrent_calls_end_with_their_process(script: Path) -> None:
    async with asyncio.timeout(WAIT), Client(script) as client:
        results = await asyncio.gather(
            *(client.call("hang") for _ in range(5)), client.call("die"), return_exceptions=True
        )
        assert all(isinstance(result, ConnectionLost) for result in results)
        assert (await client.call("pid")).text


@pytest.mark.parametrize("program", ["sys.exit(0)", "raise SystemExit('no license')", "say('hello'); sys.exit(1)"])
async def test_process_that_exits_immediately_is_explained(tmp_path: Path, program: str) -> None:
    with pytest.raises(ConnectionLost, match="The server exited"):
        async with asyncio.timeout(WAIT), Client(write(tmp_path, program)):
            pass


async def test_process_that_exits_on_the_probe_gets_a_handshake(tmp_path: Path) -> None:
    program = """
        for line in sys.stdin:
            message = json.loads(line)
            if message["method"] == "server/discover":
                sys.exit(1)
            if message["method"] == "initialize":
                answer(message, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                                 "serverInfo": {"name": "old", "version": "1"}})
            elif message["method"] == "tools/call":
                answer(message, {"content": [{"type": "text", "text": "done"}]})
    """
    script = write(tmp_path, program)
    for _ in (1, 2):  # the second client knows already
        async with asyncio.timeout(WAIT), Client(script) as client:
            assert client.revision == "2025-06-18"
            assert (await client.call("x")).text == "done"


async def test_server_that_ignores_the_probe_gets_a_handshake(tmp_path: Path) -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/stdio"""
    program = """
        for line in sys.stdin:
            message = json.loads(line)
            if message["method"] == "initialize":
                answer(message, {"protocolVersion": "2024-11-05", "capabilities": {},
                                 "serverInfo": {"name": "old", "version": "1"}})
    """
    options = Options(probe_timeout=0.1)
    async with asyncio.timeout(WAIT), Client(write(tmp_path, program), options=options) as client:
        assert client.revision == "2024-11-05"


@for_each("pinned", [False, True])
async def test_server_that_starts_slowly_is_used_in_the_newest_era_that_it_keeps(
    tmp_path: Path, *, pinned: bool
) -> None:
    """Some servers serve both eras at once. For others, the handshake decides for the whole process."""
    program = f"""
        waiting, shaken = [], False
        for line in sys.stdin:
            message = json.loads(line)
            if message["method"] == "initialize":
                for each in waiting:
                    answer(each, OFFER)
                shaken = True
                answer(message, {{"protocolVersion": "2025-11-25", "capabilities": {{"tools": {{}}}},
                                 "serverInfo": {{"name": "slow", "version": "1"}}}})
            elif message["method"] == "server/discover" and not shaken:
                waiting.append(message)
            elif message["method"] == "server/discover":
                if {pinned}:
                    error = {{"code": -32601, "message": "No"}}
                    say(json.dumps({{"jsonrpc": "2.0", "id": message["id"], "error": error}}))
                else:
                    answer(message, OFFER)
            elif message["method"] == "tools/call":
                answer(message, DONE)
    """
    options = Options(probe_timeout=0.1)
    async with asyncio.timeout(WAIT), Client(write(tmp_path, program), options=options) as client:
        assert client.revision == ("2025-11-25" if pinned else "2026-07-28")
        assert (await client.call("x")).text


async def test_slow_server_without_a_handshake_is_not_misjudged(tmp_path: Path) -> None:
    program = """
        waiting = []
        for line in sys.stdin:
            message = json.loads(line)
            if message["method"] == "initialize":
                say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {
                    "code": -32022, "message": "Unsupported", "data": {"supported": ["2026-07-28"]}}}))
                for each in waiting:
                    answer(each, OFFER)
            elif message["method"] == "server/discover":
                waiting.append(message)
            elif message["method"] == "tools/call":
                answer(message, DONE)
    """
    options = Options(probe_timeout=0.1)
    async with asyncio.timeout(WAIT), Client(write(tmp_path, program), options=options) as client:
        assert client.revision == "2026-07-28"
        assert (await client.call("x")).text


async def test_process_that_never_responds_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RequestTimeout, match=r"didn't respond to initialize within 0\.2 seconds\. If it starts slowly"):
        async with asyncio.timeout(WAIT), Client(write(tmp_path, "for line in sys.stdin: pass"), timeout=0.2):
            pass


@pytest.mark.parametrize("start", ["say('Welcome!')\nsay('')\nsay('[INFO] started')", r"sys.stdout.write('\ufeff')"])
async def test_greeting_and_byte_order_mark_on_stdout_are_ignored(tmp_path: Path, start: str) -> None:
    script = write(tmp_path, f"{start}\n{textwrap.dedent(LOOP)}")
    async with asyncio.timeout(WAIT), Client(script) as client:
        assert client.revision == "2026-07-28"
        assert (await client.call("pid")).text


NULL_IDS = """
    for line in sys.stdin:
        message = json.loads(line)
        if message["method"] == "initialize":
            about = {"capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
            reply = {"result": {"protocolVersion": "2025-06-18", **about}}
        elif message["method"] == "tools/call":
            reply = {"result": {"content": [{"type": "text", "text": "done"}]}}
        else:
            reply = {"id": None, "error": {"code": -32601, "message": "Method not found"}}
        say(json.dumps({"jsonrpc": "2.0", "id": message.get("id"), **reply}))
"""


async def test_rejected_notifications_do_not_fail_the_next_request(tmp_path: Path) -> None:
    """Many small servers respond to `notifications/initialized`, with null as id."""
    async with asyncio.timeout(WAIT), Client(write(tmp_path, NULL_IDS)) as client:
        assert (await client.call("x")).text == "done"


async def test_process_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = f"""
        import signal, subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        open({str(child)!r}, "w").write(str(child.pid))
    """
    script = write(tmp_path, textwrap.dedent(program) + textwrap.dedent(LOOP) + "\nwhile True: time.sleep(3600)\n")
    async with asyncio.timeout(WAIT):
        async with Client(script) as client:
            pid = int((await client.call("pid")).text)
        assert not alive(pid)
        await until(lambda: not alive(int(child.read_text())))


async def test_canceled_connect_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = write(tmp_path, f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(3600)")

    async def connect() -> None:
        async with Client(script):
            pass

    task = asyncio.create_task(connect())
    async with asyncio.timeout(WAIT):
        await until(lambda: pid.exists() and pid.read_text() != "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not alive(int(pid.read_text())))


async def test_canceled_close_leaves_no_process(tmp_path: Path) -> None:
    stays = "\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LOOP + "\n    time.sleep(3600)"
    async with asyncio.timeout(WAIT):
        client = await Client(write(tmp_path, "import signal" + textwrap.dedent(stays))).__aenter__()
        pid = int((await client.call("x")).text)
        background = client.conversation.requests.incoming.background
        background.spawn(asyncio.sleep(0))  # so that `close` has something to wait for
        closing = asyncio.create_task(client.__aexit__())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(lambda: not alive(pid))


async def test_missing_programs_are_explained() -> None:
    with pytest.raises(TargetError, match="There is no program 'no-such-program'"):
        async with Client("no-such-program --flag"):
            pass


async def test_server_processes_inherit_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    program = LOOP.replace("str(os.getpid())", "")
    script = write(tmp_path, "DONE['content'][0]['text'] = json.dumps(dict(os.environ))\n" + textwrap.dedent(program))
    async with (
        asyncio.timeout(WAIT),
        Client([sys.executable, str(script)], options=Options(env={"GIVEN": "1"})) as client,
    ):
        seen = await client.call("x", result_type=dict[str, str])
    assert seen["GIVEN"] == "1"
    assert seen["PATH"] == os.environ["PATH"]
    assert "AWS_SECRET_ACCESS_KEY" not in seen


async def test_response_that_is_too_large_fails_only_its_request(tmp_path: Path) -> None:
    program = """
        for line in sys.stdin:
            message = json.loads(line)
            result = OFFER if message["method"] == "server/discover" else DONE
            end = {"result": result, "jsonrpc": "2.0", "id": message["id"]}  # the order of the TypeScript SDK
            if message["method"] == "tools/call" and message["params"]["name"] == "large":
                result["content"][0]["text"] = "x" * 100_000
            say(json.dumps(end))
            result["content"] = [{"type": "text", "text": str(os.getpid())}]
    """
    async with (
        asyncio.timeout(WAIT),
        Client(write(tmp_path, program), options=Options(max_bytes=50_000)) as client,
    ):
        first = (await client.call("pid")).text
        results = await asyncio.gather(*(client.call(each) for each in ("pid", "large", "pid")), return_exceptions=True)
        assert [type(each).__name__ for each in results] == ["Result", "TooLarge", "Result"]
        assert (await client.call("pid")).text == first


class LoopWithoutProcesses(asyncio.SelectorEventLoop):
    """An event loop that can't start processes, like asyncio.SelectorEventLoop on Windows."""

    async def _make_subprocess_transport(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError


def test_event_loop_without_processes_is_named() -> None:
    async def connect() -> None:
        async with Client([sys.executable, "-c", "pass"]):
            pass

    refused = pytest.raises(ConnectFailed, match=r"this event loop can't start processes\. On Windows")
    with asyncio.Runner(loop_factory=LoopWithoutProcesses) as runner, refused:
        runner.run(connect())


FILE = """
import logging, sys
from millstream import Server

mcp = Server("noisy")


@mcp.tool
def fail() -> int:
    \"\"\"Fail.\"\"\"
    print("printed")
    sys.stderr.write("without an end")
    return 1 // 0
"""


async def _said(path: Path, **chosen: object) -> None:
    async with Client(str(path), options=Options(**chosen)) as client:  # type: ignore[arg-type]
        await client.request("tools/call", {"name": "fail", "arguments": {}})


async def test_stderr_of_started_servers_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "noisy.py"
    path.write_text(FILE, "utf-8")
    await _said(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "printed\n" in err
    assert "    return 1 // 0\n" in err
    assert "ZeroDivisionError" in err
    assert err.startswith("{") is False  # lines for people, although it's a pipe

    lines: list[str] = []
    await _said(path, stderr=lines.append)
    assert lines[0] == "printed"
    await _said(path, stderr=False)
    assert capsys.readouterr() == ("", "")


async def test_server_stderr_cannot_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd.py"
    path.write_text("import sys\nsys.stderr.write('\\x1b[2Jgone')\nsys.stderr.flush()\nsys.exit(3)\n", "utf-8")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(Exception, match="code 3"):
        await _said(path)
    assert "\ufffd[2Jgone\n" in capsys.readouterr().err


CHUNKS = """
import sys, time
key = "k3y-of-the-operator"
line = ("filler " * 700) + "key=" + key + " " + ("more " * 300) + key
for at in range(0, len(line), 997):
    sys.stderr.write(line[at : at + 997])
    sys.stderr.flush()
sys.stderr.write("\\n-----BEGIN PRIVATE KEY-----\\nMC4CAQAwBQYDK2VwBCIEIA\\n-----END PRIVATE KEY-----\\n")
sys.stderr.write("RuntimeError: " + key)
sys.exit(3)
"""


async def test_credentials_in_any_part_of_a_long_output_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text(CHUNKS, "utf-8")
    lines: list[str] = []
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----"
    options = Options(env={"SHOP_KEY": "k3y-of-the-operator", "SIGNING_KEY": pem}, stderr=lines.append)
    with pytest.raises(ConnectionLost, match=r"RuntimeError: \[redacted\]"):
        async with Client([sys.executable, str(path)], options=options):
            pass
    shown = "\n".join(lines)
    assert shown.count("[redacted]") >= 3
    for part in ("k3y-of", "operator", "MC4CAQ"):
        assert part not in shown
    assert shown.count("filler") in (700, 1400)  # it may be started again, and then its lines may end elsewhere
