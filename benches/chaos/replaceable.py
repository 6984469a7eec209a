"""An upstream of any kind and revision, which another version can replace at the same address.

It uses only the standard library.

python replaceable.py FILE                      over standard input and output, in the revision that the file names
python replaceable.py PORT REVISION [TOKENS]    over HTTP: at /mcp, /sse, and /ws, and an API at /echo; TOKENS is a file
"""

import base64
import contextlib
import hashlib
import json
import queue
import sys
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PER_REQUEST = "2026-07-28"
METADATA = "/.well-known/oauth-protected-resource"
_WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
ABOUT = {"name": "replaceable", "version": "1"}
CAPABILITIES: dict[str, Any] = {"tools": {}}


class Answers:
    """The responses of one revision."""

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def respond(self, message: Any) -> Any:
        """Return the response to a message, or None for a notification."""
        method, params = message.get("method", ""), message.get("params", {})
        if "id" not in message or not method:
            return None
        per_request = self.revision >= PER_REQUEST
        error = {"code": -32601, "message": "Method not found"}
        result: Any = None
        if method == "initialize":
            result = {"protocolVersion": self.revision, "capabilities": CAPABILITIES, "serverInfo": ABOUT}
            if per_request:
                error = {"code": -32022, "message": "Unsupported", "data": {"supported": [self.revision]}}
                result = None
        elif method == "server/discover" and per_request:
            result = {"supportedVersions": [self.revision], "capabilities": CAPABILITIES, "serverInfo": ABOUT}
            result |= {"ttlMs": 0, "cacheScope": "public"}
        elif method == "ping":
            result = {}
        elif method == "tools/list":
            result = {"tools": [{"name": "echo", "inputSchema": SCHEMA}]}
            result |= {"ttlMs": 0, "cacheScope": "public"} if per_request else {}
        elif method == "tools/call":
            result = {"content": [{"type": "text", "text": params["arguments"].get("text", "")}]}
        base = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            return {**base, "error": error}
        return {**base, "result": {"resultType": "complete", **result} if per_request else result}


class Handler(BaseHTTPRequestHandler):
    """Streamable HTTP with sessions, HTTP+SSE, WebSocket, and an API."""

    protocol_version = "HTTP/1.1"
    answers: Answers
    tokens: Path | None = None
    streams: Mapping[str, "queue.Queue[Any]"] = {}
    sessions: set[str] = set()  # noqa: RUF012  one server a process

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def handle(self) -> None:
        """Handle the requests of a connection until it's lost."""
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        """Open a stream, return an API's result, or describe the resource."""
        path, _, query = self.path.partition("?")
        if path.startswith(METADATA) and self.tokens is not None:
            resource = f"http://{self.headers['host']}{path.removeprefix(METADATA)}"
            issuer = self.tokens.with_suffix(".issuer").read_text("utf-8")
            self._reply(200, {"resource": resource, "authorization_servers": [issuer]})
        elif not self._is_permitted():
            return
        elif path == "/echo":
            self._reply(200, {"text": parse_qs(query).get("text", [""])[0]})
        elif path == "/sse":
            self._stream()
        elif path == "/ws":
            self._talk()
        else:
            self._reply(405)

    def do_DELETE(self) -> None:
        """End a session."""
        self._reply(200)

    def do_POST(self) -> None:
        """Respond to a message."""
        message = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
        if not self._is_permitted():
            return
        url, method = urlsplit(self.path), message.get("method", "")
        answer = self.answers.respond(message)
        if url.path == "/messages":
            stream = self.streams.get(url.query)
            if stream is None:
                self._reply(404)
                return
            self._reply(202)
            if answer is not None:
                stream.put(answer)
        elif url.path != "/mcp":
            self._reply(404)
        elif self.answers.revision >= PER_REQUEST:
            self._reply(202 if answer is None else 400 if method == "initialize" else 200, answer)
        elif method == "initialize":
            session = uuid.uuid4().hex
            self.sessions.add(session)
            self._reply(200, answer, session=session)
        elif "mcp-session-id" not in self.headers:  # as the official SDK 1.x
            error = {"code": -32600, "message": "Bad Request: Missing session ID"}
            self._reply(400, {"jsonrpc": "2.0", "id": "server-error", "error": error})
        elif self.headers["mcp-session-id"] not in self.sessions:
            error = {"code": -32600, "message": "Session not found"}
            self._reply(404, {"jsonrpc": "2.0", "id": "server-error", "error": error})
        else:
            self._reply(202 if answer is None else 200, answer)

    def _is_permitted(self) -> bool:
        if self.tokens is None:
            return True
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.tokens.read_text("utf-8").split():
            return True
        path = self.path.partition("?")[0]
        path = {"/messages": "/sse", "/echo": "/"}.get(path, path)
        self._reply(401, challenge=f'Bearer resource_metadata="http://{self.headers["host"]}{METADATA}{path}"')
        return False

    def _reply(self, status: int, body: Any = None, *, session: str = "", challenge: str = "") -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if session:
            self.send_header("mcp-session-id", session)
        if challenge:
            self.send_header("www-authenticate", challenge)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        name = uuid.uuid4().hex
        stream: queue.Queue[Any] = queue.Queue(1000)
        self.streams = Handler.streams = {**Handler.streams, name: stream}
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(f"event: endpoint\ndata: /messages?{name}\n\n".encode())
        while True:
            self.wfile.write(f"event: message\ndata: {json.dumps(stream.get())}\n\n".encode())

    def _talk(self) -> None:
        """Respond to the messages of a WebSocket connection, none of which is longer than a frame."""
        self.close_connection = True
        digest = hashlib.sha1((self.headers["sec-websocket-key"] + _WEBSOCKET).encode(), usedforsecurity=False).digest()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(digest).decode())
        if self.headers["sec-websocket-protocol"]:
            self.send_header("sec-websocket-protocol", self.headers["sec-websocket-protocol"].partition(",")[0])
        self.end_headers()
        while len(head := self.rfile.read(2)) == 2:
            size = head[1] & 127
            if size >= 126:
                size = int.from_bytes(self.rfile.read(2 if size == 126 else 8), "big")
            mask, masked = self.rfile.read(4), self.rfile.read(size)
            data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))
            if (code := head[0] & 15) == _CLOSE:
                self._frame(_CLOSE, data)
                return
            if code == _PING:
                self._frame(_PONG, data)
            elif code == _TEXT and (answer := self.answers.respond(json.loads(data))) is not None:
                self._frame(_TEXT, json.dumps(answer).encode())

    def _frame(self, code: int, data: bytes) -> None:
        size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
        self.wfile.write(bytes([0x80 | code]) + size + data)


def serve_stdio(answers: Answers) -> None:
    """Respond until standard input ends."""
    for line in sys.stdin:
        answer = answers.respond(json.loads(line))
        if answer is not None:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def main(where: str, revision: str = "", tokens: str = "") -> None:
    """Serve until the process ends."""
    if not revision:
        serve_stdio(Answers(Path(where).read_text("utf-8")))
        return
    Handler.answers, Handler.tokens = Answers(revision), Path(tokens) if tokens else None
    ThreadingHTTPServer(("127.0.0.1", int(where)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
