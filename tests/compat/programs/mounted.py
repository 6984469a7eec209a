"""Two servers in one FastAPI application, with one lifespan for both session managers."""

import contextlib
import os

import echo
import math_server
import uvicorn
from fastapi import FastAPI


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(echo.mcp.session_manager.run())
        await stack.enter_async_context(math_server.mcp.session_manager.run())
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/echo", echo.mcp.streamable_http_app())
app.mount("/math", math_server.mcp.streamable_http_app())

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["FASTMCP_PORT"]), log_level="warning")
