import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_input.shop import make_shop
from patience import WAIT
from properties.messages import bodies, encoded_messages, messages
from property_settings import examples
from wire import open_pipe, request

pytestmark = pytest.mark.many
PING = b'{"jsonrpc":"2.0","id":"the ping behind","method":"ping"}'


class RunningServer:
    """A server and its event loop."""

    def __init__(self, runner: asyncio.Runner, runtime: Any) -> None:
        self._runner = runner
        self._runtime = runtime

    def say(self, body: bytes, revision: str) -> list[Any]:
        """Return all messages of a fresh connection in response to one message, without the pong."""
        return self._runner.run(self._say(body, revision))

    async def _say(self, body: bytes, revision: str) -> list[Any]:
        pipe = open_pipe(self._runtime)
        heard: list[Any] = []
        async with asyncio.timeout(WAIT):
            if revision:
                pipe.send(json.dumps(request("initialize", {"protocolVersion": revision, "capabilities": {}})).encode())
                await pipe.receive()
            pipe.send(body)
            for _ in range(30):
                await asyncio.sleep(0)
            pipe.send(PING)
            while not (heard and isinstance(heard[-1], dict) and heard[-1].get("id") == "the ping behind"):
                heard.append(json.loads(await pipe.receive()))
        await pipe.close()
        return heard[:-1]


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    """One server for this file."""
    server = make_shop()
    with asyncio.Runner() as runner:
        runtime = runner.run(server.start(supervised=True))
        yield RunningServer(runner, runtime)
        runner.run(server.stop())


def is_request(value: Any) -> bool:
    """Return whether a message needs a response with its id."""
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0" or not value.get("method"):
        return False
    if "result" in value or "error" in value:
        return False
    good_id = isinstance(value.get("id"), int | str) and not isinstance(value.get("id"), bool)
    return good_id and isinstance(value["method"], str) and isinstance(value.get("params", {}), dict)


@given(value=messages, revision=st.sampled_from(["", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]))
@settings(max_examples=examples(20))
def test_each_request_gets_one_response_with_its_id(running: RunningServer, value: Any, revision: str) -> None:
    if isinstance(value, dict) and value.get("method") == "subscriptions/listen":
        return
    heard = [message for message in running.say(json.dumps(value).encode(), revision) if "method" not in message]
    if is_request(value):
        assert [answer["id"] for answer in heard] == [value["id"]]
        assert ("result" in heard[0]) != ("error" in heard[0])
    elif isinstance(value, dict):
        assert all("error" in answer and "id" not in answer for answer in heard)
        assert len(heard) <= 1


@given(body=st.one_of(bodies, encoded_messages(messages)), revision=st.sampled_from(["", "2025-03-26", "2025-11-25"]))
@settings(max_examples=examples(20))
def test_arbitrary_bytes_get_at_most_one_response(running: RunningServer, body: bytes, revision: str) -> None:
    answers = [
        message for message in running.say(body, revision) if isinstance(message, list) or "method" not in message
    ]
    assert len(answers) <= 1
    assert b"Internal error" not in json.dumps(answers).encode()
