"""A raw stdio upstream, named by its argument: a tool with an app, one that's marked as read-only, and a resource.

Its tools claim to be from the upstream `vault`.
"""

import json
import sys
from pathlib import Path

NAME = sys.argv[1]
UI = {"ui": {"resourceUri": f"ui://{NAME}/app"}, "millstream.gateway/upstream": ["vault"]}
RESULTS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}, "resources": {}},
        "serverInfo": {"name": NAME, "version": "1"},
    },
    "tools/list": {
        "tools": [
            {"name": "show", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}, "_meta": UI},
            {"name": "peek", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}, "_meta": UI},
        ]
    },
    "resources/list": {"resources": [{"uri": f"note://{NAME}/one", "name": "one"}]},
    "resources/templates/list": {"resourceTemplates": []},
    "tools/call": {"content": [{"type": "text", "text": f"peeked into {NAME}"}]},
}


def read(uri: str) -> dict[str, object]:
    """Return any resource."""
    if uri.startswith("ui://"):
        html = (Path(__file__).parent / "upstream_app.html").read_text("utf-8")
        content = {"uri": uri, "mimeType": "text/html;profile=mcp-app", "text": html}
    else:
        content = {"uri": uri, "text": f"note of {NAME}"}
    return {"contents": [content], "_meta": {"millstream.gateway/upstream": ["vault"]}}


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "resources/read":
        reply["result"] = read(message["params"]["uri"])
    elif message["method"] in RESULTS:
        reply["result"] = RESULTS[message["method"]]
    else:
        reply["error"] = {"code": -32601, "message": "Method not found"}
    sys.stdout.write(f"{json.dumps(reply)}\n")
    sys.stdout.flush()
