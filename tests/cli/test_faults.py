import asyncio
import json
import os
import re
import ssl
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cases import for_each
from client.certificates import self_signed
from client.misbehaving_servers import Behave, ReceivedRequest, misbehaving, with_discovery
from command_line import CliRunner, program
from patience import WAIT
from processes import free_port


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command, and return its status, output, and errors."""

    def invoke() -> tuple[int, str, str]:
        done = CliRunner().invoke(program(arguments[0]), list(arguments))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    async with asyncio.timeout(WAIT):
        return await asyncio.to_thread(invoke)


async def fails(status: int, words: str, *arguments: str) -> None:
    """Check that a command exits with this status, and one line with these words."""
    code, out, error = await run(*arguments)
    assert (code, out) == (status, ""), error
    if sys.executable in arguments[1]:
        error = error[max(error.rfind("\nError: ") + 1, 0) :]
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert "Traceback" not in error


async def status(asked: ReceivedRequest, line: str, more: str = "") -> None:
    await asked.reply(b"no", status=line, type="text/plain", more=more)


async def problem(asked: ReceivedRequest) -> None:
    said = b'{"status":403,"detail":"The key is old."}'
    await asked.reply(said, status="403 Forbidden", type="application/problem+json")


async def page(asked: ReceivedRequest) -> None:
    await asked.reply(b"<!doctype html><title>Hello</title>", type="text/html")


async def hang(asked: ReceivedRequest) -> None:
    await asyncio.get_running_loop().create_future()


async def die(asked: ReceivedRequest) -> None:
    raise ConnectionError


async def wrong_id(asked: ReceivedRequest) -> None:
    await asked.reply(b'{"jsonrpc":"2.0","id":999,"result":{"content":[]}}')


async def gigabyte(asked: ReceivedRequest) -> None:
    await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n{")
    await hang(asked)


async def bomb(asked: ReceivedRequest) -> None:
    await asked.stream()
    note = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"boom"}}'
    while True:
        await asked.event(note)


async def unknown(asked: ReceivedRequest) -> None:
    if asked.method == "initialize":
        result = {"protocolVersion": "1999-01-01", "capabilities": {}, "serverInfo": {"name": "r", "version": "1"}}
        await asked.result(result)
    else:
        await asked.error(-32601, "Method not found")


async def limited(asked: ReceivedRequest) -> None:
    data = {"code": "rate_limited", "limit": "5 per 60 s"}
    error = {"code": -31429, "message": "Too many requests. Try again in 9 seconds", "data": data}
    body = json.dumps({"jsonrpc": "2.0", "id": asked.message.get("id"), "error": error}).encode()
    await asked.reply(body, status="429 Too Many Requests")


CALLS: list[tuple[Behave, int, str, tuple[str, ...]]] = [
    (page, 3, "responded with 200 and a web page, not JSON", ()),
    (lambda asked: status(asked, "404 Not Found"), 3, "Check the path", ()),
    (lambda asked: status(asked, "500 Oops"), 3, "failed with status 500", ()),
    (
        lambda asked: status(asked, "401 Unauthorized"),
        4,
        r"requires credentials \(401\): no\. .*--login.*--auth KEY",
        (),
    ),
    (lambda asked: status(asked, "403 Forbidden"), 4, r"\(403\): no\. Send other credentials with --auth KEY", ()),
    (problem, 4, r"rejected the request \(403\): The key is old\. Send another key with --auth KEY", ()),
    (
        lambda asked: status(
            asked, "403 Forbidden", 'WWW-Authenticate: Bearer error="insufficient_scope", scope="a b"\r\n'
        ),
        4,
        r"these credentials have \(403\): a b\. Send credentials with this scope: --auth KEY\.\n$",
        (),
    ),
    (limited, 1, r"requests \(-31429\)\. The limit is 5 per 60 s\. Try again in 9 seconds\n$", ()),
    (lambda asked: status(asked, "302 Found", "Location: https://example.com/\r\n"), 3, "redirects to", ()),
    (unknown, 3, "1999-01-01", ()),
    (with_discovery(hang), 5, r"didn't respond to \S+ within 0\.3 seconds", ("--timeout", "0.3")),
    (with_discovery(die), 3, r"closed the connection before it responded\.\n$", ()),
    (die, 3, r"before it responded\. If it serves https, write https:// in the URL", ()),
    (with_discovery(wrong_id), 1, "999", ()),
    (with_discovery(gigabyte), 1, "more than 67,108,864 bytes", ()),
    (with_discovery(bomb), 5, "didn't respond", ("--timeout", "0.3")),
]


@for_each(("behave", "code", "words", "more"), CALLS)
async def test_misbehaving_servers_are_explained(behave: Behave, code: int, words: str, more: tuple[str, ...]) -> None:
    async with misbehaving(behave) as server:
        await fails(code, words, "call", server.url, "x", *more)


async def test_json_errors_include_cause_and_remedy() -> None:
    async with misbehaving(limited) as server:
        code, out, _ = await run("call", server.url, "x", "--json")
    assert code == 1
    assert json.loads(out) == {
        "ok": False,
        "error": "Too many requests (-31429).",
        "why": "The limit is 5 per 60 s.",
        "remedy": "Try again in 9 seconds",
        "status": 1,
    }


async def test_missing_servers_are_explained() -> None:
    await fails(3, "There is no server at", "list", f"http://127.0.0.1:{free_port()}/mcp")
    await fails(3, r"There is no server at http://nothing\.invalid", "list", "http://nothing.invalid/mcp")
    await fails(3, "If it's a URL, write http://", "list", "localhost:8000/mcp")


@pytest.fixture
async def unasked(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a server with an untrusted certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to a TLS handshake like servers without TLS."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_tls_failures_are_explained(unasked: int) -> None:
    await fails(
        3,
        r"certificate of https://localhost:\d+ isn't trusted: self.signed",
        "list",
        f"https://localhost:{unasked}/mcp",
    )
    _, diagnosis, _ = await run("doctor", f"https://localhost:{unasked}/mcp")
    assert "Fix: To trust your own certificate: SSL_CERT_FILE=FILE" in diagnosis
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await fails(3, r"doesn't speak TLS .* Use http://", "list", f"https://localhost:{port}/mcp")
    await fails(3, "write https://|doesn't speak HTTP", "list", f"http://localhost:{unasked}/mcp")


PROGRAMS = [
    ("import sys; sys.exit('no such database')", 3, r"^Error: The server exited with code 1\.$", WAIT),
    ("import sys; sys.exit('Error: no\\n  Fix: go')", 3, r"^Error: The server exited with code 1\.$", WAIT),
    ("print('Welcome!')\nimport time; time.sleep(600)", 5, "didn't respond", 0.2),
    ("while True: print('x' * 10)", 1, "writes text to its standard output", WAIT),
]


@pytest.mark.server
@pytest.mark.parametrize(("source", "code", "words", "timeout"), PROGRAMS)
async def test_programs_that_are_not_servers_are_explained(
    source: str, code: int, words: str, timeout: float, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    mark = tmp_path / "pid"
    script.write_text(
        f"import os; open({str(mark)!r}, 'w').write(str(os.getpid()))\n{textwrap.dedent(source)}", "utf-8"
    )
    await fails(code, words, "list", f"{sys.executable} {script}", "--timeout", f"{timeout:g}")
    if mark.exists():  # a slow machine may not have come so far
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text("utf-8")), 0)


@for_each("command", ["info", "ping", "tokens", "watch"])
async def test_connection_errors_are_the_same_in_every_command(command: str) -> None:
    await fails(3, "There is no server at", command, f"http://127.0.0.1:{free_port()}/mcp")
