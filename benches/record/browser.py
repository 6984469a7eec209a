"""A page in Chromium, for benches/record: browser.py URL. Its requests have the headers that a browser adds."""

import json
import sys
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benches.wire import CLIENT

SEND = """async ([headers, body]) => {
  const reply = await fetch("/mcp", { method: "POST", headers, body });
  return [reply.headers.get("mcp-session-id"), await reply.text()];
}"""


def send(page: Page, session: str, method: str, params: dict[str, Any] | None = None) -> str:
    """Send a request of the handshake era from the page, and return the session's id."""
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if session:
        headers |= {"mcp-protocol-version": "2025-11-25", "mcp-session-id": session}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    if method.startswith("notifications/"):
        del message["id"]
    found, text = page.evaluate(SEND, [headers, json.dumps(message, separators=(",", ":"))])
    print(text)
    return session or found


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--headless=new"])
    print(f"source: Chromium {browser.version}, a page's fetch()")
    page = browser.new_page()
    page.goto(sys.argv[1].removesuffix("mcp"))
    session = send(page, "", "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT})
    send(page, session, "notifications/initialized")
    send(page, session, "tools/list")
    send(page, session, "ping")
    send(page, session, "tools/call", {"name": "add", "arguments": {"a": 1234567, "b": 1}})
    browser.close()
