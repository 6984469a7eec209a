"""A web service with one tool, `get_current_time`, for callers who know its key: GET /sse, POST /messages/, POST /mcp.

Start it with ``python3 mcp_server.py --auth-key my_secret_key``; the key may also be in MCP_SERVER_AUTH_KEY.
"""

import argparse
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from millstream import Server, Settings, ToolAnnotations, ToolError


# region: server
def make(auth_key: str = "", *, debug: bool = False) -> Server:
    """The server. Callers send the key as `Authorization: Bearer KEY`; one with another key gets 403."""
    given: dict[str, Any] = {"auth_key": auth_key} if auth_key else {}
    settings = Settings.load(**given, access_log=debug, log_level="debug" if debug else "info")
    mcp = Server("Time Server", version="1.0.0", settings=settings)

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))  # so a client need not ask before it calls
    def get_current_time(timezone: str = "UTC") -> str:
        """The time now in an IANA time zone such as Europe/Paris."""
        try:
            return datetime.now(ZoneInfo(timezone)).isoformat(timespec="seconds")
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ToolError(f"There is no time zone {timezone!r}. Use an IANA name such as Europe/Paris.") from exc

    return mcp


# endregion


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="An MCP server that tells the time.")
    options.add_argument("--auth-key", default="", help="the key that callers have to send")
    options.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, which takes a key")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--debug", action="store_true", help="log every message")
    chosen = options.parse_args()
    make(chosen.auth_key, debug=chosen.debug).run("http", host=chosen.host, port=chosen.port)
