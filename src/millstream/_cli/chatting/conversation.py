"""The conversation: the person and the screen in the main thread, the agent and its connections in another.

So a server's messages are heard while the person types, and a line can be edited as in any shell. What the agent's
thread wants shown or asked travels through one queue. Ctrl-C stops an answer; a second one, or one at the prompt that
is repeated, ends the program.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

from millstream._cli.chatting.screen import Screen
from millstream._cli.chatting.slash import Rows, Slash
from millstream._cli.signals import Terminated
from millstream.agent._agent import Agent
from millstream.agent._answer import Answer
from millstream.agent._errors import AgentError
from millstream.agent._tools import Toolbox
from millstream.client._errors import ClientError

T = TypeVar("T")
_TICK = 0.5
"""Seconds after which the main thread looks for Ctrl-C, where a wait can't be interrupted (Windows)."""
_END = 10.0
"""Seconds that connections have to end."""


class Stopped(Exception):
    """The person stopped an answer."""


class Conversation:
    """``with Conversation(screen) as conversation: conversation.open(make_agent)``, and then `answer` or `converse`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="millstream-chat", daemon=True)
        self._task: asyncio.Task[Any] | None = None
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
            pass  # the thread is a daemon, and nobody waits for more
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_END)
            if not self._thread.is_alive():
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
                self._loop.close()

    def in_main(self, ask: Callable[..., T]) -> Callable[..., Awaitable[T]]:
        """A question that the agent's thread awaits, and that the person is asked in the main thread."""

        async def asked(*what: Any) -> T:
            answer: Future[T] = Future()
            self._jobs.put(partial(_settle, answer, ask, what))
            return await asyncio.wrap_future(answer)

        return asked

    # The main thread

    def open(self, make: Callable[[], Agent]) -> tuple[Agent, Toolbox]:
        """Connect.

        Raises:
            ClientError, AgentError: it isn't possible.
            Stopped: the person didn't want to wait.
        """

        async def connected() -> tuple[Agent, Toolbox]:
            agent = make()
            await agent.__aenter__()
            try:
                tools = await agent.tools()
            except BaseException:
                await agent.__aexit__()
                raise
            self._agent = agent
            return agent, tools

        return self._wait(connected())

    def answer(self, text: str) -> None:
        """One answer, shown as it comes.

        Raises:
            ClientError, AgentError: there's none.
            Stopped: the person stopped it.
        """
        assert self._agent is not None  # noqa: S101  `open` comes first
        agent = self._agent
        try:
            self._wait(self._show(lambda: agent.say(text)))
        finally:
            self._screen.pause()

    def converse(self, read: Callable[[str], str], show_rows: Callable[[Rows], None]) -> None:
        """Answer line by line until the person leaves."""
        interrupted = False
        while True:
            try:
                line = read("> ").strip()
            except EOFError:
                return
            except Terminated:
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
        except Stopped:
            self._screen.note("Stopped.")

    def _command(self, line: str, show_rows: Callable[[Rows], None]) -> None:
        assert self._agent is not None  # noqa: S101  `open` comes first
        found = self._wait(Slash(self._agent).run(line))
        if isinstance(found, list):
            show_rows(found)
            return
        try:
            self._wait(self._show(lambda: found))
        finally:
            self._screen.pause()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work in the other thread; meanwhile this one shows and asks what comes of it."""
        future = asyncio.run_coroutine_threadsafe(self._owned(work), self._loop)
        future.add_done_callback(lambda _: self._jobs.put(None))
        stopping: KeyboardInterrupt | None = None
        while True:
            try:
                job = self._jobs.get(timeout=_TICK)
                if job is None:
                    if isinstance(stopping, Terminated):
                        raise stopping
                    if stopping is not None:  # also where all was said, and only not yet shown
                        raise Stopped
                    return future.result()
                if stopping is None:  # or a pipe that nobody reads would hold this up once more
                    job()
            except queue.Empty:
                continue
            except KeyboardInterrupt as exc:
                if stopping is not None:
                    raise
                stopping = exc
                self._loop.call_soon_threadsafe(self._stop)

    # The agent's thread

    async def _owned(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            raise Stopped from None
        finally:
            self._task = None

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _show(self, begin: Callable[[], Answer]) -> None:
        async with aclosing(begin()) as events:
            async for event in events:
                self._jobs.put(partial(self._screen.show, event))


def _settle(answer: "Future[Any]", ask: Callable[..., Any], what: tuple[Any, ...]) -> None:
    """Ask; whoever waits gets the answer, or hears that there is none."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(ask(*what))
    except EOFError:
        answer.set_result(False)
    except Exception as exc:
        answer.set_exception(exc)
