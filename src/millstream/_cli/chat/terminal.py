"""Output of an answer on a terminal: Markdown and tool calls, block by block.

Only the unfinished block is redrawn, so the screen doesn't flicker, and finished text can be copied.
"""

import re
import time

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments
from rich.text import Text

from millstream._cli.chat.screen import call_of, ending_of, progress_of, waiting_of
from millstream._cli.tables import one_line, safe
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
)

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_LONG, _PAUSE = 2000, 0.1
"""Length from which a block's redraws are throttled, and the minimum seconds between them."""
_WIDEST = 100
"""Maximum columns of text, for legibility."""
_MARKS, _MAX_MARKS = re.compile(r"[*_~`\[\]<]"), 4000
"""Characters that may be Markdown, and their maximum in a block: parsing takes time in proportion to their square."""


class TerminalScreen:
    """A screen for people on a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._block = ""
        self._live: Live | None = None
        self._drawn = 0.0
        """Time of the last redraw. Redraws take longer as the block grows."""

    def show(self, event: Event) -> None:
        """See `Screen`."""
        if isinstance(event, TextDelta):
            self._write(safe(event.text))
        elif isinstance(event, AssistantMessage):
            self._flush()
        elif isinstance(event, RoundStart):
            self._draw(Text("…", style="dim"))
        elif isinstance(event, ToolProgress):
            self._draw(self._line(f"  {progress_of(event)}", "dim"))
        else:
            self._show_line(event)

    def _show_line(self, event: Event) -> None:
        if isinstance(event, ToolStart):
            self._print(f"→ {event.server}: {call_of(event.tool, event.arguments)}", "cyan")
        elif isinstance(event, ToolEnd):
            mark = {"done": "←", "refused": "✗"}.get(event.outcome, "!")
            self._print(f"{mark} {event.text}", "dim" if event.outcome == "done" else "red")
        elif isinstance(event, SamplingResult):
            self._print(f"↺ {event.server} used the model: {event.text}", "dim")
        elif isinstance(event, ModelRetry):
            self._flush()
            self.note(waiting_of(event))
        elif isinstance(event, AnswerEnd) and ending_of(event):
            self.note(ending_of(event))

    def note(self, text: str) -> None:
        """See `Screen`."""
        self._flush()
        self._console.print(Text(safe(text), style="yellow"))

    def fail(self, text: str) -> None:
        """See `Screen`."""
        self._flush()
        self._console.print(Text.assemble(("Error: ", "bold red"), safe(text)))

    def pause(self) -> None:
        """See `Screen`."""
        self._flush()

    # Drawing

    def _print(self, text: str, style: str) -> None:
        self._flush()
        self._console.print(self._line(text, style))

    def _line(self, text: str, style: str) -> Text:
        line = Text(safe(one_line(text)), style=style, no_wrap=True, overflow="ellipsis")
        line.truncate(self._console.width, overflow="ellipsis")
        return line

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

    def _flush(self) -> None:
        self._stop()
        if self._block.strip():
            self._put(self._block)
        self._block = ""

    def _put(self, block: str) -> None:
        """Print a block and one empty line, regardless of the spacing of its elements."""
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


def _empty(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()


def end_of_block(text: str) -> int:
    """Return the end of the first Markdown block, a blank line outside of a code block, or 0 if it's incomplete."""
    at = 0
    while (blank := text.find("\n\n", at)) >= 0:
        if len(_FENCE.findall(text, 0, blank + 1)) % 2 == 0:
            return blank + 2
        at = blank + 1
    return 0
