"""Raw stdio servers that send exactly what a test specifies."""

import json
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]
PROGRAM = """
import json, sys
replies = json.load(open(sys.argv[1])) if sys.argv[1][0] == "/" else json.loads(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if "id" not in message:
        continue
    reply = replies.get(method, {"error": {"code": -32601, "message": f"Method not found: {method}"}})
    if isinstance(reply, list):
        reply = reply.pop(0) if len(reply) > 1 else reply[0]
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **reply}), flush=True)
"""


def stranger(capabilities: Json, replies: Json, *, file: Path | None = None, **about: Any) -> list[str]:
    """Return the command of a server.

    Args:
        capabilities: What it announces.
        replies: Method -> members of its response, or a list of them for successive requests; the last one repeats.
        file: Where to write replies that are too large for a command line.
        about: More members of its `initialize` result.
    """
    greeting = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {"name": "s"}, **about}
    said = json.dumps({"initialize": {"result": greeting}, **replies})
    if file is not None:
        file.write_text(said)
    return [sys.executable, "-c", PROGRAM, said if file is None else str(file)]
