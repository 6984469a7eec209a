"""One answer: requests to the model until it stops calling tools, or a limit is reached.

The conversation stays valid for the API: each call has a result, even if the user stops the answer. An error of the
model leaves the conversation unchanged.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from itertools import count
from typing import Literal

from millstream.agent._answer import Emit
from millstream.agent._content import Part, text_part
from millstream.agent._errors import ModelError
from millstream.agent._events import AnswerEnd, AssistantMessage, Delta, ModelRetry, RoundStart
from millstream.agent._limits import Limits
from millstream.agent._model import Message, Model, ModelRequest, Reply
from millstream.agent._tool_caller import CallOutcome, ToolCaller
from millstream.agent._tools import Toolbox, fit

_FIRST_WAIT = 1.0
"""Seconds before the second attempt, unless the API specifies them. Each further pause is twice as long."""
_STOPPED = CallOutcome("The user stopped this call. It may have taken effect, fully or partly.")
_REASONS: dict[str, Literal["length", "filtered"]] = {"length": "length", "content_filter": "filtered"}


class Turn:
    """One answer of an `Agent` to a message."""

    def __init__(
        self,
        model: Model,
        toolbox: Toolbox,
        caller: ToolCaller,
        limits: Limits,
        emit: Emit,
        *,
        system: Sequence[Message],
        messages: list[Message],
    ) -> None:
        self._model = model
        self._toolbox = toolbox
        self._caller = caller
        self._limits = limits
        self._emit = emit
        self._system = list(system)
        self._messages = messages

    async def run(self) -> None:
        """Run rounds until there's an answer.

        Raises:
            ModelError: the model gave no answer.
        """
        tokens = 0
        for number in range(1, self._limits.max_rounds + 1):
            await self._emit(RoundStart(number, len(self._messages), len(self._toolbox)))
            reply = await self._ask()
            tokens += reply.tokens
            if reply.text:
                await self._emit(AssistantMessage(reply.text))
            if not reply.tool_calls:
                self._say(reply.text)
                await self._emit(AnswerEnd(_REASONS.get(reply.stop, "done"), number, tokens))
                return
            await self._call_all(reply)
            if 0 < self._limits.max_tokens <= tokens:
                await self._stop("tokens", number, tokens)
                return
        await self._stop("rounds", self._limits.max_rounds, tokens)

    async def _stop(self, limit: Literal["rounds", "tokens"], rounds: int, tokens: int) -> None:
        self._say(f"(Stopped at the limit of {limit}.)")
        await self._emit(AnswerEnd(limit, rounds, tokens))

    def _say(self, text: str) -> None:
        """Add a message of the assistant, because many models require alternating turns."""
        self._messages.append({"role": "assistant", "content": text})

    async def _ask(self) -> Reply:
        """Return one reply, retrying if necessary."""
        request = ModelRequest(messages=[*self._system, *self._messages], tools=self._toolbox.specs)
        for attempt in count(1):
            chunks: list[str] = []
            try:
                return await self._listen(request, chunks)
            except ModelError as exc:
                pause = pause_before(exc, attempt, self._limits)
                if pause is None:
                    raise
                await self._emit(ModelRetry(round(pause, 3), attempt, str(exc), bool(chunks)))
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._say("".join(chunks) or "(The user stopped this answer.)")
                raise
        raise AssertionError("unreachable")

    async def _listen(self, request: ModelRequest, chunks: list[str]) -> Reply:
        async with contextlib.aclosing(self._model.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Reply):
                    return piece
                chunks.append(piece)
                await self._emit(Delta(piece))
        raise ModelError("The model ended its answer without a reply.")

    async def _call_all(self, reply: Reply) -> None:
        """Execute all calls of a round concurrently, then add their results to the conversation."""
        tasks: list[asyncio.Task[CallOutcome]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._caller.call(call)) for call in reply.tool_calls]
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        finally:
            outcomes = [
                task.result() if task.done() and not task.cancelled() and task.exception() is None else _STOPPED
                for task in tasks
            ]
            self._keep(reply, outcomes)

    def _keep(self, reply: Reply, outcomes: Sequence[CallOutcome]) -> None:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": fit(call.name), "arguments": each.arguments},
            }
            for call, each in zip(reply.tool_calls, outcomes, strict=True)
        ]
        self._messages.append({"role": "assistant", "content": reply.text or None, "tool_calls": calls})
        parts: list[Part] = []
        for call, each in zip(reply.tool_calls, outcomes, strict=True):
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": each.text})
            if each.parts:
                parts += [text_part(f"From {call.name}:"), *each.parts]
        if parts:
            self._messages.append({"role": "user", "content": parts})


def pause_before(error: ModelError, attempt: int, limits: Limits) -> float | None:
    """Return the seconds before the next attempt, or None if there won't be one."""
    if not error.temporary or attempt >= limits.max_attempts:
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= limits.longest_wait else None
    return min(_FIRST_WAIT * 2.0 ** (attempt - 1), limits.longest_wait) * random.uniform(0.75, 1)  # noqa: S311
