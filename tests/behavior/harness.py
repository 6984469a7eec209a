"""A raw JSON-RPC client for any revision over any transport.

A callback answers the server's questions in both eras. Each message from the server is validated against the official
schema of the revision.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from behavior.combinations import Combination
from behavior.judge import judge_of
from behavior.links import Link, Process, StreamableLink
from millstream import Server
from patience import WAIT

Json = dict[str, Any]
Answer = Callable[[str, Json], Json | None]
"""Method and params of a question -> result, or None for no answer. Raises `Refuse` to answer with an error."""

META = "io.modelcontextprotocol/"
EVERYTHING: Json = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {"listChanged": True},
}


def new_order_uri() -> str:
    """Return the URI of a live resource that no other test uses, because tests share servers."""
    return f"orders://{secrets.randbits(48)}"


class Refuse(Exception):
    """Raised to answer a question with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reply:
    """The response to a request, and the notifications before it."""

    def __init__(self, message: Json, status: int, notes: list[Json], rounds: int) -> None:
        self.message = message
        self.status = status
        """The HTTP status, or 0 without one."""
        self.notes = notes
        """Notifications between request and response."""
        self.rounds = rounds
        """Number of rounds of questions before the result (per-request era)."""

    @property
    def result(self) -> Json:
        """The result. Fails on an error."""
        assert "result" in self.message, self.message
        return self.message["result"]

    @property
    def error(self) -> Json:
        """The error. Fails on a result."""
        assert "error" in self.message, self.message
        return self.message["error"]

    @property
    def text(self) -> str:
        """The only text of a successful tool result."""
        assert not self.result.get("isError"), self.result
        return self._text()

    @property
    def failure(self) -> str:
        """The only text of a tool error."""
        assert self.result.get("isError") is True, self.result
        return self._text()

    def _text(self) -> str:
        assert [each["type"] for each in self.result["content"]] == ["text"], self.result
        return self.result["content"][0]["text"]

    def of(self, method: str) -> list[Json]:
        """Return the parameters of the notifications of a method."""
        return [note["params"] for note in self.notes if note["method"] == method]


class Client:
    """A client. It fails on messages that its revision doesn't define."""

    def __init__(self, combination: Combination, capabilities: Json, answer: Answer | None) -> None:
        self.combination = combination
        self.capabilities = capabilities
        self.answer = answer
        self.judge = judge_of(combination.revision)
        self.link: Link
        self.server: Server
        self.process: Process | None = None
        self.initialized: Json = {}
        self.notes: list[Json] = []
        self.stray: list[Any] = []
        """Batches and errors without an id."""
        self.questions: list[tuple[str, Json]] = []
        """Questions from the server, in order."""
        self._ids = itertools.count(1)
        self._waiting: dict[Any, tuple[str, asyncio.Future[tuple[Json, int]]]] = {}
        self._news = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._broken: AssertionError | None = None

    @property
    def streamable(self) -> StreamableLink:
        """The Streamable HTTP link."""
        assert isinstance(self.link, StreamableLink)
        return self.link

    # Messages from the server

    def take(self, message: Json | list[Json], request: Json | None, status: int) -> None:
        """Handle a message from the link."""
        try:
            if isinstance(message, list):
                for each in message:
                    self.judge.check_message(each, self._method(each, request))
                self.stray.append(message)
            else:
                self._take(message, request, status)
        except AssertionError as exc:
            self._broken = exc
            for _, future in self._waiting.values():
                if not future.done():
                    future.set_exception(AssertionError(str(exc)))
        self._news.set()

    def _method(self, message: Json, request: Json | None) -> str | None:
        if request is not None:
            return request["method"]
        known = self._waiting.get(message.get("id"))
        return known[0] if known is not None else "tools/call"

    def _take(self, message: Json, request: Json | None, status: int) -> None:
        self.judge.check_message(message, self._method(message, request))
        if "method" in message and "id" in message:
            assert self.combination.handshake, "servers of this revision send no requests"
            task = asyncio.get_running_loop().create_task(self._respond(message))
            self._answers.add(task)
        elif "method" in message:
            self.notes.append(message)
        elif message.get("id") in self._waiting:
            _, future = self._waiting[message["id"]]
            assert not future.done(), f"answered twice: {message}"
            future.set_result((message, status))
        elif "id" not in message and request is not None:
            self._waiting[request["id"]][1].set_result((message, status))
        else:
            self.stray.append(message)

    async def _respond(self, question: Json) -> None:
        try:
            result = self._answer(question["method"], question.get("params", {}))
        except Refuse as exc:
            body: Json = {"error": {"code": exc.code, "message": str(exc)}}
        else:
            if result is None:
                return
            body = {"result": result}
        await self.link.send({"jsonrpc": "2.0", "id": question["id"], **body})

    def _answer(self, method: str, params: Json) -> Json | None:
        self.questions.append((method, params))
        self._news.set()
        assert self.answer is not None, f"an unexpected question: {method} {params}"
        return self.answer(method, params)

    # Messages from the client

    def params(self, params: Mapping[str, Any] | None = None, meta: Mapping[str, Any] | None = None) -> Json:
        """Return parameters with the `_meta` that the revision requires."""
        full = {**(params or {})}
        own = {**(meta or {})}
        if not self.combination.handshake:
            own = {
                f"{META}protocolVersion": self.combination.revision,
                f"{META}clientCapabilities": self.capabilities,
                f"{META}clientInfo": {"name": "raw", "version": "1"},
                **own,
            }
        if own:
            full["_meta"] = own
        return full

    def next_id(self) -> int:
        """Return an unused request id."""
        if self.process is None:
            return next(self._ids)
        self.process.next_id += 1
        return self.process.next_id

    async def start(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        id: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a request and return its id. `finish` waits for the response."""
        request_id = self.next_id() if id is None else id
        message: Json = {"jsonrpc": "2.0", "id": request_id, "method": method}
        full = self.params(params, meta)
        if full:
            message["params"] = full
        self._waiting[request_id] = (method, asyncio.get_running_loop().create_future())
        await self.link.send(message, headers)
        return request_id

    async def finish(self, request_id: Any, *, since: int = 0, rounds: int = 0) -> Reply:
        """Wait for the response to a request."""
        async with asyncio.timeout(WAIT):
            message, status = await self._waiting[request_id][1]
        del self._waiting[request_id]
        self.fail_if_broken()
        return Reply(message, status, self.notes[since:], rounds)

    def fail_if_broken(self) -> None:
        """Raise the failure that an invalid message caused, if any."""
        if self._broken is not None:
            raise self._broken

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        rounds: bool = True,
    ) -> Reply:
        """Send a request and wait for its response, through all rounds of questions unless `rounds` is false."""
        since = len(self.notes)
        full = dict(params or {})
        for count in itertools.count():
            sent = await self.start(method, full, meta=meta, headers=headers)
            reply = await self.finish(sent, since=since, rounds=count)
            result = reply.message.get("result", {})
            if not rounds or result.get("resultType") != "input_required":
                return reply
            answers = self.answers(result.get("inputRequests", {}))
            if answers is None:
                return reply
            full = {**(params or {}), "inputResponses": answers}
            if "requestState" in result:
                full["requestState"] = result["requestState"]
        raise AssertionError("unreachable")

    def answers(self, questions: Mapping[str, Json]) -> Json | None:
        """Return the callback's answers to a round, or None if one is missing."""
        found: Json = {}
        for key, question in questions.items():
            try:
                answer = self._answer(question["method"], question.get("params", {}))
            except Refuse:
                return None
            if answer is None:
                return None
            found[key] = answer
        return found

    async def call(self, tool: str, /, meta: Mapping[str, Any] | None = None, **arguments: Any) -> Reply:
        """Send `tools/call`."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments}, meta=meta)

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification."""
        message: Json = {"jsonrpc": "2.0", "method": method}
        full = self.params(params)
        if full:
            message["params"] = full
        await self.link.send(message)

    async def pages(self, method: str, member: str) -> list[list[Json]]:
        """Return all pages of a list."""
        found: list[list[Json]] = []
        cursor: Json = {}
        while True:
            result = (await self.request(method, cursor)).result
            found.append(result[member])
            if "nextCursor" not in result:
                return found
            cursor = {"cursor": result["nextCursor"]}

    async def until(self, fact: Callable[[], Any]) -> Any:
        """Wait until a condition is true. It's checked after each message from the server."""
        async with asyncio.timeout(WAIT):
            while not (found := fact()):
                self.fail_if_broken()
                self._news.clear()
                await self._news.wait()
        self.fail_if_broken()
        return found

    async def wait_for_notification(self, method: str, *, since: int = 0) -> Json:
        """Wait for a notification and return its parameters."""

        def find() -> list[Json]:
            return [note for note in self.notes[since:] if note["method"] == method]

        note = (await self.until(find))[0]
        return note.get("params", {})

    # Handshake and subscriptions

    async def initialize(self, version: str = "") -> Reply:
        """Send `initialize` and the notification after it."""
        info = {"name": "raw", "version": "1"}
        reply = await self.request(
            "initialize",
            {
                "protocolVersion": version or self.combination.revision,
                "capabilities": self.capabilities,
                "clientInfo": info,
            },
        )
        await self.notify("notifications/initialized")
        return reply

    async def watch(self, *uris: str, kinds: tuple[str, ...] = ("tools", "prompts", "resources")) -> Any:
        """Subscribe to changes as the era defines. Return the id of the subscription, if there is one."""
        if self.combination.handshake:
            await self.link.open_standalone_stream()
            for uri in uris:
                await self.request("resources/subscribe", {"uri": uri})
            return None
        wanted: Json = {f"{kind}ListChanged": True for kind in kinds}
        if uris:
            wanted["resourceSubscriptions"] = list(uris)
        since = len(self.notes)
        sent = await self.start("subscriptions/listen", {"notifications": wanted})
        await self.wait_for_notification("notifications/subscriptions/acknowledged", since=since)
        return sent

    async def _leave_quietly(self) -> None:
        """Cancel running requests and read the remaining messages, so the process can serve another test."""
        for request_id in list(self._waiting):
            await self.notify("notifications/cancelled", {"requestId": request_id})
        await self.call("text")

    async def close(self) -> None:
        """Close the client."""
        for task in self._answers:
            if not task.done():
                task.cancel()
        failures = await asyncio.gather(*self._answers, return_exceptions=True)
        if self.process is not None and self._waiting:
            await self._leave_quietly()
        for _, future in self._waiting.values():
            future.cancel()
        await self.link.close()
        self.fail_if_broken()
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure
