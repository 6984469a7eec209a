"""Two ways on one WebSocket: call a tool, and receive what it broadcasts. An event stream only receives.

Start main.py first: ``python websocket_client.py [URL]``. MCP_SERVER_AUTH_KEY has the server's key,
if it has one.
"""

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

KEY = os.environ.get("MCP_SERVER_AUTH_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


async def main(url: str) -> None:
    """Subscribe, broadcast by a tool, and print everything until the broadcast is back."""
    async with connect(url, additional_headers=HEADERS) as socket:
        await socket.send(json.dumps({"type": "subscribe", "channel": "broadcast"}))
        call = {"type": "mcp_call", "tool": "send_sse_message", "arguments": {"message": "Hello by WebSocket"}}
        await socket.send(json.dumps(call))
        async for text in socket:
            print(text)
            if "Hello by WebSocket" in str(text) and json.loads(text).get("type") == "event":
                return


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8000/ws"))
    except InvalidStatus as exc:
        sys.exit(f"Error: {exc}\nIf the server has a key, set MCP_SERVER_AUTH_KEY to it.")
    except (OSError, WebSocketException) as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python main.py")
