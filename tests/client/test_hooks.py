import asyncio
import json
from collections.abc import Mapping
from typing import Any

from client.misbehaving_servers import GREETING, OFFER, ReceivedRequest, misbehaving, with_handshake
from millstream._protocol.errors import ProtocolError
from millstream._protocol.revisions import Revision
from millstream.client import Options
from millstream.client._conversation import Conversation
from millstream.client._requests import RawRequest
from patience import WAIT

ASKS_BACK: dict[str, Any] = {
    "resultType": "input_required",
    "inputRequests": {"where": {"method": "roots/list", "params": {}}},
    "requestState": "s1",
}


class Handler:
    """Answers each question with the id of its request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, int]] = []

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> dict[str, Any]:
        return {"roots": {}}

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        self.asked.append((method, params, request_id))
        if method == "roots/list":
            return {"request": request_id}
        raise ProtocolError(-7, "Not today", {"why": "closed"})


def conversation(url: str, handler: Handler) -> Conversation:
    options = Options()
    return Conversation(url, handler, options, revision=None, headers={}, timeout=WAIT, on_log=None, on_change=None)


async def test_questions_and_notifications_name_their_request() -> None:
    answers: list[Any] = []
    both = asyncio.Event()
    running: list[ReceivedRequest] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method != "tools/call":  # an answer of the client
            answers.append(asked.message)
            await asked.reply(b"", status="202 Accepted")
            if len(answers) == 4:
                both.set()
            return
        running.append(asked)
        number = asked.message["id"]
        await asked.stream()
        log = {"level": "info", "data": number}
        await asked.event(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": log}).encode())
        for method in ("roots/list", "odd/question"):
            question = {"jsonrpc": "2.0", "id": f"{method}{number}", "method": method, "params": {"n": number}}
            await asked.event(json.dumps(question).encode())
        await both.wait()
        await asked.event(asked.answer({"content": []}))
        await asked.end()

    handler = Handler()
    async with misbehaving(with_handshake(behave)) as server:
        talk = conversation(server.url, handler)
        told: list[tuple[str, int, int]] = []
        talk.requests.incoming.observer = lambda each: told.append(
            (each.method, json.loads(bytes(each.params))["data"], each.request_id)
        )
        try:
            await talk.start()
            ids = [next(talk.requests.ids) for _ in range(2)]
            calls = [
                talk.requests.ask(RawRequest(method="tools/call", params=b'{"name":"x"}', id=each)) for each in ids
            ]
            async with asyncio.timeout(WAIT):
                await asyncio.gather(*calls)
        finally:
            await talk.close()
    assert sorted(told) == [("notifications/message", each, each) for each in sorted(ids)]
    assert {(method, json.loads(params)["n"], number) for method, params, number in handler.asked} == {
        (method, each, each) for each in ids for method in ("roots/list", "odd/question")
    }
    assert {each["id"]: each.get("result") or each["error"] for each in answers} == {
        **{f"roots/list{each}": {"request": each} for each in ids},
        **{f"odd/question{each}": {"code": -7, "message": "Not today", "data": {"why": "closed"}} for each in ids},
    }
    assert GREETING["protocolVersion"] == "2025-11-25"


async def test_rounds_can_be_handled_by_the_caller() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result(OFFER if asked.method == "server/discover" else ASKS_BACK)

    handler = Handler()
    async with misbehaving(behave) as server:
        talk = conversation(server.url, handler)
        try:
            await talk.start()
            meta = b'"example.com/a":1'
            ask = RawRequest(method="tools/call", params=b'{"name":"x"}', rounds=False, meta=meta)
            assert json.loads(await talk.requests.ask(ask)) == ASKS_BACK
        finally:
            await talk.close()
    assert handler.asked == []
    assert server.requests[-1].message["params"] == {"name": "x", "_meta": {"example.com/a": 1}}
