#!/bin/sh
# One call, with nothing before it. Start the application first: uvicorn main:app
set -eu
url=${1:-http://127.0.0.1:8000}/echo/mcp/

curl -sS -H 'Accept: application/json, text/event-stream' -H 'Content-Type: application/json' -X POST "$url" -d '{
  "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"message": "hello"}}}'
echo
