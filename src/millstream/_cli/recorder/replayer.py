"""Responses from a recording.

A request matches by method and parameters. The first unused match is the response. Handshakes match by method only,
because clients identify themselves differently. Responses get the ids and progress tokens of the current request.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from millstream._cli.recorder.standard_input import lines, write_stdout
from millstream._cli.recorder.transcript import Exchange, is_answer, params_of, plain_params, progress_token
from millstream._protocol.errors import INTERNAL_ERROR, METHOD_NOT_FOUND
from millstream._protocol.json_schema import is_array, is_object

_BY_METHOD = frozenset({"initialize", "ping", "server/discover", "logging/setLevel"})


class Replayer:
    """A server on standard input and output that responds from a recording."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges
        self._answers: dict[str, asyncio.Future[None]] = {}
        """Recorded server requests that wait for the client's response, by id."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until standard input ends."""
        async for line in lines():
            try:
                message: Any = json.loads(line)
            except ValueError:
                continue
            for each in message if is_array(message) else [message]:
                if is_object(each):
                    self._take(each)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, message: Mapping[str, Any]) -> None:
        if is_answer(message):
            waiting = self._answers.pop(json.dumps(message.get("id")), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif "method" in message and "id" in message:
            task = asyncio.create_task(self._play(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _play(self, request: Mapping[str, Any]) -> None:
        for reply in self.replies(request):
            question = "method" in reply and "id" in reply
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if question:
                self._answers[json.dumps(reply["id"])] = waiting
            await write_stdout(json.dumps(reply, ensure_ascii=False).encode() + b"\n")
            if question:
                await waiting

    def replies(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the recorded messages for a request, including the response."""
        found = self.find(request)
        if found is None:
            known = any(each.request.get("method") == request.get("method") for each in self._exchanges)
            what = "this call of" if known else "a call of"
            error = {
                "code": INTERNAL_ERROR if known else METHOD_NOT_FOUND,
                "message": f"The recording has no response to {what} {request.get('method')}",
            }
            return [{"jsonrpc": "2.0", "id": request["id"], "error": error}]
        found.used = True
        return [self._as_now(each, found.request, request) for each in found.replies]

    def find(self, request: Mapping[str, Any]) -> Exchange | None:
        """Return the recorded request that matches, or None."""
        method = request.get("method")
        same = [each for each in self._exchanges if each.request.get("method") == method and each.answer is not None]
        if method not in _BY_METHOD:
            params = plain_params(request)
            same = [each for each in same if plain_params(each.request) == params]
        return next((each for each in same if not each.used), same[-1] if same else None)

    @staticmethod
    def _as_now(reply: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
        if is_answer(reply) and reply.get("id") == then.get("id"):
            return {**reply, "id": now["id"]}
        params, token = params_of(reply), progress_token(then)
        if token is not None and params.get("progressToken") == token:
            return {**reply, "params": {**params, "progressToken": progress_token(now)}}
        return reply
