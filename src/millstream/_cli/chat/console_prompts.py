"""Questions to the user on the terminal: approval of tools, and forms of servers. Runs in the main thread."""

import json
from collections.abc import Callable

from millstream._cli.chat.screen import Screen
from millstream._cli.console import fill_in
from millstream._cli.tables import one_line, safe
from millstream.agent._person import Approval
from millstream.client._questions import ElicitAnswer, Question


class ConsolePrompts:
    """Asks the user. `read` reads a line with a prompt, like `input`."""

    def __init__(self, screen: Screen, read: Callable[[str], str] | None, *, yes: bool) -> None:
        self._screen = screen
        self._read = read
        self._yes = yes
        self._always: set[tuple[str, str]] = set()

    def approve(self, request: Approval) -> bool:
        """Ask for approval: yes, no, or always for this tool during the conversation."""
        if self._yes or (request.server, request.tool) in self._always:
            return True
        what = request.tool or "a server's question to the model"
        if self._read is None:
            self._screen.note(
                f"{what} wasn't allowed, because there's no terminal to ask on. Use --yes to allow everything."
            )
            return False
        self._screen.pause()
        for line in _describe(request):
            self._screen.note(line)
        while True:
            answer = self._read("Allow it? yes, no, or always [n]: ").strip().lower()
            if answer in ("a", "always"):
                self._always.add((request.server, request.tool))
                return True
            if answer in ("y", "yes", "n", "no", ""):
                allowed = answer.startswith("y")
                if allowed and request.read_only:
                    self._always.add((request.server, request.tool))
                return allowed

    def fill_in(self, server: str, question: Question) -> ElicitAnswer:
        """Ask for the values of a form; ``/no`` in any field declines."""
        if self._read is None:
            return "decline"
        self._screen.pause()
        return fill_in(server, question, self._read, self._screen.note)


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
