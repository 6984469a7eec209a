"""How an answer looks: plain text in a pipe, one JSON object a line for programs; `terminal.py` is for people."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from millstream._cli.tables import brief, one_line, safe, safe_json
from millstream.agent._events import (
    Answered,
    Calling,
    Delta,
    Event,
    Finished,
    Progressed,
    Returned,
    Sampled,
    Waiting,
)

ENDINGS = {
    "rounds": "Stopped after {rounds} rounds of tool calls (--max-rounds). Say “go on” to continue.",
    "tokens": "Stopped after {tokens:,} tokens (--max-tokens). Say “go on” to continue.",
    "length": "The model ran out of tokens in the middle.",
    "filtered": "The model's content filter ended the answer.",
}
"""Reason -> what to tell the person; `done` needs no words."""


class Screen(Protocol):
    """Shows what happens. All methods are called by one thread."""

    def show(self, event: Event) -> None:
        """Something happened."""

    def note(self, text: str) -> None:
        """A line for the person that's no part of an answer."""

    def fail(self, text: str) -> None:
        """An answer failed; the text is one or two sentences."""

    def pause(self) -> None:
        """The person is asked something now, or the answer is over: leave the line."""


class PlainScreen:
    """Answers on standard output as they come; everything else on standard error, a line each."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open = False

    def show(self, event: Event) -> None:
        """See `Screen`."""
        if isinstance(event, Delta):
            self._open = False  # if Ctrl-C ends the wait for a full pipe, no end of this line goes into it
            sys.stdout.write(safe(event.text) if sys.stdout.isatty() else event.text)
            sys.stdout.flush()
            self._open = True
        elif isinstance(event, Answered):
            self.pause()
        else:
            if isinstance(event, Waiting) and event.void:
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
    """Every event as a line of JSON on standard output."""

    __slots__ = ()

    def show(self, event: Event) -> None:
        """See `Screen`."""
        sys.stdout.write(safe_json(msgspec.json.encode(event).decode()) + "\n")
        sys.stdout.flush()

    def fail(self, text: str) -> None:
        """See `Screen`."""
        sys.stdout.write(safe_json(json.dumps({"type": "failed", "error": text}, ensure_ascii=False)) + "\n")
        sys.stdout.flush()
        self.note(f"Error: {text}")


def line_of(event: Event) -> str:
    """An event as one line; empty if it needs none."""
    if isinstance(event, Calling):
        return f"call\t{event.server}\t{event.tool}\t{json.dumps(event.arguments, ensure_ascii=False)}"
    if isinstance(event, Progressed):
        return f"progress\t{progress_of(event)}"
    if isinstance(event, Returned):
        return f"{event.outcome}\t{event.server}\t{event.tool}\t{brief(event.text)}"
    if isinstance(event, Sampled):
        return f"sampled\t{event.server}\t{brief(event.text)}"
    if isinstance(event, Waiting):
        return waiting_of(event)
    if isinstance(event, Finished):
        return ending_of(event)
    return ""


def progress_of(event: Progressed) -> str:
    """How far a tool is."""
    share = f"{event.value:g}/{event.total:g}" if event.total else f"{event.value:g}"
    return one_line(f"{share} {event.message or ''}")


def waiting_of(event: Waiting) -> str:
    """Why the person waits, and how long."""
    again = "What was said above doesn't count. " if event.void else ""
    return f"{again}{event.reason} Trying again in {event.seconds:.3g} s (attempt {event.attempt + 1})."


def ending_of(event: Finished) -> str:
    """Why the answer is over, if it isn't done."""
    return ENDINGS.get(event.reason, "").format(rounds=event.rounds, tokens=event.tokens)


def call_of(tool: str, arguments: Mapping[str, Any]) -> str:
    """A call as people write one."""
    return (
        f"{tool}({', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in arguments.items())})"
    )
