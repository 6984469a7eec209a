"""The socket that a server listens on: opened here, or passed by whoever started the program."""

import errno
import os
import socket
from typing import Final

from millstream._app.serving.errors import CommandError
from millstream._config import VariableError, address

MAX_PORT: Final = 65_535
FIRST: Final = 3
"""The first descriptor that systemd passes (sd_listen_fds(3))."""


def chosen_address(host: str | None, port: int | None) -> tuple[str, int]:
    """Where to listen: as given, else as the environment says, else the usual address.

    Raises:
        CommandError: a variable can't be used.
    """
    try:
        return address(host, port)
    except VariableError as exc:
        raise CommandError(str(exc), why="It's an environment variable, and no option says otherwise.") from exc


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket, or a message about why there is none. It listens when the server is ready.

    Args:
        host: a name or an address.
        port: 0 takes any.
        shared: other sockets of this user may be bound to the same port.

    Raises:
        CommandError: the name does not resolve, or the address or port cannot be used.
    """
    if not 0 <= port <= MAX_PORT:
        raise CommandError(f"{port} is not a port.", why=f"Ports go from 0 to {MAX_PORT}.", fix="Use --port 8000.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise CommandError(
            f"{host} isn't an address of this machine.",
            why=f"{exc.strerror or exc}.",
            fix="Use --host 127.0.0.1, or 0.0.0.0 for every address of this machine.",
        ) from exc
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(place)
    except OSError as exc:
        listener.close()
        raise _address_failure(host, port, exc) from exc
    listener.setblocking(False)
    return listener


def passed_sockets(descriptor: int | None) -> list[socket.socket]:
    """What whoever started this program has opened for it: the socket of `--fd`, or those of systemd; often none.

    Raises:
        CommandError: it's not a TCP socket.
    """
    if descriptor is not None:
        return [_passed(descriptor)]
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = os.environ.get("LISTEN_FDS", "")
    if not mine or not count.isdigit():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they're not for the programs that this one starts
    return [_passed(each) for each in range(FIRST, FIRST + int(count))]


def _passed(descriptor: int) -> socket.socket:
    fix = "Give the number of a listening TCP socket, or leave out --fd and use --host and --port."
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise CommandError(f"Descriptor {descriptor} isn't a socket.", why=f"{exc.strerror or exc}.", fix=fix) from exc
    if passed.family not in (socket.AF_INET, socket.AF_INET6) or passed.type != socket.SOCK_STREAM:
        raise CommandError(f"Descriptor {descriptor} isn't a TCP socket.", why=f"It's {passed.family.name}.", fix=fix)
    os.set_inheritable(descriptor, False)
    passed.setblocking(False)
    return passed


def _address_failure(host: str, port: int, exc: OSError) -> CommandError:
    if isinstance(exc, PermissionError):
        return CommandError(
            f"Port {port} is not allowed.", why="Ports below 1024 need a privilege.", fix="Use --port 8000."
        )
    if exc.errno == errno.EADDRINUSE:
        return CommandError(
            f"Port {port} on {host} is in use.",
            why="Another program listens there, perhaps this server in another window.",
            fix=f"Stop that one, or use another port: --port {port + 1 if port < MAX_PORT else 8000}",
        )
    return CommandError(
        f"Cannot listen on {host} port {port}.",
        why=exc.strerror or str(exc),
        fix="Use --host 127.0.0.1, or 0.0.0.0 for every address of this machine.",
    )
