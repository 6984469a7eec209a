"""FastAPI with sse-starlette as a peer: `fastapi_sse.py PORT`, with a queue per subscriber, as in its documentation.

It uses uvloop, httptools, and no access log. `WS /ws` does the same with Starlette's WebSocket.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse

app = FastAPI()
queues: set[asyncio.Queue[dict[str, Any]]] = set()
events = 0


@app.get("/events")
async def stream() -> EventSourceResponse:
    """Stream everything that's published from now on."""
    return EventSourceResponse(listen(), ping=15)


async def listen() -> AsyncIterator[dict[str, Any]]:
    """Yield the items of one subscriber's queue."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


@app.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    """Send the same on a WebSocket."""
    await websocket.accept()
    try:
        async for event in listen():
            await websocket.send_text(event["data"])
    except WebSocketDisconnect:
        pass


@app.post("/publish")
async def publish(body: dict[str, str]) -> dict[str, int]:
    """Put the event into every queue."""
    global events  # noqa: PLW0603
    events += 1
    event = {"id": str(events), "data": body["data"]}
    for queue in queues:
        queue.put_nowait(event)
    return {"subscribers": len(queues)}


uvicorn.run(
    app, port=int(sys.argv[1]), loop="uvloop", http="httptools", ws="websockets-sansio", log_level="warning",
    access_log=False, ws_ping_interval=None,
)  # fmt: skip
