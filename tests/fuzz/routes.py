"""Requests to every route of a server in its own process, over real sockets. Hypothesis generates nearly valid paths,
queries, headers, and bodies. A 500, or a response that takes more than a second, is a fault.
"""

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from processes import free_port, run_command
from properties.messages import bodies, encoded_messages, headers, messages
from wire import encode_request

ROUTES = [
    "/mcp", "/mcp/", "/sse", "/messages/", "/health", "/livez", "/readyz", "/events", "/publish", "/ws",
    "/mcp/sse/x", "/mcp/tools/list", "/mcp/tools/call", "/tools/add_numbers", "/tools/x", "/openapi.json", "/docs",
    "/dashboard", "/dashboard/events", "/dashboard/audit", "/chat", "/members", "/hub.js", "/inspect", "/metrics",
    "/connect", "/connect/server",
    "/inspect/servers", "/inspect/callback", "/inspect/sign-in/1", "/inspect/via/1",
    "/assets/base.css", "/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server",
    "/authorize", "/token", "/register", "/revoke", "/introspect", "/sign-in", "/sign-out", "/x",
]  # fmt: skip
METHODS = ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"]
HANG = 1.0
queries = st.sampled_from(
    ["", "?", "?channel=a", "?last_event_id=x", "?session_id=x", "?q=%00", "?" + "a=b&" * 50]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(lambda text: f"?{text}")
forms = st.dictionaries(
    st.sampled_from(["grant_type", "code", "client_id", "redirect_uri", "key", "next", "token", "scope", "state", "x"]),
    st.sampled_from(["authorization_code", "refresh_token", "x", "", "http://127.0.0.1/", "%00", "é"]),
).map(lambda form: "&".join(f"{name}={value}" for name, value in form.items()).encode())


class Routes:
    """The server and its counts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.inputs = 0
        self.statuses = Counter[int]()
        self.faults: list[str] = []
        self.slowest = 0.0
        self.patience = 5 * HANG
        """Seconds until a request counts as hanging."""

    def ask(self, data: bytes, what: str) -> None:
        """Send a request and read the head of its reply."""
        self.inputs += 1
        begun = time.monotonic()
        head = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=self.patience) as peer:
                peer.sendall(data)
                while b"\r\n\r\n" not in head:
                    piece = peer.recv(65536)
                    if not piece:
                        break
                    head += piece
        except TimeoutError:
            self.faults.append(f"hangs: {what}")
            return
        except ConnectionError:
            pass
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
        self.statuses[status] += 1
        if status in (500, 502, 504) or took > HANG:
            self.faults.append(f"{status} after {took:.2f} s: {what}")


def run(seconds: float, folder: Path) -> Routes:
    """Send requests for a time."""
    port = free_port()
    command = run_command("../examples/hub.py", port, "--serve", "all")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, port)
        routes = Routes(port)
        _fuzz(routes, time.monotonic() + seconds)
        if process.poll() is not None:
            routes.faults.append("the server ended")
        if b"Traceback" in (folder / "server.log").read_bytes():
            routes.faults.append("there's a traceback in the log of the server")
        return routes
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("The server for the routes did not start.")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


def _fuzz(routes: Routes, until: float) -> None:
    quiet: Any = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=500, phases=[Phase.generate], **quiet)
    @given(
        st.sampled_from(METHODS), st.sampled_from(ROUTES), queries, headers,
        bodies | encoded_messages(messages) | forms,
        st.sampled_from(["", "application/x-www-form-urlencoded", "text/html"]),
    )  # fmt: skip
    def ask(method: str, path: str, query: str, fields: list[tuple[bytes, bytes]], body: bytes, kind: str) -> None:
        if time.monotonic() > until:
            return
        given_fields = [field for field in fields if field[0] != b"content-type" or not kind]
        given_fields += [(b"content-type", kind.encode())] if kind else []
        if len(body) % 5 and not any(name == b"host" for name, _ in given_fields):
            given_fields.append((b"host", b"127.0.0.1"))
        what = json.dumps([method, path + query, repr(fields), repr(body)])
        routes.ask(encode_request(method, path + query, given_fields, body), what)

    while time.monotonic() < until:
        ask()
