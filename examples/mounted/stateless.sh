#!/bin/sh
# One call, with nothing before it. Start the application first: uvicorn main:app
# MCP_SERVER_AUTH_KEY has the servers' key, if they have one.
set -eu
url=${1:-http://127.0.0.1:8000}/echo/mcp/

curl -sS -H 'Accept: application/json, text/event-stream' -H 'Content-Type: application/json' \
  ${MCP_SERVER_AUTH_KEY:+-H "Authorization: Bearer $MCP_SERVER_AUTH_KEY"} -X POST "$url" -d '{
  "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"message": "hello"}}}'
echo
