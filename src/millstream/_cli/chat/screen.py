"""Output of an answer: plain text, or one JSON object per line. See `terminal` for terminals."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from millstream._cli.tables import brief, one_line, safe, safe_json
from millstream._override import override
from millstream.agent._events import (
    AnswerEnd,
    AssistantMessage,
    Delta,
    Event,
    ModelRetry,
    SamplingResult,
    ToolEnd,
    ToolProgress,
    ToolStart,
)

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
        if isinstance(event, Delta):
            self._open = False  # if Ctrl-C interrupts this write, don't end the line
            sys.stdout.write(safe(event.text) if sys.stdout.isatty() else event.text)
            sys.stdout.flush()
            self._open = True
        elif isinstance(event, AssistantMessage):
            self.pause()
        else:
            if isinstance(event, ModelRetry) and event.void:
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
    warning = "Ignore the text above. " if event.void else ""
    return f"{warning}{event.reason} Trying again in {event.seconds:.3g} s (attempt {event.attempt + 1})."


def ending_of(event: AnswerEnd) -> str:
    """Return why the answer ended early, or an empty string."""
    return ENDINGS.get(event.reason, "").format(rounds=event.rounds, tokens=event.tokens)


def call_of(tool: str, arguments: Mapping[str, Any]) -> str:
    """Return a call in the form ``tool(name=value)``."""
    return (
        f"{tool}({', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in arguments.items())})"
    )
