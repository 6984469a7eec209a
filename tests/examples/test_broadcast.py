import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from patience import WAIT
from processes import ROOT, free_port, run_command, run_server

pytestmark = pytest.mark.server
FOLDER = ROOT / "examples" / "broadcast"
TOOLS = [
    {
        "name": "get_server_info",
        "description": "Get information about the SSE MCP server",
        "inputSchema": {"type": "object", "properties": {}, "required": []},
    },
    {
        "name": "send_sse_message",
        "description": "Send a message via Server-Sent Events",
        "inputSchema": {
            "type": "object",
            "properties": {"message": {"type": "string", "description": "The message to send"}},
            "required": ["message"],
        },
    },
]


def test_tool_list_matches_the_document_and_websocket_broadcasts(tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command(str(FOLDER / "main.py"), port), port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}"
        listed = httpx2.post(f"{url}/mcp/tools/list", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert listed.json() == {"jsonrpc": "2.0", "id": 1, "result": {"tools": TOOLS}}
        program = [sys.executable, str(FOLDER / "websocket_client.py"), f"ws://127.0.0.1:{port}/ws"]
        said = subprocess.run(program, capture_output=True, text=True, timeout=WAIT, check=True).stdout
        assert '"data":"Hello by WebSocket"' in said
        lost = httpx2.post(f"{url}/message?session_id=1", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert "Session not found" in lost.text
