"""The commands of seed 002, unchanged except for the port."""

INITIALIZE = r"""curl -X POST http://localhost:8000/mcp \
-H "Content-Type: application/json" \
-d '{
"jsonrpc": "2.0",
"method": "initialize",
"id": "1"
}'"""

LIST = r"""curl -X POST http://localhost:8000/mcp \
-H "Content-Type: application/json" \
-d '{
"jsonrpc": "2.0",
"method": "tools/list",
"id": "2"
}'"""

CALL = r"""curl -X POST http://localhost:8000/mcp \
-H "Content-Type: application/json" \
-d '{
"jsonrpc": "2.0",
"method": "tools/call",
"params": {
"name": "add_numbers",
"arguments": {"a": 10, "b": 5}
},
"id": "3"
}'"""

CALL_STREAMED = r"""curl -X POST http://localhost:8000/mcp \
-H "Content-Type: application/json" \
-d '{
"jsonrpc": "2.0",
"method": "tools/call",
"params": {
"name": "add_numbers",
"arguments": {"a": 10, "b": 5, "stream": true}
},
"id": "4"
}'"""

LISTEN = r"""curl -N http://localhost:8000/mcp/sse/{client_id}"""

HEALTH = r"""curl http://localhost:8000/health"""

INITIALIZE_SHORT = (
    r"""curl -X POST http://localhost:8000/mcp -H "Content-Type: application/json" """
    r"""-d '{"jsonrpc":"2.0","method":"initialize","id":"1"}'"""
)

CLIENT_CALLS = [
    ("initialize", None),
    ("tools/list", None),
    ("tools/call", {"name": "add_numbers", "arguments": {"a": 10, "b": 5}}),
    ("tools/call", {"name": "add_numbers", "arguments": {"a": 10, "b": 5, "stream": True}}),
]
"""What the seed's Python client sends, in the order of its example."""
