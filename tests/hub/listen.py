"""Does what listen.mjs does, with the hub's client in Python, so that the same cases test both."""

import asyncio
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from threading import Lock
from typing import Any, Self

import msgspec

from millstream import hub
from millstream._override import override


class InThreads:
    """The blocking client, each of whose methods runs in a thread."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self._inner.__exit__, *exc)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name == "subscribe":
            return lambda *args, **options: InThreads(method(*args, **options))
        return (
            method
            if name in ("close", "retry_now")
            else lambda *args, **options: asyncio.to_thread(method, *args, **options)
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if (event := await asyncio.to_thread(next, self._inner, None)) is None:
            raise StopAsyncIteration
        return event


lost: set[str] = set()
"""Patterns that were subscribed before."""


printing = Lock()
"""Held while a line is printed, because `print` writes its end separately and two threads print."""


def show(*line: object) -> None:
    """Print a line of JSON."""
    with printing:
        print(json.dumps(line), flush=True)  # noqa: T201


class States(logging.Handler):
    """Prints the log of the client as the states of the one in JavaScript."""

    def __init__(self, feed: Any, impatient: bool) -> None:
        super().__init__()
        self._feed = feed
        self._impatient = impatient

    @override
    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.args, tuple)
        pattern = str(record.args[0]).partition(" at ")[0]
        if record.msg.startswith("Disconnected"):
            status = getattr(record, "status", 0)
            show("state", {"state": "waiting", "reason": record.args[-1], "status": status})
            if self._impatient:
                asyncio.get_running_loop().call_later(0.05, self._feed.retry_now)
        else:
            show("state", {"state": "open"})
            show("ready", {"pattern": pattern, "resumed": pattern in lost})
            lost.add(pattern)


async def read(subscription: Any, pattern: str, name: str) -> None:
    """Print what a subscription receives."""
    try:
        async for event in subscription:
            if isinstance(event, hub.EventGap):
                show("gap", {"pattern": pattern, "reason": event.reason})
            else:
                show(name, event.data, *([event.event] if event.event else []))
    except hub.HubRefused as exc:
        show("error", {"pattern": pattern, "message": str(exc)})


async def main(url: str, options: dict[str, Any], patterns: list[tuple[str, dict[str, Any]]]) -> None:
    first, *rest = options.get("token", "").split(" ")
    tokens = chain((first, *rest), repeat((first, *rest)[-1]))
    lines = asyncio.StreamReader(2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))  # a thread for each subscription
    face, _, transport = options["transport"].partition("-")
    given: Any = {"token": lambda: next(tokens), "transport": transport or "sse"}
    client: Any = InThreads(hub.connect_blocking(url, **given)) if face == "blocking" else hub.connect(url, **given)
    async with client as feed, asyncio.TaskGroup() as tasks:
        logger = logging.getLogger("millstream.hub")
        logger.setLevel(logging.INFO)
        logger.addHandler(States(feed, options.get("impatient", False)))
        followed: list[Any] = []

        def subscribe(pattern: str, given: dict[str, Any]) -> None:
            name, last = given.pop("name", pattern), given.pop("from", "")
            followed.append(feed.subscribe(pattern, **given, last_event_id=last))
            tasks.create_task(read(followed[-1], pattern, name))

        async def call(method: str, *values: Any) -> None:
            try:
                if method == "subscribe":
                    subscribe(values[0], {})
                elif method == "publish":
                    channel, data, *more = values
                    show(method, msgspec.to_builtins(await feed.publish(channel, data, **(more[0] if more else {}))))
                else:
                    show(method, msgspec.to_builtins(await feed.members(*values)))
            except (hub.HubRefused, ValueError) as exc:
                show("failed", {"name": type(exc).__name__.removeprefix("Hub"), "message": str(exc)})

        for pattern, given in patterns:
            subscribe(pattern, given)
        while line := await lines.readline():
            method, *values = json.loads(line)
            if method == "follow":
                subscribe(*values)
            elif method == "unfollow":
                followed[values[0]].close()
            else:
                tasks.create_task(call(method, *values))


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])))
