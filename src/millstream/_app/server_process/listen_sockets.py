"""The listening socket: opened here, or passed by the process that started the program."""

import errno
import os
import socket

from millstream._app.server_process.errors import CommandError
from millstream._config import VariableError, address

MAX_PORT = 65_535
FIRST = 3
"""First descriptor passed by systemd (sd_listen_fds(3))."""


def chosen_address(host: str | None, port: int | None) -> tuple[str, int]:
    """Return the address to listen on: as given, from the environment, or the default.

    Raises:
        CommandError: a variable is invalid.
    """
    try:
        return address(host, port)
    except VariableError as exc:
        raise CommandError(str(exc), why="An option doesn't override this environment variable.") from exc


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a bound socket. It starts to listen when the server is ready.

    Args:
        host: host name or address.
        port: port; 0 for any.
        shared: whether other sockets of this user may bind to the same port.

    Raises:
        CommandError: the name doesn't resolve, or the address or port can't be used.
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
    """Return the sockets that were passed to this program: the one of `--fd`, or those of systemd; often none.

    Raises:
        CommandError: a descriptor isn't a TCP socket.
    """
    if descriptor is not None:
        return [_open_passed_socket(descriptor)]
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = os.environ.get("LISTEN_FDS", "")
    if not mine or not count.isdigit():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not for the programs that this one starts
    return [_open_passed_socket(each) for each in range(FIRST, FIRST + int(count))]


def _open_passed_socket(descriptor: int) -> socket.socket:
    fix = "Pass the number of a listening TCP socket, or leave out --fd and use --host and --port."
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
            f"Port {port} is not allowed.", why="Ports below 1024 require a privilege.", fix="Use --port 8000."
        )
    if exc.errno == errno.EADDRINUSE:
        return CommandError(
            f"Port {port} on {host} is in use.",
            why="Another program is listening there, perhaps this server in another window.",
            fix=f"Stop that one, or use another port: --port {port + 1 if port < MAX_PORT else 8000}",
        )
    return CommandError(
        f"Cannot listen on {host} port {port}.",
        why=exc.strerror or str(exc),
        fix="Use --host 127.0.0.1, or 0.0.0.0 for every address of this machine.",
    )
