"""Questions of commands on the terminal, on standard error because standard output is for results."""

import json
import sys
from collections.abc import Callable
from getpass import getpass
from typing import Any

from millstream._cli.signals import interrupt_reads
from millstream._cli.tables import one_line, safe
from millstream._protocol.json_schema import is_array, members
from millstream.client._questions import ElicitAnswer, Question

_NO = "/no"
_KINDS: dict[str, tuple[Any, str]] = {
    "string": (str, "text"),
    "integer": (int, "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": (bool, "yes or no"),
    "array": (list, "a list"),
}


def confirm(question: str) -> bool:
    """Ask until the answer is yes or no. An empty answer means no.

    Raises:
        EOFError: the input has ended.
    """
    while True:
        answer = ask(f"{question} [y/N]: ").strip().lower()
        if answer in ("y", "yes"):
            return True
        if answer in ("", "n", "no"):
            return False
        print("Type y or n.", file=sys.stderr)


def ask(prompt: str) -> str:
    """Read one line.

    Raises:
        EOFError: the input has ended.
    """
    sys.stderr.write(prompt)
    sys.stderr.flush()
    with interrupt_reads():
        line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def ask_password() -> str:
    """Ask for a password twice, without echo, until both match.

    Raises:
        EOFError: the input has ended.
    """
    while True:
        with interrupt_reads():
            password = getpass("Password: ", stream=sys.stderr)
            if password and password == getpass("Repeat for confirmation: ", stream=sys.stderr):
                return password
        print("The two passwords differ." if password else "The password is empty.", file=sys.stderr)


def fill_in(server: str, question: Question, read: Callable[[str], str], note: Callable[[str], object]) -> ElicitAnswer:
    """Ask for the values of a server's form, each until it's valid. ``/no`` in any field declines.

    Args:
        server: what to call the server.
        question: the form, or the URL to open.
        read: reads a line with a prompt, like `input`.
        note: prints a line.
    """
    note(f"{server} asks: {safe(one_line(question.message))}")
    if question.url:
        note(f"Open this address yourself: {safe(one_line(question.url))}")
        return read("Done? yes or no [n]: ").strip().lower().startswith("y")
    schema = question.requested_schema or {}
    fields = members(schema.get("properties"))
    required: Any = schema.get("required")
    if fields:
        note(f"{_NO} declines. An empty line skips optional fields.")
    answers: dict[str, Any] = {}
    for name, given in fields.items():
        field, choices = members(given), choices_of(given)
        default = field.get("default")
        prompt = f"  {safe(one_line(str(field.get('title') or name)))}"
        prompt += f" ({safe(one_line(', '.join(choices)))})" if choices else ""
        prompt += ": " if default is None else f" [{safe(one_line(str(default)))}]: "
        while True:
            text = read(prompt).strip()
            if text == _NO:
                return "decline"
            if not text and default is not None:
                answers[name] = default
                break
            if not text and not (is_array(required) and name in required):
                break
            value = value_of(text, field)
            problem = wrong_answer(value, field) if text else "Please answer."
            if not problem:
                answers[name] = value
                break
            note(problem)
    return answers


def choices_of(field: Any) -> list[str]:
    """Return the choices of a field, if any."""
    schema = members(field)
    schema = members(schema.get("items")) if schema.get("type") == "array" else schema
    titled: Any = schema.get("oneOf") or schema.get("anyOf")
    options = [members(each) for each in titled] if is_array(titled) else []
    listed: Any = schema.get("enum") or [each["const"] for each in options if "const" in each]
    return [str(each) for each in listed] if is_array(listed) else []


def wrong_answer(value: Any, field: dict[str, Any]) -> str:
    """Return why a value is invalid for a field of a form, or an empty string. The server also validates it."""
    kind = str(field.get("type"))
    numeric = kind in ("integer", "number")
    types, words = _KINDS.get(kind, (object, ""))
    if not isinstance(value, types) or (numeric and isinstance(value, bool)):
        return f"This must be {words}."
    low, high = field.get("minimum"), field.get("maximum")
    if numeric and isinstance(low, int | float) and value < low:
        return f"This must be at least {low:g}."
    if numeric and isinstance(high, int | float) and value > high:
        return f"This must be at most {high:g}."
    shortest, longest = field.get("minLength"), field.get("maxLength")
    if isinstance(value, str) and isinstance(shortest, int) and len(value) < shortest:
        return f"This requires at least {shortest} characters."
    if isinstance(value, str) and isinstance(longest, int) and len(value) > longest:
        return f"This allows at most {longest} characters."
    choices = choices_of(field)
    if choices and not all(str(each) in choices for each in (value if is_array(value) else [value])):
        return f"Use one of: {safe(one_line(', '.join(choices)))}."
    return ""


def value_of(text: str, schema: Any) -> Any:
    """Convert a command-line argument to the type in a schema."""
    kind = members(schema).get("type")
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if kind == "boolean" and text.lower() in ("yes", "y", "no", "n"):
            return text.lower().startswith("y")
        return [part.strip() for part in text.split(",")] if kind == "array" else text
