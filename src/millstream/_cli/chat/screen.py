"""Output of an answer: plain text, one JSON object per line, Markdown on a terminal, or the steps of ``--debug``."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments
from rich.text import Text

from millstream._cli.connect_options import version_of
from millstream._cli.tables import brief, describe_progress, one_line, print_text, safe, safe_json
from millstream._override import override
from millstream.agent import (
    Agent,
    AnswerEnd,
    AssistantMessage,
    Event,
    LanguageModel,
    ModelRetry,
    ResultsShortened,
    RoundStart,
    SamplingResult,
    ServerConfig,
    TextDelta,
    ToolEnd,
    ToolProgress,
    ToolStart,
    UserMessage,
)
from millstream.agent._tools import Toolbox

ENDINGS = {
    "rounds": "Stopped after {rounds} rounds of tool calls (--max-rounds). Say “go on” to continue.",
    "tokens": "Stopped after {tokens:,} tokens (--max-tokens). Say “go on” to continue.",
    "length": "The model ran out of tokens.",
    "filtered": "The model's content filter ended the answer.",
}
"""Reason -> message for the user. `done` has none."""


class PlainScreen:
    """Shows answers on standard output as they arrive, and everything else on standard error, one line each.

    All methods are called from one thread.
    """

    def __init__(self) -> None:
        self._open = False

    def show(self, event: Event) -> None:
        """Show an event."""
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
        """Show a line that isn't part of an answer."""
        print_text(text, sys.stderr)

    def fail(self, text: str) -> None:
        """Show the error that ended an answer, in one or two sentences."""
        self.pause()
        self.note(f"Error: {text}")

    def pause(self) -> None:
        """End the current line, before a question or after an answer."""
        if self._open:
            print_text("")
            self._open = False


class JsonScreen(PlainScreen):
    """All events as JSON lines on standard output."""

    @override
    def show(self, event: Event) -> None:
        """See `PlainScreen`."""
        print_text(safe_json(msgspec.json.encode(event).decode()))

    @override
    def fail(self, text: str) -> None:
        """See `PlainScreen`."""
        print_text(safe_json(json.dumps({"type": "failed", "error": text}, ensure_ascii=False)))
        self.note(f"Error: {text}")


def line_of(event: Event) -> str:
    """Return an event as one line, or an empty string if it isn't shown."""
    match event:
        case ToolStart():
            return f"call\t{event.server}\t{event.tool}\t{json.dumps(event.arguments, ensure_ascii=False)}"
        case ToolProgress():
            return f"progress\t{progress_of(event)}"
        case ToolEnd():
            return f"{event.outcome}\t{event.server}\t{event.tool}\t{brief(event.text)}"
        case SamplingResult():
            return f"sampled\t{event.server}\t{brief(event.text)}"
        case ModelRetry():
            return waiting_of(event)
        case ResultsShortened():
            return shortening_of(event)
        case AnswerEnd():
            return ending_of(event)
        case _:
            return ""


def progress_of(event: ToolProgress) -> str:
    """Return a tool's progress as one line of text."""
    return describe_progress(event.value, event.total, event.message)


def shortening_of(event: ResultsShortened) -> str:
    """Return what was shortened, and why."""
    window = f", which reads {event.window:,} tokens" if event.window else ""
    results = "One result was" if event.results == 1 else f"{event.results} results were"
    return f"The conversation was too long for the model{window}. {results} shortened in it."


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


class DebugScreen:
    """A screen for ``--debug``, which also prints each step to standard error."""

    def __init__(self, screen: "PlainScreen | TerminalScreen") -> None:
        self._screen = screen
        self._number = 0
        self.note, self.fail, self.pause = screen.note, screen.fail, screen.pause
        handler = logging.Handler()
        handler.emit = lambda record: self.print_line(record.getMessage())  # type: ignore[method-assign]
        messages = logging.getLogger("millstream.client.messages")
        messages.addHandler(handler)
        messages.setLevel(logging.DEBUG)
        messages.propagate = False

    def print_line(self, what: str) -> None:
        """Print the next step."""
        self.pause()
        self._number += 1
        print_text(f"[debug {self._number:>2}] {safe(brief(what))}", sys.stderr)

    def tell_all(self, steps: Iterable[str]) -> None:
        """Print several steps."""
        for each in steps:
            self.print_line(each)

    def show(self, event: Event) -> None:
        """See `PlainScreen`."""
        describe = _STEPS.get(type(event))
        if describe is not None:
            self.print_line(describe(event))
        if not isinstance(
            event, ToolStart | ToolEnd | SamplingResult | ModelRetry | ResultsShortened
        ):  # the step has the same content
            self._screen.show(event)


_STEPS: dict[type[Any], Callable[[Any], str]] = {
    UserMessage: lambda e: f"question: {e.text}" + (f" (with {', '.join(e.context)})" if e.context else ""),
    RoundStart: lambda e: f"asking the model: round {e.round}, messages: {e.messages}, tools: {e.tools}",
    ToolStart: lambda e: f"the model calls {e.server}: {e.tool} {json.dumps(e.arguments, ensure_ascii=False)}",
    ToolEnd: lambda e: f"result of {e.tool} ({e.outcome}): {e.text}",
    AssistantMessage: lambda e: f"the model answers: {len(e.text)} characters",
    SamplingResult: lambda e: f"{e.server} used the model: {e.text}",
    ModelRetry: waiting_of,
    ResultsShortened: shortening_of,
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


_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_LONG, _PAUSE = 2000, 0.1
"""Length from which a block's redraws are throttled, and the minimum seconds between them."""
_WIDEST = 100
"""Maximum columns of text, for legibility."""
_MARKS, _MAX_MARKS = re.compile(r"[*_~`\[\]<]"), 4000
"""Characters that may be Markdown, and their maximum in a block, because parsing takes quadratic time."""


class TerminalScreen:
    """A screen for people on a terminal: Markdown and tool calls, block by block.

    Only the unfinished block is redrawn, so the screen doesn't flicker, and finished text can be copied.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._block = ""
        self._live: Live | None = None
        self._drawn = 0.0
        """Time of the last redraw. Redraws take longer as the block grows."""

    def show(self, event: Event) -> None:
        """See `PlainScreen`."""
        match event:
            case TextDelta():
                self._write(safe(event.text))
            case AssistantMessage():
                self.pause()
            case RoundStart():
                self._draw(Text("…", style="dim"))
            case ToolProgress():
                self._draw(self._line(f"  {progress_of(event)}", "dim"))
            case ToolStart():
                self._print(f"→ {event.server}: {call_of(event.tool, event.arguments)}", "cyan")
            case ToolEnd():
                mark = {"done": "←", "refused": "✗"}.get(event.outcome, "!")
                self._print(f"{mark} {event.text}", "dim" if event.outcome == "done" else "red")
            case SamplingResult():
                self._print(f"↺ {event.server} used the model: {event.text}", "dim")
            case ModelRetry() | ResultsShortened():
                self.note(line_of(event))
            case AnswerEnd() if ending_of(event):
                self.note(ending_of(event))
            case _:
                pass

    def note(self, text: str) -> None:
        """See `PlainScreen`."""
        self.pause()
        self._console.print(Text(safe(text), style="yellow"))

    def fail(self, text: str) -> None:
        """See `PlainScreen`."""
        self.pause()
        self._console.print(Text.assemble(("Error: ", "bold red"), safe(text)))

    def pause(self) -> None:
        """See `PlainScreen`."""
        self._stop()
        if self._block.strip():
            self._put(self._block)
        self._block = ""

    # Drawing

    def _print(self, text: str, style: str) -> None:
        self.pause()
        self._console.print(self._line(text, style))

    def _line(self, text: str, style: str) -> Text:
        return Text(safe(one_line(text)), style=style, no_wrap=True, overflow="ellipsis")

    def _write(self, text: str) -> None:
        """Add text to the answer. Finished blocks stay unchanged."""
        self._block += text
        while (end := end_of_block(self._block)) > 0:
            done, self._block = self._block[:end], self._block[end:]
            self._stop()
            self._put(done)
        now = time.monotonic()
        due = len(self._block) < _LONG or now - self._drawn >= _PAUSE
        if self._block.strip() and due:
            self._draw(self._render(self._block))
            self._drawn = now

    def _put(self, block: str) -> None:
        """Print a block and one empty line, regardless of its elements' spacing."""
        if block.strip():
            self._console.print(self._render(block))
            self._console.print()

    def _render(self, block: str) -> Segments:
        # With hyperlinks, the model's text could hide the real addresses.
        text = block.strip("\n")
        plain = len(_MARKS.findall(text)) > _MAX_MARKS
        content = Text(text) if plain else Markdown(text, hyperlinks=False)
        options = self._console.options.update(width=min(self._console.width, _WIDEST))
        lines = self._console.render_lines(content, options, pad=False)
        while lines and _empty(lines[0]):
            del lines[0]
        while lines and _empty(lines[-1]):
            del lines[-1]
        return Segments(segment for line in lines for segment in (*line, Segment.line()))

    def _draw(self, content: Text | Segments) -> None:
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="ellipsis")
            self._live.start()
        self._live.update(content, refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


Screen = PlainScreen | TerminalScreen | DebugScreen


def _empty(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()


def end_of_block(text: str) -> int:
    """Return the position after the first complete Markdown block, or 0 if there's none.

    A blank line outside a code block ends a block.
    """
    at = 0
    while (blank := text.find("\n\n", at)) >= 0:
        if len(_FENCE.findall(text, 0, blank + 1)) % 2 == 0:
            return blank + 2
        at = blank + 1
    return 0
