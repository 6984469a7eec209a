"""Clients of a hub whose Redis is full, refuses commands, or doesn't answer: sockets and `hub.js`."""

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from hub.test_hub_client import listening, publish
from patience import WAIT
from processes import free_port, run_command, run_server
from redis_parts import RedisServer
from socket_world import ask, recv_json

pytestmark = pytest.mark.server

AWAY = "The store didn't respond in time."
UNSURE = f"{AWAY} The event may or may not have been published."
FULL = "The store is full. The event wasn't published."


class Hub:
    """A served hub and its Redis."""

    def __init__(self, port: int, redis: RedisServer, log: Path) -> None:
        self.port = port
        self.redis = redis
        self.log = log

    def signal(self, number: int) -> None:
        """Send a signal to Redis."""
        assert self.redis.process is not None
        self.redis.process.send_signal(number)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    redis, port, log = RedisServer(), free_port(), tmp_path / "log"
    try:
        with run_server(run_command("examples/hub.py", port, "--store", f"redis://127.0.0.1:{redis.port}"), port, log):
            yield Hub(port, redis, log)
        assert "failed [" not in log.read_text("utf-8")
        assert "Traceback" not in log.read_text("utf-8")
    finally:
        redis.close()


def fill(hub: Hub) -> None:
    hub.redis.ask("CONFIG", "SET", "maxmemory", "1")


def empty(hub: Hub) -> None:
    hub.redis.ask("CONFIG", "SET", "maxmemory", "0")


def forbid(hub: Hub) -> None:
    hub.redis.ask("ACL", "SETUSER", "default", "-@write", "-eval", "-evalsha")


def permit(hub: Hub) -> None:
    hub.redis.ask("ACL", "SETUSER", "default", "+@all")


def freeze(hub: Hub) -> None:
    hub.signal(signal.SIGSTOP)


def thaw(hub: Hub) -> None:
    hub.signal(signal.SIGCONT)


OUTAGES: dict[str, tuple[Callable[[Hub], None], Callable[[Hub], None], str]] = {
    "full": (fill, empty, FULL),
    "refusing": (forbid, permit, UNSURE),
    "silent": (freeze, thaw, UNSURE),
}


@asynccontextmanager
async def subscribed(hub: Hub) -> AsyncIterator[ClientConnection]:
    """Open a socket that's subscribed to a channel."""
    async with connect(f"ws://127.0.0.1:{hub.port}/ws", proxy=None, open_timeout=WAIT) as socket:
        assert (await recv_json(socket))["type"] == "connected"
        await reply(socket, {"type": "subscribe", "channel": "kept"})
        yield socket


async def reply(socket: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a message, which may follow others."""
    answer = await ask(socket, {**message, "id": 1})
    while answer.get("id") != 1:
        answer = await recv_json(socket)
    return dict(answer)


@pytest.mark.parametrize(("begin", "end", "text"), OUTAGES.values(), ids=OUTAGES)
async def test_socket_and_its_subscriptions_outlast_the_outage(
    hub: Hub, begin: Callable[[Hub], None], end: Callable[[Hub], None], text: str
) -> None:
    news = {"type": "publish", "channel": "kept", "data": "1"}
    async with subscribed(hub) as socket:
        begin(hub)
        try:
            error = (await reply(socket, news))["error"]
            assert error == {"code": -32000, "message": text, "data": {"retryAfterMs": 5_000}}
            if text == UNSURE:
                for kind in ("subscribe", "members"):
                    assert (await reply(socket, {"type": kind, "channel": "new"}))["error"]["message"] == AWAY
        finally:
            end(hub)
        while (await reply(socket, {"type": "subscribe", "channel": "new"}))["type"] != "subscribed":
            pass
        await publish(hub.port, "kept", "after")
        await publish(hub.port, "new", "newer")
        heard = []
        while "newer" not in heard:
            heard.append((await recv_json(socket)).get("data"))
        assert "after" in heard


async def test_hub_client_rejects_with_the_reason_of_the_store_and_stays_connected(hub: Hub) -> None:
    async with listening(hub.port, {"kept": {}}) as listener:
        await listener.until("ready")
        fill(hub)
        listener.call("publish", "kept", "1")
        assert (await listener.until("failed"))[1] == {"name": "Error", "message": FULL}, "not `Refused`"
        empty(hub)
        listener.call("publish", "kept", "2")
        await listener.until("kept", "2")
        assert listener.values("state")[-1]["state"] == "open"
        assert [each["state"] for each in listener.values("state")].count("open") == 1


async def test_hub_client_subscribes_again_when_the_store_is_back(hub: Hub) -> None:
    async with listening(hub.port, {"kept": {}}) as listener:
        await listener.until("ready")
        forbid(hub)
        listener.call("follow", "new", {"history": 3})
        while (state := (await listener.until("state"))[1])["state"] != "waiting":
            pass
        assert state["reason"] == AWAY
        permit(hub)
        listener.call("retryNow")
        assert (await listener.until("ready"))[1]["pattern"] == "new"
        await publish(hub.port, "new", "newer")
        await publish(hub.port, "kept", "after")
        await listener.until("new", "newer")
        await listener.until("kept", "after")
        assert listener.values("error") == []
