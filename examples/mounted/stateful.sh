#!/usr/bin/env bash
# A session by hand: initialize, say so, call. Start the application first: uvicorn main:app
set -euo pipefail
url=${1:-http://127.0.0.1:8000}/math/mcp/
types=(-H 'Accept: application/json, text/event-stream' -H 'Content-Type: application/json')

# 1. The server gives the session its id.
id=$(curl -sS -D - -o /dev/null "${types[@]}" -X POST "$url" -d '{
  "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "bash", "version": "1.0"}
  }}' | sed -nE 's/^mcp-session-id:[[:space:]]*//Ip' | tr -d '\r')
echo "session: $id"

# 2. The client has understood.
curl -sS "${types[@]}" -H "Mcp-Session-Id: $id" -X POST "$url" \
  -d '{"jsonrpc": "2.0", "method": "notifications/initialized"}'

# 3. A call.
curl -sS "${types[@]}" -H "Mcp-Session-Id: $id" -X POST "$url" -d '{
  "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "add_two", "arguments": {"n": 8}}}'
echo
