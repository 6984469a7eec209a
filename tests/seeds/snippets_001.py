"""The commands and programs of seed 001, unchanged except for the port."""

COMMANDS = {
    "health": r"""curl http://localhost:8000/health""",
    "list_bare": r"""curl -X POST http://localhost:8000/mcp/tools/list \
  -H "Content-Type: application/json" \
  -d '{}'""",
    "list": r"""curl -X POST http://localhost:8000/mcp/tools/list \
  -H "Content-Type: application/json" \
  -d '{
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/list",
    "params": {}
  }'""",
    "broadcast": r"""curl -X POST http://localhost:8000/mcp/tools/call \
  -H "Content-Type: application/json" \
  -d '{
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {
      "name": "send_sse_message",
      "arguments": {
        "message": "Hello from MCP! Server is broadcasting this message."
      }
    }
  }'""",
    "chat_one": r"""curl -X POST http://localhost:8000/mcp/tools/call \
  -d '{
    "method": "tools/call",
    "params": {
      "name": "send_sse_message",
      "arguments": {
        "message": "User1: Hello everyone! 👋"
      }
    }
  }'""",
    "chat_two": r"""curl -X POST http://localhost:8000/mcp/tools/call \
  -d '{
    "method": "tools/call",
    "params": {
      "name": "send_sse_message",
      "arguments": {
        "message": "User2: Hi there! Great to see you online! 😊"
      }
    }
  }'""",
    "server_info": r"""curl -X POST http://localhost:8000/mcp/tools/call \
  -H "Content-Type: application/json" \
  -d '{
    "jsonrpc": "2.0",
    "id": 3,
    "method": "tools/call",
    "params": {
      "name": "get_server_info",
      "arguments": {}
    }
  }'""",
    "health_again": r"""curl http://localhost:8000/health""",
    "list_again": r"""curl -X POST http://localhost:8000/mcp/tools/list \
  -H "Content-Type: application/json" \
  -d '{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}'""",
    "broadcast_again": r"""curl -X POST http://localhost:8000/mcp/tools/call \
  -H "Content-Type: application/json" \
  -d '{
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {
      "name": "send_sse_message",
      "arguments": {"message": "Hello SSE World!"}
    }
  }'""",
    "listen": r"""curl -N http://localhost:8000/events""",
    "docs": r"""open http://localhost:8000/docs""",
    "docker_health_check": r"""curl -f http://localhost:8000/health || exit 1""",
}
"""By name, in the order of the seed."""

EVENTS_JS = r"""
// Connect to SSE endpoint
const eventSource = new EventSource('http://localhost:8000/events');

eventSource.onmessage = function(event) {
    console.log('Received SSE message:', event.data);
    // Display real-time update in UI
};

eventSource.onerror = function(event) {
    console.error('SSE connection error:', event);
};
"""

DASHBOARD_JS = r"""
// Real-time dashboard updates
const eventSource = new EventSource('http://localhost:8000/events');
const statusDiv = document.getElementById('server-status');
const connectionCount = document.getElementById('connection-count');

// Get initial server info
fetch('http://localhost:8000/mcp/tools/call', {
    method: 'POST',
    headers: {'Content-Type': 'application/json'},
    body: JSON.stringify({
        method: 'tools/call',
        params: {
            name: 'get_server_info',
            arguments: {}
        }
    })
}).then(response => response.json())
  .then(data => {
      statusDiv.innerHTML = `Server: ${data.result.content[0].text}`;
  });

// Listen for real-time updates
eventSource.onmessage = function(event) {
    const logDiv = document.getElementById('logs');
    logDiv.innerHTML += `<div>${new Date().toLocaleTimeString()}: ${event.data}</div>`;
};
"""

WEBSOCKET_JS = r"""
// Connect to WebSocket endpoint
const socket = new WebSocket('ws://localhost:8000/ws');

socket.onopen = function(event) {
    console.log('WebSocket connected');

    // Send MCP-style message via WebSocket
    socket.send(JSON.stringify({
        type: 'mcp_call',
        tool: 'send_sse_message',
        arguments: {
            message: 'Hello from WebSocket client!'
        }
    }));
};

socket.onmessage = function(event) {
    const data = JSON.parse(event.data);
    console.log('Received:', data);
};

socket.onclose = function(event) {
    console.log('WebSocket closed');
};
"""

CLIENT_PY = r'''
import requests
import json
from typing import Dict, Any

class HTTPMCPClient:
    def __init__(self, base_url: str):
        self.base_url = base_url
        self.session = requests.Session()

    def list_tools(self) -> Dict[str, Any]:
        """Discover available tools"""
        response = self.session.post(
            f"{self.base_url}/mcp/tools/list",
            json={
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/list",
                "params": {}
            }
        )
        return response.json()

    def call_tool(self, name: str, arguments: Dict[str, Any]) -> Dict[str, Any]:
        """Execute a tool"""
        response = self.session.post(
            f"{self.base_url}/mcp/tools/call",
            json={
                "jsonrpc": "2.0",
                "id": 2,
                "method": "tools/call",
                "params": {
                    "name": name,
                    "arguments": arguments
                }
            }
        )
        return response.json()

# Usage example
client = HTTPMCPClient("http://localhost:8000")
tools = client.list_tools()
result = client.call_tool("get_server_info", {})
'''

LOAD_PY = r'''
import asyncio
import aiohttp
import time
from concurrent.futures import ThreadPoolExecutor

async def test_sse_connection(session, client_id):
    """Test SSE connection"""
    async with session.get('http://localhost:8000/events') as response:
        async for data in response.content:
            print(f"Client {client_id}: {data}")

async def test_tool_calls(session, num_calls):
    """Test concurrent tool calls"""
    tasks = []
    for i in range(num_calls):
        task = session.post(
            'http://localhost:8000/mcp/tools/call',
            json={
                "method": "tools/call",
                "params": {
                    "name": "send_sse_message",
                    "arguments": {"message": f"Load test message {i}"}
                }
            }
        )
        tasks.append(task)

    start_time = time.time()
    responses = await asyncio.gather(*tasks)
    end_time = time.time()

    print(f"Completed {num_calls} calls in {end_time - start_time:.2f} seconds")
    return responses

# Run load test
async def main():
    async with aiohttp.ClientSession() as session:
        # Test concurrent SSE connections
        sse_tasks = [test_sse_connection(session, i) for i in range(10)]

        # Test tool call throughput
        await test_tool_calls(session, 100)

        # Keep SSE connections alive
        await asyncio.gather(*sse_tasks)

asyncio.run(main())
'''

ORDERS_PY = r"""
# Order service sending real-time updates
import requests

class OrderService:
    def __init__(self, sse_mcp_url: str):
        self.sse_mcp_url = sse_mcp_url

    def process_order(self, order_id: str):
        # Process order logic...

        # Send real-time update via SSE MCP
        self.notify_clients(f"Order {order_id} processed successfully")

    def notify_clients(self, message: str):
        requests.post(f"{self.sse_mcp_url}/mcp/tools/call", json={
            "method": "tools/call",
            "params": {
                "name": "send_sse_message",
                "arguments": {"message": message}
            }
        })

# Usage in order processing
order_service = OrderService("http://sse-mcp-server:8000")
order_service.process_order("ORDER-123")
"""
