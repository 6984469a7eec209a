"""Output and questions of commands on the terminal.

Results go to standard output: tables on a terminal, tab-separated lines in a pipe, or JSON. Questions therefore go to
standard error.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from getpass import getpass
from textwrap import fill, shorten
from typing import Any, TextIO

import msgspec

from millstream._cli.signals import interrupt_reads
from millstream._protocol.json_schema import is_array, members
from millstream._telemetry.logs import is_colored
from millstream._text import INVISIBLE, escape, fit
from millstream.client._questions import ElicitAnswer, Question
from millstream.client._results import describe_mismatch

_NARROWEST = 20
"""Minimum width of a last column."""
_LONGEST = 2000
"""Maximum characters of a line."""


def safe(text: str) -> str:
    """Replace characters that control a terminal, or that it doesn't show."""
    return INVISIBLE.sub("\ufffd", text)


def print_json(value: Any) -> None:
    """Print a value as JSON, indented on a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    # Escape characters outside of the encoding, as JSON allows.
    plain = not str(sys.stdout.encoding).lower().startswith("utf")
    text = json.dumps(msgspec.to_builtins(value), indent=indent, ensure_ascii=plain)
    sys.stdout.write(color_json(safe_json(text)) + "\n" if indent else text + "\n")
    sys.stdout.flush()  # a program may wait for this line


def report(text: str, result: Mapping[str, object], *, json: bool) -> None:
    """Print a result as JSON, or a message on standard error."""
    if json:
        print_json(result)
    else:
        print(text, file=sys.stderr)


def safe_json(text: str) -> str:
    """Return JSON for standard output. On a terminal, escape characters that control it, or that it doesn't show."""
    return escape(text) if sys.stdout.isatty() else text


def print_text(text: str, to: TextIO | None = None) -> None:
    """Print a server's text, on a terminal without control characters, and on standard error wrapped between words."""
    out = to or sys.stdout
    if out.isatty():
        text = safe(text)
        if out is sys.stderr:
            text = fit("", text, shutil.get_terminal_size().columns)
    out.write(f"{text}\n")
    out.flush()


def print_block(text: str, to: TextIO | None = None) -> None:
    """Print a server's text. On a terminal, indent and color JSON."""
    out = to or sys.stdout
    if out.isatty() and text[:1] in "{[":
        try:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
        else:
            out.write(color_json(safe_json(text) if out is sys.stdout else safe(text)) + "\n")
            out.flush()
            return
    print_text(text, to)


_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>\btrue\b|\bfalse\b|\bnull\b|-?\d[\d.eE+-]*)'
)


def color_json(text: str) -> str:
    """Color the keys, strings, and other values of JSON, if standard output is a terminal without NO_COLOR."""

    def colorize(found: re.Match[str]) -> str:
        return style(found[0], "cyan" if found["key"] else "green" if found["text"] else "yellow")

    return _TOKEN.sub(colorize, text)


def print_rows(rows: Sequence[Sequence[str]], header: Sequence[str], *, paint: Callable[[str], str] = str) -> None:
    """Print a table that fits the terminal, or tab-separated lines in a pipe.

    On a terminal, a cell wider than a third of the line is wrapped, and the last cell then begins a new line. The last
    cell is cut after a whole word.

    Args:
        rows: The cells of each row.
        header: The title of each column.
        paint: Colors the cells of a row except for the last.
    """
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(one_line(cell) for cell in row) + "\n")
        return
    width = shutil.get_terminal_size().columns
    table = [[safe(one_line(cell)) for cell in row] for row in (header, *rows)]
    sizes = [
        max(len(row[column]) for row in table if len(row[column]) <= width // 3 or row is table[0])
        for column in range(len(header))
    ]
    begin = sum(sizes[:-1]) + 2 * (len(sizes) - 1)
    for number, row in enumerate(table):
        cells = [cell.ljust(size) for cell, size in zip(row[:-1], sizes[:-1], strict=True)]
        line, indent = "  ".join(cells), begin
        if len(line) > begin - 2:
            indent = sizes[0] + 4
            line = fill(line.rstrip(), width, subsequent_indent=" " * indent, break_on_hyphens=False)
            line += f"\n{' ' * (indent - 2)}" if row[-1] else ""
        room = max(width - indent, _NARROWEST)
        last = shorten(row[-1], room, placeholder="…")
        last = last if last != "…" else f"{row[-1][: room - 1]}…"  # the text is one long word
        text = f"{line if number == 0 else paint(line)}  {last}".rstrip()
        sys.stdout.write(f"{style(text, 'bold') if number == 0 else text}\n")


_COLORS = {"bold": "1", "green": "32", "red": "31", "yellow": "33", "cyan": "36", "dim": "2"}


def style(text: str, color: str) -> str:
    """Color text, or make it bold, if standard output is a terminal with colors."""
    if not (color and text) or not is_colored(sys.stdout):
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def one_line(text: str) -> str:
    """Return text with each run of whitespace replaced by one space."""
    return " ".join(text.split())


def brief(text: str) -> str:
    """Return text on one line of limited length."""
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}… ({len(line):,} characters)"


def describe_progress(value: float, total: float | None, message: str | None) -> str:
    """Return one step of progress on one line. The decimals that keep-alives add to a value aren't shown."""
    share = f"{round(value, 3):g}/{total:g}" if total else f"{round(value, 3):g}"
    return one_line(f"{share} {message or ''}")


class Progress:
    """Progress of a call on standard error: one changing line on a terminal, or a line per step in a pipe."""

    def __init__(self) -> None:
        self._open = False
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def step(self, value: float, total: float | None, message: str | None) -> None:
        """Show a step. Used as a progress handler of `Client.call`."""
        text = describe_progress(value, total, message)
        if not self._live:
            sys.stderr.write(f"progress {text}\n")
            return
        bar = ""
        if total:
            done = round(max(0.0, min(20.0, 20 * value / total)))
            bar = "█" * done + "░" * (20 - done) + " "
        sys.stderr.write(f"\r\x1b[K{bar}{safe(text)}")
        sys.stderr.flush()
        self._open = True

    def close(self) -> None:
        """Clear the line."""
        if self._open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


_NO = "/no"
_HINTS = {"boolean": "yes or no", "integer": "a whole number", "number": "a number", "array": "separated by commas"}


def confirm(question: str) -> bool:
    """Ask until the answer is yes or no. An empty answer means no.

    Raises:
        EOFError: The input has ended.
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
        EOFError: The input has ended.
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
        EOFError: The input has ended.
    """
    while True:
        with interrupt_reads():
            password = getpass("Password: ", stream=sys.stderr)
            if password and password == getpass("Repeat for confirmation: ", stream=sys.stderr):
                return password
        print("The two passwords differ." if password else "The password is empty.", file=sys.stderr)


def fill_in(server: str, question: Question, read: Callable[[str], str], note: Callable[[str], object]) -> ElicitAnswer:
    """Ask for the values of a server's form, each until it's valid. ``/no`` in any field declines.

    A form without fields, such as an approval, is accepted only by a yes.

    Args:
        server: The server's name, for display.
        question: The form, or the URL to open.
        read: Reads a line with a prompt, like `input`.
        note: Prints a line.
    """
    note(f"{server} asks: {safe(one_line(question.message))}")
    if question.url:
        note(f"Open this address yourself: {safe(one_line(question.url))}")
        return read("Done (yes or no) [no]: ").strip().lower() in ("y", "yes")
    schema = question.requested_schema or {}
    fields = members(schema.get("properties"))
    required: Any = schema.get("required")
    if not fields:
        return {} if read("Accept (yes or no) [no]: ").strip().lower() in ("y", "yes") else "decline"
    note(f"Type {_NO} to decline.")
    answers: dict[str, Any] = {}
    for name, given in fields.items():
        field, choices = members(given), choices_of(given)
        default = field.get("default")
        kind = str(field.get("type"))
        hint = f"{'some' if kind == 'array' else 'one'} of: {', '.join(choices)}" if choices else _HINTS.get(kind, "")
        may_skip = default is None and not (is_array(required) and name in required)
        hint = "; ".join(each for each in (hint, "may be empty" if may_skip else "") if each)
        title = str(field.get("title") or name)
        prompt = f"  {safe(one_line(f'{title} ({hint})' if hint else title))}"
        shown = ("no", "yes")[default] if isinstance(default, bool) else str(default)
        prompt += ": " if default is None else f" [{safe(one_line(shown))}]: "
        while True:
            text = read(prompt).strip()
            if text == _NO:
                return "decline"
            if not text and default is not None:
                answers[name] = default
                break
            if not text and may_skip:
                break
            value = value_of(text, field)
            problem = describe_mismatch(value, field, "This") if text else "Please answer"
            if not problem:
                answers[name] = value
                break
            note(f"{safe(one_line(problem))}.")
    return answers


def choices_of(field: Any) -> list[str]:
    """Return the choices of a field, if any."""
    schema = members(field)
    schema = members(schema.get("items")) if schema.get("type") == "array" else schema
    titled: Any = schema.get("oneOf") or schema.get("anyOf")
    options = [members(each) for each in titled] if is_array(titled) else []
    listed: Any = schema.get("enum") or [each["const"] for each in options if "const" in each]
    return [str(each) for each in listed] if is_array(listed) else []


def value_of(text: str, schema: Any) -> Any:
    """Convert a command-line argument to the type in a schema, which may also allow null."""
    parts: Any = members(schema).get("anyOf")
    branches = [each for each in map(members, parts if is_array(parts) else [schema]) if each.get("type") != "null"]
    field = branches[0] if len(branches) == 1 else {}
    named: Any = field.get("type")
    kinds = [each for each in (named if is_array(named) else [named]) if each != "null"]
    kind = kinds[0] if len(kinds) == 1 else None
    if kind == "string" and (text != "null" or members(schema).get("type") == "string"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if kind == "boolean" and text.lower() in ("yes", "y", "no", "n"):
            return text.lower().startswith("y")
        item = {"type": members(field.get("items")).get("type", "string")}
        return [value_of(part.strip(), item) for part in text.split(",")] if kind == "array" else text
