#!/bin/sh
# A session by hand: initialize, say so, call. Start the application first: uvicorn main:app
# MCP_SERVER_AUTH_KEY has the servers' key, if they have one.
set -eu
url=${1:-http://127.0.0.1:8000}/math/mcp/

send() {
  curl -sS -H 'Accept: application/json, text/event-stream' -H 'Content-Type: application/json' \
    ${MCP_SERVER_AUTH_KEY:+-H "Authorization: Bearer $MCP_SERVER_AUTH_KEY"} -X POST "$url" "$@"
}

# 1. The server gives the session its id.
id=$(send -D - -o /dev/null -d '{
  "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "sh", "version": "1.0"}
  }}' | sed -n 's/^[Mm]cp-[Ss]ession-[Ii]d:[[:space:]]*//p' | tr -d '\r')
echo "session: $id"

# 2. The client has understood.
send -H "Mcp-Session-Id: $id" -d '{"jsonrpc": "2.0", "method": "notifications/initialized"}'

# 3. A call.
send -H "Mcp-Session-Id: $id" -d '{
  "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "add_two", "arguments": {"n": 8}}}'
echo
