"""A server whose own middleware requires a key for HTTP+SSE."""

import argparse
from datetime import UTC, datetime

import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse

from millstream.compat.fastmcp import FastMCP

mcp = FastMCP("time")


@mcp.tool()
def get_current_time() -> str:
    """The time now."""
    return datetime.now(UTC).isoformat()


class CheckKey(BaseHTTPMiddleware):
    def __init__(self, app, key: str):
        super().__init__(app)
        self.key = key

    async def dispatch(self, request, call_next):
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"detail": "Forbidden"}, status_code=403)
        return await call_next(request)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--auth-key", required=True)
    given = parser.parse_args()
    app = mcp.sse_app()
    app.add_middleware(CheckKey, key=given.auth_key)
    uvicorn.run(app, host=mcp.settings.host, port=mcp.settings.port, log_level="warning")
