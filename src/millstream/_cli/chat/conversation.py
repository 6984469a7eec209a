"""A conversation: user and screen in the main thread, the agent and its connections in another thread.

Servers can therefore send messages while the user types, and lines can be edited as in a shell. The agent's thread
sends output and questions through a queue. Ctrl-C stops an answer. A second Ctrl-C, also at the prompt, ends the
program.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

from millstream._cli.chat.screen import Screen
from millstream._cli.chat.slash import Rows, Slash
from millstream._cli.signals import TerminationSignal
from millstream.agent._agent import Agent
from millstream.agent._answer import Answer
from millstream.agent._errors import AgentError
from millstream.agent._tools import Toolbox
from millstream.client._errors import ClientError

T = TypeVar("T")
_TICK = 0.5
"""Seconds between checks for Ctrl-C on Windows, where waits can't be interrupted."""
_END = 10.0
"""Seconds for connections to close."""


class AnswerStopped(Exception):
    """The user stopped an answer."""


class ChatSession:
    """A conversation: ``with ChatSession(screen) as chat: chat.open(make_agent)``, then `answer` or `converse`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="millstream-chat", daemon=True)
        self._agent: Agent | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        agent, self._agent = self._agent, None
        try:
            if agent is not None:
                asyncio.run_coroutine_threadsafe(agent.__aexit__(), self._loop).result(_END)
        except (TimeoutError, ClientError, KeyboardInterrupt):
            pass  # the daemon thread doesn't block the exit
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_END)

    def in_main(self, ask: Callable[..., T]) -> Callable[..., Awaitable[T]]:
        """Return an async function for the agent's thread that asks the user in the main thread."""

        async def ask_on_main_thread(*what: Any) -> T:
            answer: Future[T] = Future()
            self._jobs.put(partial(_settle, answer, ask, what))
            return await asyncio.wrap_future(answer)

        return ask_on_main_thread

    # Main thread

    def open(self, make: Callable[[], Agent]) -> tuple[Agent, Toolbox]:
        """Connect.

        Raises:
            ClientError, AgentError: the connection failed.
            AnswerStopped: the user pressed Ctrl-C.
        """

        async def open_agent() -> tuple[Agent, Toolbox]:
            agent = make()
            await agent.__aenter__()
            try:
                tools = await agent.tools()
            except BaseException:
                await agent.__aexit__()
                raise
            self._agent = agent
            return agent, tools

        return self._wait(open_agent())

    def answer(self, text: str) -> None:
        """Show one answer while it arrives.

        Raises:
            ClientError, AgentError: there was no answer.
            AnswerStopped: the user stopped it.
        """
        assert self._agent is not None  # noqa: S101  set in `open`
        agent = self._agent
        try:
            self._wait(self._show(lambda: agent.say(text)))
        finally:
            self._screen.pause()

    def converse(self, read: Callable[[str], str], show_rows: Callable[[Rows], None]) -> None:
        """Answer line by line until the user leaves."""
        interrupted = False
        while True:
            try:
                line = read("> ").strip()
            except EOFError:
                return
            except TerminationSignal:
                raise
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self._screen.note("\nPress Ctrl-C again, or type /quit, to leave.")
                continue
            interrupted = False
            if line in ("/quit", "/exit"):
                return
            if line:
                self._respond(line, show_rows)

    def _respond(self, line: str, show_rows: Callable[[Rows], None]) -> None:
        try:
            if line.startswith("/"):
                self._command(line, show_rows)
            else:
                self.answer(line)
        except (ClientError, AgentError) as exc:
            self._screen.fail(str(exc))
        except AnswerStopped:
            self._screen.note("Stopped.")

    def _command(self, line: str, show_rows: Callable[[Rows], None]) -> None:
        assert self._agent is not None  # noqa: S101  set in `open`
        found = self._wait(Slash(self._agent).run(line))
        if isinstance(found, list):
            show_rows(found)
            return
        try:
            self._wait(self._show(lambda: found))
        finally:
            self._screen.pause()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the agent's thread. Show its output and ask its questions in this one."""
        stoppable = _Stoppable()
        future = asyncio.run_coroutine_threadsafe(stoppable.run(work), self._loop)
        future.add_done_callback(lambda _: self._jobs.put(None))
        stopping: KeyboardInterrupt | None = None
        while True:
            try:
                job = self._jobs.get(timeout=_TICK)
                if job is None:
                    if isinstance(stopping, TerminationSignal):
                        raise stopping
                    if stopping is not None or future.cancelled():  # even if the answer is complete
                        raise AnswerStopped
                    return future.result()
                if stopping is None:  # otherwise, a full pipe would block again
                    job()
            except queue.Empty:
                continue
            except KeyboardInterrupt as exc:
                if stopping is not None:
                    raise
                stopping = exc
                self._loop.call_soon_threadsafe(stoppable.stop)

    # Agent's thread

    def _run(self) -> None:
        with self._runner:  # cancels leftover tasks, whose finalization at exit can crash Python
            self._loop.run_forever()

    async def _show(self, begin: Callable[[], Answer]) -> None:
        async with aclosing(begin()) as events:
            async for event in events:
                self._jobs.put(partial(self._screen.show, event))


class _Stoppable:
    """Work in the agent's thread that can be stopped, even before it starts."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        if self._stopped and self._task is not None:
            self._task.cancel()
        return await work

    def stop(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()


def _settle(answer: "Future[Any]", ask: Callable[..., Any], what: tuple[Any, ...]) -> None:
    """Ask the user, and pass the answer or error to the waiting task."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(ask(*what))
    except EOFError:
        answer.set_result(False)
    except Exception as exc:
        answer.set_exception(exc)
