"""A handshake-era stdio server that counts in its memory. It uses only the standard library."""

import json
import sys
from typing import Any

QUESTION = {"type": "object", "properties": {"go": {"type": "boolean"}}, "required": ["go"]}


def say(message: dict[str, Any]) -> None:
    """Write one message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer until standard input ends."""
    counted, asked = 0, dict[str, Any]()
    for line in sys.stdin:
        message = json.loads(line)
        method, result = message.get("method"), dict[str, Any]()
        id = message.get("id")
        if method == "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
            result["serverInfo"] = {"name": "counter", "version": "1"}
        elif method == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("count", "ask")]}
        elif method == "tools/call" and message["params"]["name"] == "ask":
            asked[f"question-{id}"] = id
            question = {"message": "Count?", "requestedSchema": QUESTION}
            say({"id": f"question-{id}", "method": "elicitation/create", "params": question})
            continue
        elif method == "tools/call" or id in asked:
            counted += 1
            id = asked.pop(id, id)
            result = {"content": [{"type": "text", "text": str(counted)}]}
        if id is not None:
            say({"id": id, "result": result})


main()
