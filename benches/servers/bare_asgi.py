"""Floor of every ASGI application: `bare_asgi.py PORT` is one function under uvicorn around the JSON."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from bare_json import answer


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Read the body and respond."""
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    reply = answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


uvicorn.run(
    app,
    port=int(sys.argv[1]),
    loop="uvloop",
    http="httptools",
    log_level="warning",
    access_log=False,
    lifespan="off",
    ws="none",
)
