"""Questions to the user on the terminal: approval of tools, and forms of servers. Runs in the main thread."""

import json
from collections.abc import Callable
from typing import Any

from millstream._cli.chat.screen import Screen
from millstream._cli.connect_options import value_of
from millstream._cli.tables import one_line, safe
from millstream._protocol.json_schema import is_array, is_object, members
from millstream.agent._person import Approval
from millstream.client._questions import ElicitAnswer, Question

_NO = "/no"
_KINDS = {"integer": int, "number": (int, float), "boolean": bool, "array": list, "string": str}


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
        self._screen.note(f"{server} asks: {safe(one_line(question.message))}")
        if question.url:
            self._screen.note(f"Open this address yourself: {safe(one_line(question.url))}")
            return self._read("Done? yes or no [n]: ").strip().lower().startswith("y")
        self._screen.note(f"{_NO} declines.")
        schema = question.requested_schema or {}
        required: Any = schema.get("required")
        required = required if is_array(required) else []
        answers: dict[str, Any] = {}
        for name, field in members(schema.get("properties")).items():
            accepted, value = self._field(name, members(field), required=name in required)
            if not accepted:
                return "decline"
            if value is not None:
                answers[name] = value
        return answers

    def _field(self, name: str, field: dict[str, Any], *, required: bool) -> tuple[bool, Any]:
        assert self._read is not None  # noqa: S101  checked in `fill_in`
        default = field.get("default")
        choices = choices_of(field)
        prompt = f"  {safe(one_line(str(field.get('title') or name)))}"
        prompt += f" ({', '.join(safe(each) for each in choices)})" if choices else ""
        prompt += f" [{safe(str(default))}]: " if default is not None else ": " if required else " (optional): "
        while True:
            text = self._read(prompt).strip()
            if text == _NO:
                return False, None
            if not text and (default is not None or not required):
                return True, default
            value = value_of(text, field)
            problem = problem_of(value, field, choices) if text else "Please answer."
            if not problem:
                return True, value
            self._screen.note(problem)


def choices_of(field: dict[str, Any]) -> list[str]:
    """Return the choices of a field, if any."""
    schema: Any = field.get("items") if field.get("type") == "array" else field
    if not is_object(schema):
        return []
    titled: Any = schema.get("oneOf") or schema.get("anyOf")
    listed: Any = schema.get("enum") or [members(each).get("const") for each in (titled if is_array(titled) else [])]
    return [str(each) for each in listed] if is_array(listed) else []


def problem_of(value: Any, field: dict[str, Any], choices: list[str]) -> str:
    """Return why a value is invalid, or an empty string. The server also validates it."""
    kind = str(field.get("type") or "string")
    if not isinstance(value, _KINDS.get(kind, object)) or (kind in ("integer", "number") and isinstance(value, bool)):  # type: ignore[arg-type]
        return f"That must be {'an' if kind[0] in 'aio' else 'a'} {kind}."
    several: list[Any] = value if is_array(value) else [value]
    if choices and not all(str(each) in choices for each in several):
        return f"Choose from: {', '.join(choices)}."
    return ""


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
