"""A conversation on the terminal: answers, slash commands, and questions to the user.

Input and output are in the main thread, as are the questions: approvals of tools, and servers' forms. The agent and its
connections are in another thread, which sends output and questions through a queue. Servers can therefore send messages
while the user types, and lines can be edited as in a shell. Ctrl-C stops an answer. A second Ctrl-C, also at the
prompt, ends the program.
"""

import asyncio
import json
import queue
import shlex
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

from msgspec import Struct

from millstream._cli.chat.screen import Screen
from millstream._cli.signals import TerminationSignal, interrupt_reads
from millstream._cli.tables import ask, fill_in, one_line, print_rows, print_text, safe
from millstream._tasks import has_failed
from millstream.agent import Agent, AgentError, AgentRun
from millstream.agent._configuration import Approval, ConnectedServer
from millstream.agent._tools import Toolbox
from millstream.client import ClientError, ElicitAnswer, Question, ServerError


class ConsolePrompts(Struct, eq=False):
    """Asks the user. `read` reads a line with a prompt, like `input`."""

    screen: Screen
    read: Callable[[str], str] | None
    yes: bool
    always: set[tuple[str, str]] = set()
    """Servers and tools whose calls are allowed during the conversation."""

    def approve(self, request: Approval) -> bool:
        """Ask for approval: yes, no, or always for this tool during the conversation."""
        if self.yes or (request.server, request.tool) in self.always:
            return True
        what = request.tool or "a server's question to the model"
        if self.read is None:
            self.screen.note(
                f"{what} wasn't allowed, because there's no terminal to prompt on. Use --yes to allow everything."
            )
            return False
        self.screen.pause()
        for line in _describe(request):
            self.screen.note(line)
        while True:
            answer = self.read("Allow it? yes, no, or always [n]: ").strip().lower()
            if answer in ("a", "always"):
                self.always.add((request.server, request.tool))
                return True
            if answer in ("y", "yes", "n", "no", ""):
                allowed = answer.startswith("y")
                if allowed and request.read_only:
                    self.always.add((request.server, request.tool))
                return allowed

    def fill_in(self, server: str, question: Question) -> ElicitAnswer:
        """Ask for the values of a form; ``/no`` in any field declines."""
        if self.read is None:
            return "decline"
        self.screen.pause()
        return fill_in(server, question, self.read, self.screen.note)


def _describe(request: Approval) -> list[str]:
    if request.kind == "sampling":
        return [f"{request.server} wants to ask the model: {safe(one_line(request.text))}"]
    about = f" ({one_line(request.description)[:200]})" if request.description else ""
    upstream = f", upstream {one_line(request.upstream)}" if request.upstream else ""
    lines = [f"The model wants to run {one_line(request.tool)} of {one_line(request.server)}{upstream}{about}:"]
    if request.read_only:
        lines.append("  It's marked as read-only, so you're asked only once.")
    return lines + [
        f"  {one_line(name)}: {safe(one_line(json.dumps(value, ensure_ascii=False)))}"
        for name, value in request.arguments.items()
    ]


def read_line(prompt: str) -> str:
    """Read a line from the user. The prompt is only written to a terminal."""
    if not sys.stdout.isatty():
        return ask(prompt)
    with interrupt_reads():
        return input(prompt)


HELP = """\
/tools                       list the tools that the model can call
/prompt                      list the prompts
/prompt NAME [KEY=VALUE]...  send a prompt
/read                        list the resources
/read SERVER:URI             attach a resource, like @SERVER:URI in a message
/save FILE                   save the conversation as JSON Lines
/help                        show this help
/quit                        leave (or Ctrl-D)

Ctrl-C stops an answer."""

Rows = list[tuple[str, str]]


async def run_slash_command(agent: Agent, line: str) -> Rows | AgentRun:
    """Run a line that begins with a slash.

    Raises:
        AgentError: The command is unknown, or failed.
        ClientError: A server isn't responding.
    """
    name, _, rest = line.partition(" ")
    try:
        words = shlex.split(rest)
    except ValueError as exc:
        raise AgentError(f"The command can't be parsed: {exc}.") from exc
    match name:
        case "/tools":
            return [(tool.name, one_line(tool.description.description or "")) for tool in await agent.tools()]
        case "/prompt":
            return await _prompt(agent, words)
        case "/read":
            return await _read(agent, words)
        case "/save":
            if len(words) != 1:
                raise AgentError("Specify a file: /save FILE")
            return [(words[0], f"{agent.transcript.save(words[0]):,} lines")]
        case "/help":
            return [(line, "") for line in HELP.splitlines()]
        case _:
            raise AgentError(f"There is no command {name}. Type /help for a list.")


async def _prompt(agent: Agent, words: list[str]) -> Rows | AgentRun:
    if words:
        pairs = [word.partition("=") for word in words[1:]]
        wrong = next((word for word, sign, _ in pairs if not sign), None)
        if wrong is not None:
            raise AgentError(f"Prompt arguments must be KEY=VALUE, not {wrong!r}.")
        return agent.prompt(words[0], {name: value for name, _, value in pairs})
    rows: Rows = []
    for server in agent.servers:
        for prompt in await _list(server, server.client.prompts(), rows):
            needs = " ".join(f"{each.name}=" if each.required else f"[{each.name}=]" for each in prompt.arguments)
            rows.append((f"{server.name}:{prompt.name} {needs}".strip(), one_line(prompt.description or "")))
    return rows


async def _read(agent: Agent, words: list[str]) -> Rows:
    if words:
        server, uri = _place(agent, words[0])
        parts = await agent.read(server, uri)
        return [(f"@{server}:{uri}", f"{sum(len(str(part)) for part in parts):,} characters for the model")]
    rows: Rows = []
    for each in agent.servers:
        resources = await _list(each, each.client.resources(), rows)
        rows += [(f"{each.name}:{r.uri}", one_line(r.description or r.name)) for r in resources]
        templates = await _list(each, each.client.templates(), rows)
        rows += [(f"{each.name}:{t.uri_template}", one_line(t.description or t.name)) for t in templates]
    return rows


def _place(agent: Agent, word: str) -> tuple[str, str]:
    """Split ``server:uri``. The server is optional if there's only one."""
    server, _, uri = word.removeprefix("@").partition(":")
    names = [each.name for each in agent.servers]
    if server in names:
        return server, uri
    if len(names) == 1:
        return names[0], word
    raise AgentError(f"Specify the server: SERVER:URI. The servers are: {', '.join(names)}.")


async def _list(server: ConnectedServer, wanted: Awaitable[list[Any]], rows: Rows) -> list[Any]:
    """Return a list. If the server rejects the request, return an empty list, and add a row with the reason."""
    try:
        return await wanted
    except ServerError as exc:
        rows.append((server.name, one_line(str(exc))))
        return []


def show_rows(rows: Rows) -> None:
    """Print the result of a slash command."""
    if any(about for _, about in rows):
        print_rows(rows, ["NAME", "DESCRIPTION"])
    else:
        print_text("\n".join(name for name, _ in rows) or "There are none.")


T = TypeVar("T")
_TICK = 0.5
"""Seconds between checks for Ctrl-C on Windows, where waits can't be interrupted."""
_END = 10.0
"""Seconds for connections to close."""


class AnswerStopped(Exception):
    """The user stopped an answer."""


class ChatSession:
    """A conversation: ``with ChatSession(screen) as chat: chat.open(agent)``, then `answer` or `converse`."""

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
            answer: Future[Any] = Future()

            def settle() -> None:
                if not answer.set_running_or_notify_cancel():
                    return
                try:
                    answer.set_result(ask(*what))
                except EOFError:
                    answer.set_result(False)
                except Exception as exc:
                    answer.set_exception(exc)

            self._jobs.put(settle)
            return await asyncio.wrap_future(answer)

        return ask_on_main_thread

    # Main thread

    def open(self, agent: Agent) -> Toolbox:
        """Connect and return the tools.

        Raises:
            ClientError, AgentError: The connection failed.
            AnswerStopped: The user pressed Ctrl-C.
        """

        async def connect() -> Toolbox:
            await agent.__aenter__()
            try:
                tools = await agent.tools()
            except BaseException:
                await agent.__aexit__()
                raise
            self._agent = agent
            return tools

        return self._wait(connect())

    def answer(self, run: AgentRun) -> None:
        """Show one answer while it arrives.

        Raises:
            ClientError, AgentError: There was no answer.
            AnswerStopped: The user stopped it.
        """
        try:
            self._wait(self._show(run))
        finally:
            self._screen.pause()

    def converse(self, agent: Agent) -> None:
        """Answer line by line until the user leaves."""
        interrupted = False
        while True:
            try:
                line = read_line("> ").strip()
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
                self._respond(agent, line)

    def _respond(self, agent: Agent, line: str) -> None:
        try:
            if not line.startswith("/"):
                self.answer(agent.say(line))
            elif isinstance(found := self._wait(run_slash_command(agent, line)), list):
                show_rows(found)
            else:
                self.answer(found)
        except (ClientError, AgentError) as exc:
            self._screen.fail(str(exc))
        except AnswerStopped:
            self._screen.note("Stopped.")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the agent's thread. Show its output and ask its questions in this one."""
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(has_failed)  # otherwise, asyncio logs errors of stopped answers
            tasks[0].add_done_callback(lambda _: self._jobs.put(None))

        self._loop.call_soon_threadsafe(begin)
        stopping: KeyboardInterrupt | None = None
        while True:
            try:
                job = self._jobs.get(timeout=_TICK)
                if job is None:
                    if isinstance(stopping, TerminationSignal):
                        raise stopping
                    if stopping is not None or tasks[0].cancelled():  # even if the answer is complete
                        raise AnswerStopped
                    return tasks[0].result()
                if stopping is None:  # otherwise, a full pipe would block again
                    job()
            except queue.Empty:
                continue
            except KeyboardInterrupt as exc:
                if stopping is not None:
                    raise
                stopping = exc
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108  it may not exist yet

    # Agent's thread

    def _run(self) -> None:
        with self._runner:  # cancels leftover tasks, whose finalization at exit can crash Python
            self._loop.run_forever()

    async def _show(self, run: AgentRun) -> None:
        async with aclosing(run) as events:
            async for event in events:
                self._jobs.put(partial(self._screen.show, event))
