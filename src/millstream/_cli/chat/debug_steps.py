"""``--debug``: numbered steps of the configuration, the connection, and the conversation."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from millstream._cli.chat.screen import Screen, waiting_of
from millstream._cli.connect_options import version_of
from millstream._cli.tables import brief, safe
from millstream.agent._agent import Agent
from millstream.agent._events import (
    AnswerEnd,
    AssistantMessage,
    Event,
    ModelRetry,
    RoundStart,
    SamplingResult,
    ToolEnd,
    ToolStart,
    UserMessage,
)
from millstream.agent._language_model import LanguageModel
from millstream.agent._servers import ServerAt
from millstream.agent._tools import Toolbox


class Steps:
    """A screen that also prints each step to standard error."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._number = 0

    def tell(self, what: str) -> None:
        """Print the next step."""
        self._screen.pause()
        self._number += 1
        sys.stderr.write(f"[debug {self._number:>2}] {safe(brief(what))}\n")
        sys.stderr.flush()

    def tell_all(self, steps: Iterable[str]) -> None:
        """Print several steps."""
        for each in steps:
            self.tell(each)

    def show(self, event: Event) -> None:
        """See `Screen`."""
        describe = _STEPS.get(type(event))
        if describe is not None:
            self.tell(describe(event))
        if not isinstance(event, ToolStart | ToolEnd | SamplingResult | ModelRetry):  # the step has the same content
            self._screen.show(event)

    def note(self, text: str) -> None:
        """See `Screen`."""
        self._screen.note(text)

    def fail(self, text: str) -> None:
        """See `Screen`."""
        self._screen.fail(text)

    def pause(self) -> None:
        """See `Screen`."""
        self._screen.pause()


_STEPS: dict[type[Any], Callable[[Any], str]] = {
    UserMessage: lambda e: f"question: {e.text}" + (f" (with {', '.join(e.context)})" if e.context else ""),
    RoundStart: lambda e: f"asking the model: round {e.round}, messages: {e.messages}, tools: {e.tools}",
    ToolStart: lambda e: f"the model calls {e.server}: {e.tool} {json.dumps(e.arguments, ensure_ascii=False)}",
    ToolEnd: lambda e: f"result of {e.tool} ({e.outcome}): {e.text}",
    AssistantMessage: lambda e: f"the model answers: {len(e.text)} characters",
    SamplingResult: lambda e: f"{e.server} used the model: {e.text}",
    ModelRetry: waiting_of,
    AnswerEnd: lambda e: f"finished: {e.reason}, rounds: {e.rounds}, tokens: {e.tokens:,}",
}


def steps_of_configuration(model: LanguageModel, places: Sequence[ServerAt]) -> Iterator[str]:
    """Yield the configuration without keys, before anything is sent."""
    yield f"configuration: model {model.name} at {model.url}"
    for place in places:
        key = "with an Authorization header" if sends_key(place) else "without a key"
        yield f"server: {place.target if isinstance(place.target, str) else place.name}, {key}"


def sends_key(place: ServerAt) -> bool:
    """Return whether requests to the server contain a key."""
    return "authorization" in {name.lower() for name in place.headers}


def steps_of_connection(agent: Agent, places: Sequence[ServerAt], tools: Toolbox) -> Iterator[str]:
    """Yield the results of the handshakes."""
    for server, place in zip(agent.servers, places, strict=True):
        client = server.client
        offers = ", ".join(client.capabilities) or "nothing"
        about = f"{client.server.name} {version_of(client)}".strip()
        yield f"connected to {server.name} by {client.transport}{' (Auth OK)' if sends_key(place) else ''}"
        yield f"session with {about}: revision {client.revision}, offers {offers}"
    yield f"tools: {', '.join(tool.name for tool in tools) or 'none'}"
