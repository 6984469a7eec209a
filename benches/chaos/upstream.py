"""A handshake-era stdio server whose behavior its argument selects. It uses only the standard library.

python upstream.py steady       answers
python upstream.py hanging      sometimes answers nothing, and sometimes stops altogether
python upstream.py flooding     sometimes says far more than it was asked
python upstream.py lying        lists schemas that are none, and sends results of no shape
python upstream.py changing     has other tools each time, and says so all the time
"""

import json
import os
import random
import sys
import time
from typing import Any

_ECHO: dict[str, Any] = {
    "name": "echo",
    "description": "Return the text.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
_MANY = 20_000
"""Number of messages in a flood."""


def say(message: object) -> None:
    """Write one message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(mode: str) -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method", "")
        if "id" not in message:
            continue
        if method == "initialize":
            capabilities = {"tools": {"listChanged": True}}
            about = {"name": mode, "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": about}
        elif method == "tools/list":
            result = {"tools": _tools(mode)}
        elif method == "tools/call":
            _misbehave(mode, message["id"])
            if mode == "hanging" and random.random() < 0.3:
                continue
            result = _result(mode, message["params"]["arguments"].get("text", ""))
        else:
            say({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "Method not found"}})
            continue
        say({"jsonrpc": "2.0", "id": message["id"], "result": result})


def _tools(mode: str) -> list[Any]:
    if mode == "lying":
        deep: dict[str, Any] = {}
        for _ in range(300):
            deep = {"properties": {"a": deep}}
        lies: list[Any] = [
            {"name": "number", "inputSchema": 3},
            {"name": "text", "inputSchema": {"type": "string"}},
            {"name": "missing"},
            {"name": "deep", "inputSchema": {"type": "object", **deep}},
            {"name": "elsewhere", "inputSchema": {"$ref": "http://127.0.0.1:9/schema.json"}},
            {"name": "pattern", "inputSchema": {"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}}},
            {"name": "no name\u202e\x1b[2J", "inputSchema": {"type": "object"}},
            {"name": "long", "description": "x" * 500_000, "inputSchema": {"type": "object"}},
            {"name": 7, "inputSchema": {"type": "object"}},
            "a text",
            None,
        ]
        return [_ECHO, *random.sample(lies, random.randrange(len(lies))), _ECHO]
    if mode == "changing":
        others = random.sample(range(50), random.randrange(20))
        schema = {"type": "object", "properties": {str(random.random()): {"type": "string"}}}
        return [_ECHO, *({"name": f"other{number}", "inputSchema": schema} for number in others)]
    return [_ECHO, {**_ECHO, "name": "again"}]


def _result(mode: str, text: str) -> Any:
    content = [{"type": "text", "text": text}]
    if mode == "lying":
        return random.choice(
            [{"content": content}, {"content": "text"}, {}, 3, None, {"content": [{"type": "?"}]}, {"isError": "maybe"}]
        )
    return {"content": content}


def _misbehave(mode: str, request_id: int) -> None:
    chance = random.random()
    if mode == "hanging" and chance < 0.01:
        time.sleep(3600)
    elif mode == "flooding" and chance < 0.02:
        sys.stderr.write("flood\n" * _MANY)
        sys.stdout.write('{"jsonrpc":"2.0","method":"notifications/x"}\n' * _MANY)
    elif mode == "flooding" and chance < 0.03:
        os.write(1, b"x" * 10_000_000)
    elif mode == "flooding" and chance < 0.04:
        sys.stdout.write("\n" * _MANY + "not JSON\n" * 100)
    elif mode == "flooding" and chance < 0.05:
        for number in range(200):
            say({"jsonrpc": "2.0", "id": number, "method": "roots/list"})
    elif mode == "lying" and chance < 0.02:
        say({"jsonrpc": "2.0", "id": request_id + 1_000_000, "result": {}})
    elif mode == "changing":
        for _ in range(20):
            say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})


if __name__ == "__main__":
    main(sys.argv[1])
