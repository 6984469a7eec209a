"""A client in plain HTTP: it shows what's on the wire. For programs, take `millstream.Client`.

``python mcp_client_http.py [URL]`` runs the calls below against a server, by default http://localhost:8000.
MCP_SERVER_AUTH_KEY has the server's key, if it has one.
"""

import http.client
import json
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]
KEY = os.environ.get("MCP_SERVER_AUTH_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


# region: client
class MCPHTTPClient:
    """Requests go to POST /mcp; what streamed calls say is heard at GET /mcp/sse/{client_id}."""

    def __init__(self, base_url: str = "http://localhost:8000") -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{base_url!r} isn't the address of a server, such as http://localhost:8000.")
        self._address = parts.hostname, parts.port or 80
        self._last_id = 0
        self.client_id = secrets.token_hex(8)

    def initialize(self) -> Json:
        """The server's name, version and capabilities."""
        return self._send("initialize")

    def list_tools(self) -> Json:
        """The tools, with the schemas of their arguments."""
        return self._send("tools/list")

    def call_tool(self, name: str, arguments: Json) -> Json:
        """The response to a call."""
        return self._send("tools/call", {"name": name, "arguments": arguments})

    def listen(self) -> Iterator[Json]:
        """What this client's streamed calls say, also those from before; it goes on until you stop."""
        connection = http.client.HTTPConnection(*self._address)
        try:
            headers = {"Accept": "text/event-stream", **HEADERS}
            connection.request("GET", f"/mcp/sse/{self.client_id}", headers=headers)
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()

    def _send(self, method: str, params: Json | None = None) -> Json:
        self._last_id += 1
        message: Json = {"jsonrpc": "2.0", "id": str(self._last_id), "method": method}
        if params is not None:
            message["params"] = params
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            headers = {"Content-Type": "application/json", **HEADERS}
            connection.request("POST", f"/mcp?client_id={self.client_id}", json.dumps(message), headers)
            response = connection.getresponse()
            if response.status in (401, 403):
                raise PermissionError(f"The server requires its key ({response.status}).")
            reply: Json = json.loads(response.read())
            return reply
        finally:
            connection.close()


# endregion


def main(url: str = "http://localhost:8000") -> None:
    # region: use
    client = MCPHTTPClient(url)
    init_response = client.initialize()
    tools = client.list_tools()
    result = client.call_tool("add_numbers", {"a": 10, "b": 5})
    stream_result = client.call_tool("add_numbers", {"a": 10, "b": 5, "stream": True})
    # endregion
    print("server:", init_response["result"]["serverInfo"]["name"])
    print("tools:", ", ".join(tool["name"] for tool in tools["result"]["tools"]))
    print("10 + 5 =", result["result"]["content"][0]["text"])
    print("streamed:", json.dumps(stream_result["result"]))
    for event in client.listen():
        print("heard:", json.dumps(event))
        if "result" in event:
            break


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except PermissionError as exc:
        sys.exit(f"Error: {exc}\nSet MCP_SERVER_AUTH_KEY to it.")
    except (OSError, ValueError, http.client.HTTPException) as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python mcp_server_add_http.py")
