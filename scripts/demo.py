"""Write the inspector and a recorded session into a folder, for the home page of the site: scripts/demo.py FOLDER.

The session is recorded from examples/bookshop.py while the site is built, so it always matches the server.
docs/theme/demo/replay.js replays it in place of a server.
"""

import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MILLSTREAM_SECRET_KEY"] = secrets.token_hex(32)  # data sealed with this key is useless elsewhere

from examples.bookshop import BOOKS, mcp  # noqa: E402  found by the line above
from millstream._web.pages import asset, pages  # noqa: E402

REVISION = "2026-07-28"
META = "io.modelcontextprotocol/"
PAGE = "inspect"
ADDRESS = {"street": "Hobbit Lane 1", "city": "Oxford"}
UNUSED = re.compile(r"/assets/(?:chat|connect|dashboard|docs|gateway)/")
"""Files of the other pages."""
IGNORED = {"order": "isbn"}
"""Tool -> its argument that doesn't change the result."""
KEPT = ("content-type", "cache-control", "vary")
"""Headers of replies that the page shows."""


def files() -> Iterator[tuple[str, bytes]]:
    """Yield the page and everything it loads."""
    for path in filter(lambda path: not UNUSED.match(path), pages([PAGE])):
        reply = asset(path, shown=frozenset({PAGE}))
        body = bytes(reply.body)
        if path == f"/{PAGE}":
            body = body.replace(b"<head>\n", b'<head>\n  <script src="replay.js"></script>\n', 1)
        yield "index.html" if path == f"/{PAGE}" else path.removeprefix("/"), body


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the requests that the page can make, as method and params."""
    for method in ("server/discover", "tools/list", "resources/list", "resources/templates/list", "prompts/list"):
        yield method, {}
    words = {word.lower() for book in BOOKS.values() for word in re.findall(r"\w+", book)}
    for word in sorted(words | {"", "tolkien", "the lord of the rings", "dune"}):
        yield "tools/call", {"name": "search", "arguments": {"words": word}}
    for copies in (None, 1, 2, 3, 4, 5):
        arguments = {"isbn": next(iter(BOOKS))} | ({} if copies is None else {"copies": copies})
        yield "tools/call", {"name": "order", "arguments": arguments}
    for isbn in BOOKS:
        yield "resources/read", {"uri": f"book://{isbn}"}
        for tone in ({}, {"tone": "dry"}, {"tone": "warm"}):
            yield "prompts/get", {"name": "review", "arguments": {"isbn": isbn, **tone}}
    for value in ("", "9", "97", "978"):
        argument = {"name": "isbn", "value": value}
        yield "completion/complete", {"ref": {"type": "ref/prompt", "name": "review"}, "argument": argument}


async def record() -> AsyncIterator[dict[str, Any]]:
    """Yield each request with its reply, and for a question, with the reply to each answer."""
    async with mcp.lifespan():
        yield await ask("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, first=True)
        for method, params in requests():
            entry = await ask(method, params)
            yield entry
            result = entry["messages"][-1].get("result", {})
            if result.get("resultType") == "input_required":
                for action in ("accept", "decline", "cancel"):
                    answer = {"action": action, **({"content": ADDRESS} if action == "accept" else {})}
                    answers = dict.fromkeys(result["inputRequests"], answer)
                    more = {"requestState": result["requestState"], "inputResponses": answers}
                    yield {**await ask(method, params, **more), "answer": action}


async def ask(method: str, params: dict[str, Any], *, first: bool = False, **more: Any) -> dict[str, Any]:
    """Return a request and its reply.

    Args:
        method: The method.
        params: Its params, by which the page's requests are compared.
        first: Whether to stop after the first message, for a stream that doesn't end.
        more: Further params.
    """
    about = {
        f"{META}protocolVersion": REVISION,
        f"{META}clientInfo": {"name": "millstream-inspect", "version": "1"},
        f"{META}clientCapabilities": {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}},
        "progressToken": 1,
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, **more, "_meta": about}})
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream", "host": "localhost"}
    headers |= {"mcp-protocol-version": REVISION, "mcp-method": method}
    if name := params.get("name", params.get("uri")):
        headers["mcp-name"] = name
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/mcp", "raw_path": b"/mcp", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("localhost", 80), "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body.encode(), "more_body": False})
    started: dict[str, Any] = {}
    text = ""

    async def send(event: dict[str, Any]) -> None:
        nonlocal text
        if event["type"] == "http.response.start":
            started.update(event)
        text += bytes(event.get("body", b"")).decode()
        if first and "data:" in text:
            incoming.put_nowait({"type": "http.disconnect"})

    await mcp(scope, incoming.get, send)
    found = {name.decode().lower(): value.decode() for name, value in started["headers"]}
    streamed = found["content-type"].startswith("text/event-stream")
    lines = re.findall(r"^data: ?(\{.*)$", text, re.MULTILINE) if streamed else [text]
    return {
        "method": method,
        "params": params,
        "ignored": IGNORED.get(params.get("name", ""), ""),
        "status": started["status"],
        "headers": {name: found[name] for name in KEPT if name in found},
        "messages": [json.loads(line) for line in lines],
    }


async def main(folder: Path) -> None:
    """Write the files."""
    for name, body in files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    session = [entry async for entry in record()]
    (folder / "session.json").write_text(json.dumps(session, separators=(",", ":")), "utf-8")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
