"""What the tests of the pages share: calls and figures of a running server, past the browser."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Page

from patience import WAIT

OpenPage = Callable[..., Page]
"""``open_page(url, name="", lossy=False, **options of the context)``, a fixture."""

_COUNT = re.compile(r"mcp_server_operation_duration_seconds_count\{(.*)\} (\d+)")


def call(address: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool in the dialect of the seeds."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    with urlopen(request, timeout=WAIT) as response:  # noqa: S310
        return dict(json.load(response))


def counted(address: str, tool: str = "") -> int:
    """Calls by `/metrics`: all of them, or those of one tool."""
    with urlopen(f"{address}/metrics", timeout=WAIT) as response:  # noqa: S310
        text = response.read().decode()
    wanted = f'gen_ai_tool_name="{tool}"' if tool else ""
    return sum(int(count) for labels, count in _COUNT.findall(text) if wanted in labels)
