"""A program that follows the chat of `rooms.py`, and says what people write: ``python follow_room.py lobby``."""

import asyncio
import json
import os
import sys

from millstream import hub


async def follow(url: str, room: str, key: str = "") -> None:
    """Print the newest messages of a room, and each later one."""
    async with hub.connect(url, token=key) as feed:
        async for event in feed.subscribe(f"room.{room}", history=10):
            if isinstance(event, hub.EventGap):
                print(f"Some messages are missing ({event.reason}).", flush=True)
            else:
                message = json.loads(event.data)
                print(f"{message['name']}: {message['text']}", flush=True)


async def say(url: str, room: str, text: str, key: str = "") -> None:
    """Say something in a room."""
    async with hub.connect(url, token=key) as feed:
        await feed.publish(f"room.{room}", {"name": "Python", "text": text})


if __name__ == "__main__":
    asyncio.run(follow("http://127.0.0.1:8000", sys.argv[1], os.environ.get("KEY", "")))
