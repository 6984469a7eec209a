"""Failures of commands: wrong arguments, reports on standard error or as JSON, and output that can't be written.

Standard output may be closed, on a full disk, a pipe without a reader, or limited by the encoding.
"""

import errno
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, takewhile
from typing import Any

from millstream._cli.help import COMMANDS


def wants_json() -> bool:
    """Return whether this command was called with ``--json``."""
    return "--json" in takewhile(lambda word: word != "--", sys.argv)


def report_error(error: str, status: int, *, why: str = "", remedy: str = "", shown: str = "") -> None:
    """Print a failure: `shown` or the sentences on standard error, or with ``--json`` an object on standard output.

    The object is ``{"ok": false, "error": "…", "why": "…", "remedy": "…", "status": 3}``. `why` and `remedy` are
    optional, and `status` is the exit status. `chat` and `doctor` use other objects.
    """
    if not wants_json():
        from millstream._config import as_typed  # noqa: PLC0415  only for errors
        from millstream._telemetry.logs import is_colored  # noqa: PLC0415
        from millstream._text import fit  # noqa: PLC0415

        columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        colored = is_colored(sys.stderr)
        text = shown or fit("Error: ", error, columns).replace("Error:", _RED_ERROR if colored else "Error:", 1)
        text += "\n" + fit("  Cause: ", why, columns) if why else ""
        sys.stderr.write(f"{text}\n{fit('  Fix:   ', as_typed(remedy), columns)}\n" if remedy else f"{text}\n")
        return
    from millstream._cli.tables import print_json  # noqa: PLC0415  only for errors

    texts: dict[str, Any] = {"error": error, "why": why, "remedy": remedy}
    print_json({"ok": False, **{name: text for name, text in texts.items() if text}, "status": status})


_OTHER_NAMES = {
    "add": "install",
    "ask": "chat",
    "create": "init",
    "debug": "dev",
    "get": "read",
    "inspect": "dev",
    "inspector": "dev",
    "invoke": "call",
    "keys create": "keys add",
    "keys delete": "keys revoke",
    "keys generate": "keys add",
    "keys new": "keys add",
    "keys remove": "keys revoke",
    "keys rm": "keys revoke",
    "ls": "list",
    "new": "init",
    "prompts": "list",
    "proxy": "run",
    "resources": "list",
    "serve": "run",
    "start": "run",
    "test": "doctor",
    "tools": "list",
    "users create": "users add",
    "users delete": "users remove",
    "users new": "users add",
    "users rm": "users remove",
}
"""Commands of other programs, with ours."""
_OTHER_OPTIONS = {
    "auth-key": "auth",
    "debug": "log-level debug",
    "http": "transport http",
    "key": "auth",
    "sse": "transport sse",
    "ssl-certfile": "tls-cert",
    "ssl-keyfile": "tls-key",
    "stdio": "transport stdio",
    "token": "auth",
    "verbose": "log-level debug",
    "v": "log-level debug",
}
"""Options of other programs, with ours."""
_OPTIONED = ("install", "run")
_SERVING = ("dev", "gateway", "run")
_SET = "Set it before the command: MILLSTREAM_{}=VALUE millstream …"
_PASSWORDS = "Leave out the password. The command asks for it, or reads it from a pipe."
_COMMANDS = set(chain(*COMMANDS.values()))
_CLIENTS = {name for heading, names in COMMANDS.items() if "a server" in heading for name in names} - {"record"}
"""Commands whose first argument is a server."""
_SERVERS = (".py", ".js", ".mjs", ".cjs", ".json", ".toml")
"""Extensions of files with servers or configurations."""
_LISTED = ("call", "prompt", "read")
"""Commands whose second argument is in the output of ``millstream list``."""


_UNKNOWN = re.compile(r'Unknown option: "?(--?([\w-]+))')
"""Matches the error for an unknown option, which may be meant as a tool argument."""


_WORDS = (
    (
        re.compile(r'Invalid value for (\S+): unable to convert "(.*)" into int\.'),
        r'Invalid value "\2" for \1. Write a whole number.',
    ),
    (
        re.compile(r'Invalid value for (\S+): unable to convert "(.*)" into float\.'),
        r'Invalid value "\2" for \1. Write a number.',
    ),
    (re.compile(r'Invalid value for (\S+): unable to convert ".*" into bool\.'), r"\1 takes no value."),
    (re.compile(r'(Invalid value "[^"]*?(\w+)" for \S+ Choose from: .*"\2".*\.)$'), r'\1 Did you mean "\2"?'),
    (re.compile(r'Invalid value "ort" for -p\..*'), "-port has two hyphens: --port."),
    (re.compile(r'Invalid value "[^"]*" for (--timeout)\. .* isn\'t greater than 0\.'), r"\1 must be greater than 0."),
    (re.compile(r'Command ".*" parameter (\S+) requires an argument\.'), r"\1 needs a value."),
)
"""Messages of the command-line library, with ours."""
_SHOWN = ("list", "info", "ping", "doctor", "tokens", "watch", "tasks", "lock", "check")
_EXAMPLES = {
    "run": "millstream run shop.py",
    "dev": "millstream dev shop.py",
    "gateway": "millstream gateway gateway.toml",
    "call": "millstream call shop.py order copies=2",
    "read": "millstream read shop.py book://978-0",
    "prompt": "millstream prompt shop.py pitch title=Emma",
    "keys add": "millstream keys add alice",
    "users add": "millstream users add alice",
    **{name: f"millstream {name} shop.py" for name in _SHOWN},
}
"""Complete example for each command that needs arguments."""
_RED_ERROR = "\x1b[1;31mError:\x1b[0m"


class UsageError(Exception):
    """A command's arguments are invalid or inconsistent. The message suggests a replacement if there is one."""


def finite(_: type, number: float) -> None:
    """Reject infinity and NaN, which Python parses.

    Raises:
        ValueError: The number isn't finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} isn't a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Reject numbers that aren't positive.

    Raises:
        ValueError: The number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} isn't greater than 0.")


@contextmanager
def usage_errors(arguments: Sequence[str], options_of: Callable[[str], Collection[str]]) -> Generator[None]:
    """Report invalid arguments inside the block, as a sentence, or as an object with ``--json``.

    Args:
        arguments: The words after ``millstream``.
        options_of: Returns the options of a command.

    Raises:
        SystemExit: With status 2.
    """
    from cyclopts import (  # noqa: PLC0415  loaded by `program`
        CycloptsError,
        MissingArgumentError,
        UnknownCommandError,
        UnusedCliTokensError,
    )

    try:
        _check_server(arguments)
        yield
    except UnusedCliTokensError as exc:
        extra = " ".join(exc.unused_tokens or ())
        if remedy := _find_misplaced(arguments, extra, len(exc.unused_tokens or ())):
            shown = "" if remedy is _PASSWORDS else f": {extra}"
            _fail(f"Unexpected argument{shown}.", arguments, remedy=remedy)
        _fail(f"Unexpected argument: {extra}. Put quotes around a value with spaces, and commas in a list.", arguments)
    except UnknownCommandError as exc:
        _fail(_unknown(arguments, options_of) or str(exc), arguments)
    except MissingArgumentError as exc:
        names = exc.command_chain or ()
        text, remedy = str(exc), ""  # for an option without a value
        if exc.keyword is None and exc.argument is not None and names:
            text = f"Missing argument: {exc.argument.name}."
            remedy = _EXAMPLES.get(" ".join(names), "") if len(arguments) == len(names) else ""
            if "--" in arguments:
                remedy = shlex.join(["millstream", *names, exc.argument.name, *arguments[arguments.index("--") :]])
        _fail(text, arguments, names, remedy)
    except (CycloptsError, UsageError) as exc:
        known = [name for each in getattr(exc, "argument_collection", ()) if each.parse for name in each.names]
        _fail(str(exc), arguments, getattr(exc, "command_chain", None) or (), known=known)
    except EOFError:  # Ctrl-D at a question
        report_error("Aborted.", 1, shown="Aborted.")
        sys.exit(1)


def join_command(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments, with the words after ``--`` joined into one argument, the server: ``list -- uvx
    mcp-server-time``."""
    if arguments[0] not in (*_CLIENTS, "run", "dev") or "--" not in arguments[:-1]:
        return arguments
    at = arguments.index("--")
    before, words = arguments[1:at], arguments[at + 1 :]
    if before and (before[0].endswith(_SERVERS) or "://" in before[0] or " " in before[0]):
        return arguments  # the server comes first, and -- ends the options
    return [arguments[0], words[0] if len(words) == 1 else shlex.join(words), *before]


def _suggest_hyphens(arguments: Sequence[str]) -> str:
    """Return the command with ``--`` if the server is a program whose arguments lack quotes, else an empty string."""
    command, *words = arguments
    if command not in ("run", "dev", "list", "info", "ping", "doctor", "tokens") or len(words) < 2:
        return ""
    program = words[0]
    if program.startswith("-") or program.endswith(_SERVERS) or " " in program or not shutil.which(program):
        return ""
    return f"millstream {command} -- {shlex.join(words)}"


def _check_server(arguments: Sequence[str]) -> None:
    """Check that the server is one argument, and the first.

    Raises:
        UsageError: It isn't.
    """
    if remedy := _suggest_hyphens(arguments):
        _fail("A command with arguments comes after --.", arguments, remedy=remedy)
    if arguments[0] in _CLIENTS and len(arguments) > 2 and arguments[2].endswith(_SERVERS):
        _check_order(*arguments[:3])
    if arguments[0] in ("run", "dev") and "--" in arguments[2:-1] and arguments[1].endswith(".py"):
        command = shlex.join(["--", "python", arguments[1], *arguments[arguments.index("--") + 1 :]])
        raise UsageError(f"Programs can't take arguments. Run it as a command: millstream run {command}")


def _check_order(command: str, first: str, server: str) -> None:
    """Check that the server is the first argument.

    Raises:
        UsageError: It's the second one, after an item or a program.
    """
    words = [server, first] if command in _LISTED else [server]
    if first.startswith("-") or " " in first or first.endswith(_SERVERS) or "://" in first:
        return
    if shutil.which(first):
        words = [f"{first} {server}"]
    raise UsageError(f"The server is the first argument: millstream {command} {shlex.join(words)}")


def _find_misplaced(arguments: Sequence[str], extra: str, number: int) -> str:
    """Return the corrected command for `number` misplaced arguments, or an empty string."""
    if arguments[0] == "list" and re.fullmatch(r"\w[\w-]*", arguments[1]):
        return f"millstream list -- {shlex.join(arguments[1:])}"
    if arguments[0] == "list" and number == 1 and len(arguments) > 2:
        return f"millstream call {shlex.quote(arguments[1])} {shlex.quote(extra)}"
    if arguments[:2] in (["users", "add"], ["users", "password"]):
        return _PASSWORDS
    command, option = arguments[0], f"port {extra}" if extra.isdigit() else _OTHER_OPTIONS.get(extra)
    if command == "gateway" and re.fullmatch(r"[a-z]+", arguments[1]) and extra.endswith(_SERVERS):
        return f"To check a file and its upstreams: millstream doctor {shlex.quote(extra)}"
    if command in ("run", "gateway") and (extra.endswith(_SERVERS) or "://" in extra):
        return "To serve several servers, list them in a file: millstream gateway servers.json"
    if command == "install":
        option = f"client {extra}"
    return _instead(arguments, extra, option) if option and command in _OPTIONED else ""


def _instead(arguments: Sequence[str], word: str, option: str) -> str:
    """Return the command with a word replaced by an option."""
    return re.sub(rf"(?<= ){re.escape(word)}(?=[ =]|$)", f"--{option}", f"millstream {shlex.join(arguments)}", count=1)


def _unknown(arguments: Sequence[str], options_of: Callable[[str], Collection[str]]) -> str:
    """Return an error that suggests the right command for an unknown one, or an empty string if that's unclear."""
    word = arguments[0]
    if word in ("--version", "-V"):
        return f"{word} stands alone: millstream --version"
    if word.startswith("-"):
        command = next((each for each in arguments if each in _COMMANDS), "run")
        option = _OTHER_OPTIONS.get(word.lstrip("-"), "") if command in _OPTIONED else ""
        if not option and word.partition("=")[0] not in options_of(command):
            return f"There is no option {word}."
        return f"{word} comes after the command: millstream {command} {f'--{option}' if option else word}"
    other = _OTHER_NAMES.get(word)
    subcommand = _OTHER_NAMES.get(" ".join(arguments[:2])) if len(arguments) > 1 else None
    if subcommand:
        word, other = arguments[1], subcommand
    elif word.endswith(_SERVERS):
        other = f"gateway {word}" if word.endswith((".json", ".toml")) else f"run {word}"
    elif "://" in word:
        other = f"list {word}"
    if word == "mcp" and arguments[1:2] and arguments[1] in _COMMANDS:
        other = arguments[1]
        arguments = arguments[1:]
    if other and not word.endswith(_SERVERS) and "://" not in word:
        other = shlex.join([*other.split(), *arguments[1 + (subcommand is not None) :]])
    return f'Unknown command "{word}". Use: millstream {other}' if other else ""


def _fail(
    text: str, arguments: Sequence[str], names: Sequence[str] = (), remedy: str = "", known: Sequence[str] = ()
) -> None:
    text = " ".join(text.split())
    for pattern, ours in _WORDS:
        text = pattern.sub(ours, text)
    command = " ".join(names) or (arguments[0] if arguments[0] in _COMMANDS else "")
    remedy = remedy or (f"millstream {command} --help" if command else "millstream --help")
    if found := _UNKNOWN.match(text):
        from millstream._suggestions import closest_name  # noqa: PLC0415  only for errors

        options = [each[2:] for each in known if each.startswith("--")]
        settings = [each.replace("_", "-") for each in _settings()] if command in _SERVING else []
        near = next((each for each in options if each.startswith(found[2])), None)
        near = near or closest_name(found[2], [*options, *settings])
        text = text.partition(" Did you mean -")[0]
        if near in options:
            text += f" Did you mean --{near}?"
        elif near is not None:
            remedy = f"Did you mean the setting {near}? {_SET.format(near.replace('-', '_').upper())}"
        if command == "dev" and found[1] == "--reload":
            text, remedy = "dev always reloads, so it has no option --reload.", "Leave it out."
        if command in _CLIENTS and found[1] == "--transport":
            text, remedy = f"{command} has no option --transport.", "Leave it out: the URL or file says how to connect."
        if command == "gateway add":
            text = "A command with arguments comes after --."
            remedy = shlex.join(["millstream", *arguments[:3], "--", *arguments[3:]])
        elif other := _other_option(command, found, arguments):
            text, remedy = f"{command} has no option {found[1]}.", other
    elif command in _LISTED and len(arguments) == 2:  # the server alone
        remedy = f"millstream list {shlex.quote(arguments[1])}"
    report_error(text, 2, remedy=remedy)
    sys.exit(2)


def _settings() -> Collection[str]:
    from millstream._config import Settings  # noqa: PLC0415  only for errors

    return Settings.__struct_fields__


def _other_option(command: str, unknown: re.Match[str], arguments: Sequence[str]) -> str:
    """Return the replacement for an unknown option, or an empty string if that's unclear."""
    option, name = unknown.groups()
    other = _OTHER_OPTIONS.get(name, "")
    if command in _SERVING and name in ("e", "env"):
        return "Set variables before the command, NAME=VALUE millstream …, or write them into a file: --env-file FILE"
    if command.startswith("users ") and name in ("password", "p"):
        return _PASSWORDS
    if other == "auth" and (command == "install" or (command in _LISTED and name != "auth-key")):
        option = '--header "Authorization: Bearer KEY"' if command == "install" else "--auth KEY"
        passed = f", and to pass it as an argument, {name}=VALUE" if command in _LISTED else ""
        return f"To send a key to the server, use {option}{passed}."
    if other and (
        command in _OPTIONED
        or (command in _CLIENTS and (name == "auth-key" or (other == "auth" and command not in _LISTED)))
    ):
        return _instead(arguments, option, other)
    if command in _SERVING and (setting := name.replace("-", "_")) in _settings():
        return f"It's a setting. {_SET.format(setting.upper())}"
    if other.endswith("debug") and command in _CLIENTS:
        server = next((each for each in arguments[1:] if each.endswith(_SERVERS) or "://" in each), "FILE")
        return f"To see what happens: millstream {'doctor' if '://' in server else 'dev'} {server}"
    if command in _LISTED:
        at = next((at for at, word in enumerate(arguments) if word.startswith(option)), 0)
        value = arguments[at].partition("=")[2] or " ".join(arguments[at + 1 : at + 2]) or "VALUE"
        return f"To pass it to the server, write {shlex.quote(f'{name}={value}')}"
    return ""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_streams() -> None:
    """Open streams that are closed and print ``?`` for characters outside of the encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def close_stderr() -> None:
    """Close standard error if the output's reader has exited, as in ``millstream list … | head``."""
    with suppress(OSError):  # standard error may be the broken pipe
        sys.stderr.close()


def status_without_output(exc: OSError) -> int | None:
    """Report a failed write to standard output, and return the exit status, or None for other errors."""
    broken = isinstance(exc, BrokenPipeError)
    if exc.filename is not None or not (broken or exc.errno in _NO_ROOM):
        return None
    # Buffered output must not be written again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if broken:  # `millstream list … | head`
        return 0
    sys.stderr.write(f"Error: The output can't be written: {exc.strerror}.\n")
    return 1
