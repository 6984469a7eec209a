"""Output of an answer: plain text, or one JSON object per line. See `terminal` for terminals.

``--debug``: numbered steps of the configuration, the connection, and the conversation.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from millstream._cli.connect_options import version_of
from millstream._cli.tables import brief, one_line, safe, safe_json
from millstream._override import override
from millstream.agent._agent import Agent
from millstream.agent._events import (
    AnswerEnd,
    AssistantMessage,
    Event,
    ModelRetry,
    RoundStart,
    SamplingResult,
    TextDelta,
    ToolEnd,
    ToolProgress,
    ToolStart,
    UserMessage,
)
from millstream.agent._language_model import LanguageModel
from millstream.agent._servers import ServerConfig
from millstream.agent._tools import Toolbox

ENDINGS = {
    "rounds": "Stopped after {rounds} rounds of tool calls (--max-rounds). Say “go on” to continue.",
    "tokens": "Stopped after {tokens:,} tokens (--max-tokens). Say “go on” to continue.",
    "length": "The model ran out of tokens.",
    "filtered": "The model's content filter ended the answer.",
}
"""Reason -> message for the user. `done` has none."""


class Screen(Protocol):
    """Shows events. All methods are called from one thread."""

    def show(self, event: Event) -> None:
        """Show an event."""

    def note(self, text: str) -> None:
        """Show a line that isn't part of an answer."""

    def fail(self, text: str) -> None:
        """Show the error of an answer, in one or two sentences."""

    def pause(self) -> None:
        """End the current line, before a question or after an answer."""


class PlainScreen:
    """Answers on standard output while they arrive, and everything else on standard error, one line each."""

    def __init__(self) -> None:
        self._open = False

    def show(self, event: Event) -> None:
        """See `Screen`."""
        if isinstance(event, TextDelta):
            self._open = False  # if Ctrl-C interrupts this write, don't end the line
            sys.stdout.write(safe(event.text) if sys.stdout.isatty() else event.text)
            sys.stdout.flush()
            self._open = True
        elif isinstance(event, AssistantMessage):
            self.pause()
        else:
            if isinstance(event, ModelRetry) and event.discard_text:
                self.pause()
            line = line_of(event)
            if line:
                self.note(line)

    def note(self, text: str) -> None:
        """See `Screen`."""
        sys.stderr.write((safe(text) if sys.stderr.isatty() else text) + "\n")
        sys.stderr.flush()

    def fail(self, text: str) -> None:
        """See `Screen`."""
        self.pause()
        self.note(f"Error: {text}")

    def pause(self) -> None:
        """See `Screen`."""
        if self._open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._open = False


class JsonScreen(PlainScreen):
    """All events as JSON lines on standard output."""

    @override
    def show(self, event: Event) -> None:
        """See `Screen`."""
        sys.stdout.write(safe_json(msgspec.json.encode(event).decode()) + "\n")
        sys.stdout.flush()

    @override
    def fail(self, text: str) -> None:
        """See `Screen`."""
        sys.stdout.write(safe_json(json.dumps({"type": "failed", "error": text}, ensure_ascii=False)) + "\n")
        sys.stdout.flush()
        self.note(f"Error: {text}")


def line_of(event: Event) -> str:
    """Return an event as one line, or an empty string if it isn't shown."""
    if isinstance(event, ToolStart):
        return f"call\t{event.server}\t{event.tool}\t{json.dumps(event.arguments, ensure_ascii=False)}"
    if isinstance(event, ToolProgress):
        return f"progress\t{progress_of(event)}"
    if isinstance(event, ToolEnd):
        return f"{event.outcome}\t{event.server}\t{event.tool}\t{brief(event.text)}"
    if isinstance(event, SamplingResult):
        return f"sampled\t{event.server}\t{brief(event.text)}"
    if isinstance(event, ModelRetry):
        return waiting_of(event)
    if isinstance(event, AnswerEnd):
        return ending_of(event)
    return ""


def progress_of(event: ToolProgress) -> str:
    """Return the progress of a tool."""
    share = f"{event.value:g}/{event.total:g}" if event.total else f"{event.value:g}"
    return one_line(f"{share} {event.message or ''}")


def waiting_of(event: ModelRetry) -> str:
    """Return the reason and length of a pause."""
    warning = "Ignore the text above. " if event.discard_text else ""
    return f"{warning}{event.reason} Trying again in {event.seconds:.3g} s (attempt {event.attempt + 1})."


def ending_of(event: AnswerEnd) -> str:
    """Return why the answer ended early, or an empty string."""
    return ENDINGS.get(event.reason, "").format(rounds=event.rounds, tokens=event.tokens)


def call_of(tool: str, arguments: Mapping[str, Any]) -> str:
    """Return a call in the form ``tool(name=value)``."""
    return (
        f"{tool}({', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in arguments.items())})"
    )


class Steps:
    """A screen that also prints each step to standard error."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._number = 0
        self.note, self.fail, self.pause = screen.note, screen.fail, screen.pause
        handler = logging.Handler()
        handler.emit = lambda record: self.tell(record.getMessage())  # type: ignore[method-assign]
        messages = logging.getLogger("millstream.client.messages")
        messages.addHandler(handler)
        messages.setLevel(logging.DEBUG)
        messages.propagate = False

    def tell(self, what: str) -> None:
        """Print the next step."""
        self.pause()
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


def steps_of_configuration(model: LanguageModel, places: Sequence[ServerConfig]) -> Iterator[str]:
    """Yield the configuration without keys, before anything is sent."""
    yield f"configuration: model {model.name} at {model.url}"
    for place in places:
        key = "with an Authorization header" if sends_key(place) else "without a key"
        yield f"server: {place.target if isinstance(place.target, str) else place.name}, {key}"


def sends_key(place: ServerConfig) -> bool:
    """Return whether requests to the server contain a key."""
    return "authorization" in {name.lower() for name in place.headers}


def steps_of_connection(agent: Agent, places: Sequence[ServerConfig], tools: Toolbox) -> Iterator[str]:
    """Yield the results of the handshakes."""
    for server, place in zip(agent.servers, places, strict=True):
        client = server.client
        offers = ", ".join(client.capabilities) or "nothing"
        about = f"{client.server.name} {version_of(client)}".strip()
        yield f"connected to {server.name} by {client.transport}{' (Auth OK)' if sends_key(place) else ''}"
        yield f"session with {about}: revision {client.revision}, offers {offers}"
    yield f"tools: {', '.join(tool.name for tool in tools) or 'none'}"
