"""Options, connections, and error handling of the commands that use a server."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from cyclopts import Group, Parameter

from millstream._cli.errors import UsageError, close_stderr, more_than_nothing, report_error, wants_json
from millstream._cli.signals import carry_out
from millstream._cli.tables import brief, fill_in, print_text, safe
from millstream._http.client.url import parse_url
from millstream._http.hosts import is_loopback
from millstream._modules import is_module, split_target
from millstream._override import override
from millstream._protocol.errors import METHOD_NOT_FOUND, MISSING_CLIENT_CAPABILITY
from millstream._protocol.json_schema import members
from millstream._protocol.metadata import TASKS
from millstream._suggestions import closest_name
from millstream._tasks import run_in_thread
from millstream.client import (
    AccessDenied,
    Client,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    Options,
    RequestTimeout,
    ServerError,
    TargetError,
    TlsFailed,
    UnknownVersion,
)
from millstream.client._endpoint import Auth
from millstream.client._questions import Elicit, ElicitAnswer, Question
from millstream.client._transports.stdio import LAST_OUTPUT, print_line

T = TypeVar("T")

FAILED, MISUSED, UNREACHABLE, DENIED, LATE = 1, 2, 3, 4, 5
"""Exit statuses: the request failed, wrong usage, no connection, no access, no response in time."""

_SILENCE = 5.0
"""Seconds without a connection after which a command reports what it's waiting for."""
_FORBIDDEN = 403
_MAX_LINE = 64 * 1024

Target = Annotated[
    str,
    Parameter(
        name="SERVER",
        help="A URL, a command in quotes, a .py, .js, or gateway.toml file, a module, or .json with mcpServers: "
        "FILE#NAME.",
    ),
]
Header = Annotated[tuple[str, ...], Parameter(alias="-H")]
Timeout = Annotated[float, Parameter(metavar="SECONDS", validator=more_than_nothing)]


@Parameter(name="*", group=Group("Connection", sort_key=2))
@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectOptions:
    """Options to connect to a server. Each field is an option of a command with a parameter of this type.

    Help shows the docstrings of the fields.
    """

    header: Header = ()
    """Send a header with each HTTP request: "Name: value"."""
    auth_key: Annotated[str, Parameter(name="--auth", metavar="KEY")] = ""
    """Send "Authorization: Bearer KEY". Defaults to MCP_SERVER_AUTH_KEY on this machine and at MCP_SERVER_URL."""
    login: bool = False
    """Sign in with a browser if the server requires it and store the tokens."""
    env: Annotated[tuple[str, ...], Parameter(alias="-e", metavar="NAME=VALUE")] = ()
    """Set NAME=VALUE for a server that this command starts. It inherits only PATH, HOME, and the like."""
    revision: Annotated[str, Parameter(metavar="DATE")] = ""
    """Ask only for this protocol revision, as a date."""
    timeout: Timeout = 60
    """Seconds to wait for a response."""

    def headers(self, target: str = "") -> dict[str, str]:
        """Return the headers of each request to a server."""
        found = pairs(self.header, ":", '--header must be "Name: value"')
        key = self.auth_key or ("" if self.login else _key_for(target))
        if key and not any(name.lower() == "authorization" for name in found):
            found["Authorization"] = f"Bearer {key.removeprefix('Bearer ')}"
        return found

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of a server that the command starts."""
        return pairs(self.env, "=", "--env must be NAME=VALUE")

    def client(self, target: str, *, elicit: Elicit | None = None, log_level: str = "") -> Client:
        """Return a client for the server."""
        client = _CommandClient(
            target,
            revision=self.revision or None,
            headers=self.headers(target),
            timeout=self.timeout,
            elicit=elicit,
            options=Options(
                env=self.variables,
                # Developers want the output of their program even in a pipe.
                stderr=_ServerOutput.print if _is_program(target) or sys.stderr.isatty() else None,
                log_level=log_level,
                auth=auth_for(self.login),
                connect_timeout=min(10.0, self.timeout),
            ),
        )
        client.target = target
        return client


class _CommandClient(Client):
    """A client that reports on standard error what it's waiting for, if a server doesn't respond."""

    target = ""

    @override
    async def __aenter__(self) -> Self:
        notice = f"Waiting for a response from {brief(self.target)}. Press Ctrl-C to stop, or set --timeout."
        timer = asyncio.get_running_loop().call_later(_SILENCE, print_line, notice)
        try:
            return await super().__aenter__()
        finally:
            timer.cancel()


DEFAULTS = ConnectOptions()


def auth_for(login: bool) -> Auth | None:
    """Return the login, if requested."""
    if not login:
        return None
    from millstream.client import OAuth  # noqa: PLC0415 - only to sign in

    return OAuth()


class _ServerOutput:
    """State of the started server's standard error."""

    shown = False
    """Whether there was any output."""
    explained = False
    """Whether `millstream run` reported an error with a remedy."""

    @classmethod
    def print(cls, line: str) -> None:
        """Print a line of output."""
        cls.shown = True
        cls.explained = cls.explained or line.startswith(("  Cause: ", "  Fix:   "))
        print_line(line)


def _key_for(target: str) -> str:
    """Return ``MCP_SERVER_AUTH_KEY`` for a server on this machine, or at the origin of ``MCP_SERVER_URL``.

    Other servers never receive it.
    """
    try:
        url = parse_url(target)
        own = is_loopback(url.host) or parse_url(os.environ.get("MCP_SERVER_URL", "")).origin == url.origin
    except TargetError:  # one of them isn't a URL
        return ""
    return os.environ.get("MCP_SERVER_AUTH_KEY", "") if own else ""


def _is_program(target: str) -> bool:
    """Return whether a target is a Python file or module, optionally with an object: ``shop.py:admin``."""
    return split_target(target)[0].endswith(".py") or is_module(target, Path.cwd())


def version_of(client: Client) -> str:
    """Return the server's version. "0" is treated as none, because servers without a version have to send something."""
    return "" if client.server.version == "0" else client.server.version


def pairs(words: Sequence[str], mark: str, usage: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` words into a dict."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition(mark)
        if not sign or not name.strip():
            raise UsageError(f"{usage}, not {word!r}.")
        found[name.strip()] = value.strip() if mark == ":" else value
    return found


def run_to_exit(work: Callable[[], Coroutine[Any, Any, int | None]]) -> None:
    """Run a command's coroutine. Client errors become one line, or one JSON object, instead of a traceback."""
    try:
        status = carry_out(work()) or 0
    except ClientError as exc:
        status = status_of(exc)
        _fail(*explain(exc), status=status)
    except UnicodeEncodeError:  # undecodable bytes in the command line, or a lone surrogate in JSON
        status = MISUSED
        _fail("The arguments contain characters that can't be encoded as UTF-8.", status=status)
    except BrokenPipeError:  # `millstream list … | head`
        close_stderr()
        status = 0
    if status:
        raise SystemExit(status)


def _fail(text: str, why: str = "", remedy: str = "", *, status: int) -> None:
    """Print a failure in one line, or as JSON with separate cause and remedy."""
    if wants_json():
        report_error(brief(text), status, why=brief(why), remedy=brief(remedy))
    elif text:
        report_error(safe(brief(f"{text} {why} {remedy}")), status)


def explain(error: ClientError) -> tuple[str, str, str]:
    """Return the message of an error, its cause, and its remedy on the command line."""
    text, why, remedy = error.message, "", error.remedy
    if isinstance(error, AccessDenied):
        if remedy:
            remedy = "Sign in with --login, or send a key: --auth KEY."
        elif "insufficient_scope" in error.challenge:
            remedy = "Send credentials with this scope: --auth KEY."
        elif error.status == _FORBIDDEN:
            named = re.search(r"\(403\): .*\b(key|token)\b", text, re.IGNORECASE)
            remedy = f"Send {'another key' if named else 'other credentials'} with --auth KEY"
            remedy += "." if named else ", or try millstream doctor."
    elif isinstance(error, TlsFailed) and "Options" in remedy:
        remedy = "To trust your own certificate: SSL_CERT_FILE=FILE millstream …"
    elif isinstance(error, ServerError) and error.code == MISSING_CLIENT_CAPABILITY:
        text, remedy = _cannot(error)
    elif isinstance(error, ServerError):
        text, again, when = text.partition(" Try again")
        text, remedy = f"{text.rstrip('.')} ({error.code}).", remedy or (again + when).strip()
        if limit := members(error.data).get("limit"):
            why = f"The limit is {limit}."
    elif isinstance(error, ConnectionLost) and _ServerOutput.shown and not wants_json():
        text = "" if _ServerOutput.explained else text.partition(LAST_OUTPUT)[0]
    return text, why, remedy


def _cannot(error: ServerError) -> tuple[str, str]:
    """Return the message and the remedy for missing client capabilities."""
    required = members(members(error.data).get("requiredCapabilities"))
    if TASKS in members(required.get("extensions")):
        return "The tool runs only as a task.", "Add --task."
    names = list(required)
    if names == ["elicitation"]:
        return "The server has a question for the user, but there's no terminal.", "Run this command in a terminal."
    needed = " and ".join(names) or "more capabilities"
    return f"The server requires a client with {needed}, which this command doesn't support.", ""


def unknown(kind: str, name: str, known: Sequence[str]) -> ClientError | None:
    """Return the error for an unknown name, with the closest known one, or None if the name is known."""
    if name in known:
        return None
    near = closest_name(name, known)
    listed = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    has = f"It has: {listed}." if known else f"It has no {kind}s."
    return ClientError(f"The server has no {kind} {name!r}.", remedy=f"Did you mean {near}?" if near else has)


def status_of(error: ClientError) -> int:
    """Return the exit status for an error."""
    if isinstance(error, AccessDenied):
        return DENIED
    if isinstance(error, RequestTimeout):
        return LATE
    unreachable = (ConnectFailed, ConnectionLost, NotMcp, TargetError, UnknownVersion)
    return UNREACHABLE if isinstance(error, unreachable) else FAILED


def person() -> Elicit | None:
    """Return a handler that asks on the terminal, one question at a time, or None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    turn = asyncio.Lock()

    async def ask(question: Question) -> ElicitAnswer:
        async with turn:
            return await _ask(question)

    return ask


async def _ask(question: Question) -> ElicitAnswer:
    """Ask in a daemon thread, so that Ctrl-C can end the command."""

    def ask() -> ElicitAnswer:
        try:
            return fill_in("The server", question, _read, lambda line: print(line, file=sys.stderr))
        except (EOFError, OSError):  # Ctrl-D, or a closed terminal
            return "cancel"

    return await run_in_thread(ask, "millstream-question")


def _read(prompt: str) -> str:
    """Read a line from the terminal. Newer C libraries would make `input` wait for the thread at exit."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = os.read(sys.stdin.fileno(), _MAX_LINE)
    if not line:
        raise EOFError
    return line.decode(sys.stdin.encoding, "replace").rstrip("\r\n")


async def list_items(request: Callable[[], Awaitable[list[T]]]) -> list[T]:
    """Return a list of a server, or an empty one if the server has no such list, or with a warning if it rejects it."""
    try:
        return await request()
    except (InvalidResponse, ServerError) as exc:
        if isinstance(exc, ServerError) and exc.code == METHOD_NOT_FOUND:
            return []
        print_text(f"Warning: {exc}", sys.stderr)
        return []
