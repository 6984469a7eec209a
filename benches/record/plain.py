"""A program without an SDK, for benches/record: plain.py URL."""

import platform
import sys

import httpx

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "add",
}
params = {"name": "add", "arguments": {"a": 1234567, "b": 1}, "_meta": META}
print(f"source: httpx {httpx.__version__} on Python {platform.python_version()}")
with httpx.Client(headers=HEADERS) as client:
    for number in range(2):
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        print(client.post(sys.argv[1], json=message).text)
