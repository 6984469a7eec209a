import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, free_port, run_command, run_server, wait_for_port
from programs import needs
from proxies import NEEDS_NGINX, NGINX
from redis_parts import RedisServer

pytestmark = [
    pytest.mark.server,
    NEEDS_NGINX,
    needs("openssl"),
]
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
CLIENT = {"name": "t", "version": "1"}
KEY = "a key for this test that is long enough to be one"


def site(folder: Path, plain: int, secure: int, backends: list[int]) -> str:
    """The configuration for this machine: other ports, our certificate, no name server, an older nginx."""
    text = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    servers = "".join(f"server 127.0.0.1:{port} max_fails=2 fail_timeout=5s;\n" for port in backends)
    changes = {
        r"server app:8000 resolve .*\n": servers,
        r"resolver .*\n": "",
        r"listen 80;": f"listen 127.0.0.1:{plain};",
        r"listen 443 ssl;\n\s*http2 on;": f"listen 127.0.0.1:{secure} ssl http2;",
        r"/etc/nginx/certs": str(folder),
        r"pid .*;": f"pid {folder}/pid; error_log {folder}/error.log; daemon off;",
        r"access_log off;": "access_log off;"
        + "".join(
            f" {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }
    for pattern, text_for in changes.items():
        text, count = re.subn(pattern, lambda _, text_for=text_for: text_for, text)
        assert count, pattern
    return text


@contextmanager
def front(folder: Path, backends: list[int]) -> Iterator[tuple[int, int]]:
    """nginx; gives its ports without and with TLS."""
    folder.mkdir()
    plain, secure = free_port(), free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "nginx.conf").write_text(site(folder, plain, secure, backends))
    assert NGINX is not None
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=output)
    try:
        wait_for_port(process, secure, folder / "output")
        yield plain, secure
    finally:
        process.terminate()
        process.wait()


class Peer:
    """One TLS connection to nginx."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str]]:
        """Send a request; status and headers of the reply."""
        self.close()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)
        fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
        fields |= {"accept": "application/json, text/event-stream", "connection": "close"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT)).decode()
        found = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r$", text, re.MULTILINE)}
        return int(text.split(" ", 2)[1]), found

    async def until(self, part: bytes) -> bytes:
        """Read up to something."""
        return await asyncio.wait_for(self.reader.readuntil(part), WAIT)


def message(method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


async def test_two_servers_behind_the_proxy_act_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = RedisServer("--appendonly", "yes", "--maxmemory-policy", "noeviction")
    monkeypatch.setenv("MILLSTREAM_SECRET_KEY", KEY)
    monkeypatch.setenv("MILLSTREAM_STORE", f"redis://127.0.0.1:{redis.port}/0")
    monkeypatch.setenv("MILLSTREAM_LOG_FILE", str(tmp_path / "logs" / "server.log"))
    ports = [free_port(), free_port()]
    folder = tmp_path / "nginx"
    with ExitStack() as stack:
        stack.callback(redis.close)
        for port in ports:
            command = run_command("deploy/server.py", port)
            stack.enter_context(run_server(command, port, tmp_path / f"{port}.log"))
        plain, secure = stack.enter_context(front(folder, ports))

        reader, writer = await asyncio.open_connection("127.0.0.1", plain)
        writer.write(b"GET /mcp HTTP/1.0\r\nhost: localhost\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 308")
        writer.close()

        peer = Peer(secure, folder)
        streams = [Peer(secure, folder) for _ in range(2)]
        for each in (peer, *streams):
            stack.callback(each.close)
        status, headers = await peer.send(
            "POST", "/mcp",
            message("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=CLIENT),
        )  # fmt: skip
        assert status == 200
        session = {"mcp_session_id": headers["mcp-session-id"], "mcp_protocol_version": "2025-11-25"}
        for _ in range(4):  # round robin: both servers get some
            status, _ = await peer.send("POST", "/mcp", message("tools/call", name="get_current_time"), **session)
            assert status == 200

        for stream in streams:
            status, headers = await stream.send("GET", "/events")
            assert (status, headers["content-type"]) == (200, "text/event-stream")
            await stream.until(b"id: ")
        status, _ = await peer.send(
            "POST", "/mcp", message("tools/call", name="send_message", arguments={"text": "now"})
        )
        assert status == 200
        for stream in streams:
            await stream.until(b"data: now\n")

        status, headers = await peer.send(
            "GET", "/ws", connection="Upgrade", upgrade="websocket", sec_websocket_version="13",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
        )  # fmt: skip
        assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        assert (await peer.send("GET", "/metrics"))[0] == 404
        status, _ = await peer.send("DELETE", "/mcp", **session)
        assert status == 204
        for _ in range(2):  # on both
            status, _ = await peer.send("POST", "/mcp", message("tools/list"), **session)
            assert status == 404
        assert "is serving on" in (tmp_path / "logs" / "server.log").read_text("utf-8")


def test_image_command_and_health_check_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[0])
    check = json.loads(re.findall(r"^    CMD (\[.*\])$", text, re.MULTILINE)[0])
    port = free_port()
    monkeypatch.setenv("MILLSTREAM_SECRET_KEY", KEY)
    command = [each.replace("0.0.0.0", "127.0.0.1") for each in command]  # noqa: S104  what it's replaced by is local
    program = [str(Path(sys.executable).with_name("millstream")), *command, "--port", str(port)]
    folder = ROOT / "deploy"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(program, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for_port(process, port, tmp_path / "log")
        arguments = [each.replace("8000", str(port)).replace("timeout=2", f"timeout={WAIT}") for each in check[1:]]
        deadline = time.monotonic() + WAIT
        while subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
    finally:
        process.terminate()
        assert process.wait(WAIT) == 0


@needs("systemd-analyze")
@pytest.mark.parametrize("gateway", [False, True])
def test_systemd_accepts_the_units(gateway: bool, tmp_path: Path) -> None:
    for name in ("millstream.socket", "millstream.service"):
        text = (ROOT / "deploy" / "systemd" / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("/opt/millstream/bin/millstream", sys.executable))
    if gateway:
        (tmp_path / "millstream.service.d").mkdir()
        text = (ROOT / "deploy" / "systemd" / "gateway.conf").read_text("utf-8")
        (tmp_path / "millstream.service.d" / "gateway.conf").write_text(
            text.replace("/opt/millstream/bin/millstream", sys.executable)
        )
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("millstream.s*[et]")))],
        check=False, capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    lines = [line for line in found.stderr.splitlines() if "millstream" in line]
    assert (found.returncode, lines) == (0, []), found.stderr
