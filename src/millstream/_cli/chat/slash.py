"""Slash commands in a conversation: ``/tools``, ``/prompt``, ``/read``, ``/save``, ``/help``, ``/quit``."""

import shlex
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from millstream._cli.tables import one_line
from millstream.agent._agent import Agent
from millstream.agent._answer import Answer
from millstream.agent._errors import AgentError
from millstream.agent._servers import ConnectedServer
from millstream.client._errors import Failure

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


class Slash:
    """The commands of one conversation. Each returns rows to print, or an answer."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def run(self, line: str) -> Rows | Answer:
        """Run a line that begins with a slash.

        Raises:
            AgentError: the command is unknown, or failed.
            ClientError: a server isn't responding.
        """
        name, _, rest = line.partition(" ")
        command = self._COMMANDS.get(name)
        if command is None:
            raise AgentError(f"There is no command {name}. Type /help for a list.")
        try:
            return await command(self, shlex.split(rest))
        except ValueError as exc:
            raise AgentError(f"The command can't be parsed: {exc}.") from exc

    async def _tools(self, words: list[str]) -> Rows:
        return [(tool.name, one_line(tool.description.description or "")) for tool in await self._agent.tools()]

    async def _prompt(self, words: list[str]) -> Rows | Answer:
        if words:
            pairs = [word.partition("=") for word in words[1:]]
            wrong = next((word for word, sign, _ in pairs if not sign), None)
            if wrong is not None:
                raise AgentError(f"Prompt arguments must be KEY=VALUE, not {wrong!r}.")
            return self._agent.prompt(words[0], {name: value for name, _, value in pairs})
        rows: Rows = []
        for server in self._agent.servers:
            for prompt in await _list(server, server.client.prompts(), rows):
                needs = " ".join(f"{each.name}=" if each.required else f"[{each.name}=]" for each in prompt.arguments)
                rows.append((f"{server.name}:{prompt.name} {needs}".strip(), one_line(prompt.description or "")))
        return rows

    async def _read(self, words: list[str]) -> Rows:
        if words:
            server, uri = self._place(words[0])
            parts = await self._agent.read(server, uri)
            return [(f"@{server}:{uri}", f"{sum(len(str(part)) for part in parts):,} characters for the model")]
        rows: Rows = []
        for each in self._agent.servers:
            resources = await _list(each, each.client.resources(), rows)
            rows += [(f"{each.name}:{r.uri}", one_line(r.description or r.name)) for r in resources]
            templates = await _list(each, each.client.templates(), rows)
            rows += [(f"{each.name}:{t.uri_template}", one_line(t.description or t.name)) for t in templates]
        return rows

    def _place(self, word: str) -> tuple[str, str]:
        """Split ``server:uri``. The server is optional if there's only one."""
        server, _, uri = word.removeprefix("@").partition(":")
        names = [each.name for each in self._agent.servers]
        if server in names:
            return server, uri
        if len(names) == 1:
            return names[0], word
        raise AgentError(f"Name the server: SERVER:URI. The servers are: {', '.join(names)}.")

    async def _save(self, words: list[str]) -> Rows:
        if len(words) != 1:
            raise AgentError("Name the file: /save FILE")
        return [(words[0], f"{self._agent.transcript.save(words[0]):,} lines")]

    async def _help(self, words: list[str]) -> Rows:
        return [(line, "") for line in HELP.splitlines()]

    _COMMANDS: ClassVar[dict[str, Callable[["Slash", list[str]], Awaitable[Rows | Answer]]]] = {
        "/tools": _tools,
        "/prompt": _prompt,
        "/read": _read,
        "/save": _save,
        "/help": _help,
    }


async def _list(server: ConnectedServer, wanted: Awaitable[list[Any]], rows: Rows) -> list[Any]:
    """Return a list. If the server refuses it, return nothing, and add a row with the reason."""
    try:
        return await wanted
    except Failure as exc:
        rows.append((server.name, one_line(str(exc))))
        return []
