"""A test of a mounted server, through the application: ``pytest test_echo_math.py``."""

# region: test
from echo_math import app
from fastapi.testclient import TestClient

# The server checks the name in the URL, and TestClient's own "testserver" isn't an allowed host.
client = TestClient(app, base_url="http://localhost")


def test_mounted_tools_can_be_called() -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params = {"name": "add_two", "arguments": {"n": 40}}
    reply = client.post("/math/mcp", json={**message, "params": params})
    assert reply.json()["result"]["content"][0]["text"] == "42"


# endregion
