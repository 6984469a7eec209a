import asyncio
import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from bad_input.shop import make_shop
from patience import WAIT
from property_settings import examples
from wire import POST, Reply, Wire, ask_asgi, encode_headers, request

REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]


class SessionLife(RuleBasedStateMachine):
    """Sessions over plain ASGI, in an event loop that runs only during a step."""

    sessions = Bundle("sessions")
    waiting = Bundle("waiting")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = make_shop()
        self.server.tool(name="wait")(self._wait)
        self.wire: Wire = self.runner.run(self._start())
        self.ended: set[str] = set()
        self.running: dict[tuple[str, int], asyncio.Task[Reply]] = {}
        self.next_id = 1000

    async def _start(self) -> Wire:
        runtime = await self.server.start(supervised=True)
        return Wire(self.server, runtime, None)

    @staticmethod
    async def _wait() -> str:
        """Wait until canceled."""
        await asyncio.Event().wait()
        return "never"

    def post(self, headers: dict[str, str], message: dict[str, Any]) -> Reply:
        """Send a message of a session."""
        reply: Reply = self.runner.run(self.wire.post(message, headers))
        return reply

    def expect(self, headers: dict[str, str], reply: Reply, status: int = 200) -> bool:
        """Check for 404 if the session has ended, else for `status`. Return whether it's live."""
        gone = headers["mcp-session-id"] in self.ended
        assert reply.status == (404 if gone else status), reply
        return not gone

    @rule(target=sessions, revision=st.sampled_from(REVISIONS))
    def initialize(self, revision: str) -> dict[str, str]:
        """Create a session."""
        headers: dict[str, str] = self.runner.run(self.wire.initialize(revision))
        return headers

    @rule(headers=sessions)
    def initialize_again(self, headers: dict[str, str]) -> None:
        """Expect 400, because the session is already initialized, or unknown."""
        reply = self.post(headers, request("initialize", {"protocolVersion": "2025-11-25"}))
        assert reply.status in (400, 404)
        assert b"mcp-session-id" not in reply.headers

    @rule(headers=sessions)
    def ping(self, headers: dict[str, str]) -> None:
        """Expect an empty result."""
        reply = self.post(headers, request("ping"))
        if self.expect(headers, reply):
            assert reply.message["result"] == {}

    @rule(headers=sessions, a=st.integers(-9, 9), b=st.integers(-9, 9))
    def call(self, headers: dict[str, str], a: int, b: int) -> None:
        """Expect the sum, with structured content if the revision has it."""
        reply = self.post(headers, request("tools/call", {"name": "add", "arguments": {"a": a, "b": b}}))
        if self.expect(headers, reply):
            result = reply.message["result"]
            assert result["content"][0]["text"] == str(a + b)
            assert ("structuredContent" in result) == (headers["mcp-protocol-version"] >= "2025-06-18")

    @rule(target=waiting, headers=sessions)
    def begin(self, headers: dict[str, str]) -> tuple[str, int]:
        """Start a call that waits."""
        self.next_id += 1
        number = self.next_id
        key = (headers["mcp-session-id"], number)

        async def start() -> asyncio.Task[Reply]:
            body = json.dumps(request("tools/call", {"name": "wait"}, number)).encode()
            asking = ask_asgi(self.server, "POST", "/mcp", encode_headers(headers), body)
            task = asyncio.create_task(asking)
            for _ in range(20):
                await asyncio.sleep(0)
            return task

        task = self.runner.run(start())
        if task.done():
            self.expect(headers, task.result(), 404)
        else:
            self.running[key] = task
        return key

    @rule(headers=sessions, key=waiting)
    def begin_with_an_id_in_flight(self, headers: dict[str, str], key: tuple[str, int]) -> None:
        """Expect a reply, because each request has its own."""
        if headers["mcp-session-id"] != key[0] or key not in self.running:
            return
        self.expect(headers, self.post(headers, request("ping", id=key[1])), 200)
        assert not self.running[key].done()

    @rule(headers=sessions, key=waiting)
    def cancel(self, headers: dict[str, str], key: tuple[str, int]) -> None:
        """Cancel a call of this session. It gets no response, and other calls continue."""
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": key[1]}}
        own = headers["mcp-session-id"] == key[0]
        if self.expect(headers, self.post(headers, message), 202) and own and key in self.running:
            self._unanswered(self.running.pop(key))

    @rule(headers=consumes(sessions))
    def delete(self, headers: dict[str, str]) -> None:
        """End the session and its calls, once."""
        session = headers["mcp-session-id"]
        reply = self.runner.run(self.wire.ask("DELETE", "/mcp", headers))
        self.expect(headers, reply, 204)
        self.ended.add(session)
        for key in [key for key in self.running if key[0] == session]:
            self._unanswered(self.running.pop(key))
        assert self.post(headers, request("ping")).error == (404, -32001, request("ping")["id"])

    @rule(headers=sessions, level=st.sampled_from(["debug", "error"]))
    def set_level(self, headers: dict[str, str], level: str) -> None:
        """Write a record, and check that the session keeps its id."""
        self.expect(headers, self.post(headers, request("logging/setLevel", {"level": level})))

    @rule(headers=sessions, method=st.sampled_from(["resources/subscribe", "resources/unsubscribe"]))
    def subscribe(self, headers: dict[str, str], method: str) -> None:
        """Subscribe to a resource or unsubscribe."""
        self.expect(headers, self.post(headers, request(method, {"uri": "shop://sign"})))

    @rule()
    def script(self) -> None:
        """Send a request without a session."""
        assert self.post(POST, request("ping")).message["result"] == {}

    def _unanswered(self, task: asyncio.Task[Reply]) -> None:
        async def end() -> Reply:
            return await asyncio.wait_for(task, WAIT)

        reply = self.runner.run(end())
        assert reply.status == 200
        assert reply.body == b""

    @invariant()
    def only_what_waits_is_running(self) -> None:
        """Check that no call is lost or left running."""
        assert len(self.wire.runtime.dispatcher.calls) == len(self.running)
        assert all(not task.done() for task in self.running.values())

    def teardown(self) -> None:
        """End the waiting calls."""

        async def end() -> None:
            for task in self.running.values():
                task.cancel()
            await asyncio.gather(*self.running.values(), return_exceptions=True)
            await self.server.stop()

        self.runner.run(end())
        self.runner.close()


@pytest.mark.many
def test_sessions_follow_their_rules_in_any_order() -> None:
    run_state_machine_as_test(SessionLife, settings=settings(max_examples=examples(5), stateful_step_count=30))
