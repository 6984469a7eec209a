"""Queries that one worker sends to all workers of its server, such as for the figures of the dashboard."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from itertools import count
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._server.peers import Peers, StatsReply, StatsRequest
from millstream._tasks import SingleFlight, Tasks

PATIENCE = 0.4
"""Seconds to wait for the other workers."""
MAX_WORKERS = 256
"""Maximum workers to wait for."""
T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.decode


class WorkerQuestion(Struct, array_like=True, frozen=True):
    """What a worker asks the others."""

    about: str
    seconds: int = 60
    method: str = ""
    name: str = ""


Answer = Callable[[WorkerQuestion], Awaitable[bytes]]


class Answers(NamedTuple, Generic[T]):
    """The answers to a question."""

    found: list[T]
    """The workers' answers, starting with this worker's own."""
    silent: int
    """Number of other workers that didn't respond in time."""


class _PendingReplies(NamedTuple):
    expected: frozenset[str]
    """The other workers."""
    answers: dict[str, bytes]
    """Replies by worker."""
    done: asyncio.Event


class WorkerQueries:
    """Sends questions to the other workers, and answers theirs. Nothing is sent before a worker asks."""

    def __init__(self, peers: Peers, others: Callable[[], Collection[str]]) -> None:
        """Start answering.

        Args:
            peers: Sends messages between workers.
            others: Returns the names of the other workers.
        """
        self._peers = peers
        self._others = others
        self._answers: dict[str, Answer] = {}
        self._numbers = count(1)
        self._pending: dict[int, _PendingReplies] = {}
        """Pending requests by number."""
        self._asking = SingleFlight[tuple[list[bytes], int]]()
        self._replies = Tasks()
        peers.on(StatsRequest, lambda request, worker: self._replies.spawn(self._reply(request, worker)))
        peers.on(StatsReply, self._take_reply)

    def answer(self, about: str, answer: Answer) -> None:
        """Answer the questions about a subject.

        Args:
            about: The subject.
            answer: Returns this worker's answer, encoded.
        """
        self._answers[about] = answer

    async def ask(self, question: WorkerQuestion, kind: type[T]) -> Answers[T]:
        """Return the answers of all workers. Each has `PATIENCE` seconds. Concurrent callers get the same answers.

        Args:
            kind: Type of an answer.
        """
        key = encode(question).decode("latin-1")
        answers, silent = await self._asking.run(key, lambda: self._ask(question))
        found: list[T] = []
        for each in answers:
            try:
                found.append(_decode(each, type=kind))
            except msgspec.DecodeError:  # the other worker has another version, during a deployment
                silent += 1
        return Answers(found, silent)

    async def _ask(self, question: WorkerQuestion) -> tuple[list[bytes], int]:
        own, others = await self._answers[question.about](question), frozenset(self._others())
        if not others:
            return [own], 0
        number = next(self._numbers)
        pending = self._pending[number] = _PendingReplies(others, {}, asyncio.Event())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    if await self._peers.broadcast(StatsRequest(number, encode(question))):
                        await pending.done.wait()
        finally:
            del self._pending[number]
        return [own, *pending.answers.values()], len(others - pending.answers.keys())

    async def _reply(self, request: StatsRequest, worker: str) -> None:
        # The other worker may have another version or have stopped; it'll ask again.
        with suppress(LocalError, OSError, msgspec.DecodeError, KeyError):
            question = _decode(request.about, type=WorkerQuestion)
            await self._peers.send(worker, StatsReply(request.number, await self._answers[question.about](question)))

    def _take_reply(self, reply: StatsReply, worker: str) -> None:
        pending = self._pending.get(reply.number)
        if pending is None or len(pending.answers) >= MAX_WORKERS:
            return
        pending.answers[worker] = reply.answer
        if pending.expected <= pending.answers.keys():
            pending.done.set()
