"""Preparations for listening: an address, a bound or inherited socket, protection, and a certificate.

A socket is opened here, or passed by the process that started the program. A public address requires sign-in, or an
explicit exception.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from millstream._app.definition import Definition
from millstream._app.server_process import CommandError
from millstream._config import VariableError, address
from millstream._http.hosts import UNIX, is_loopback
from millstream._http.server.listener import BACKLOG
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._troubles import LogOnce, Troubles
from millstream.auth._key_file import SHORTEST_KEY, is_path
from millstream.files import Stamp, stamp_of

MAX_PORT = 65_535
_FAMILIES = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None))
_PATIENCE = 60.0
"""Seconds for whoever renews a certificate to write both files."""
_NOTICE = timedelta(days=14)
"""Maximum time before a certificate's end at which the log warns. For short-lived ones, it's a third of their lifetime.
"""
_OFTEN = 1800.0
"""Seconds between two looks at a certificate's dates."""
FIRST = 3
"""First descriptor passed by systemd (sd_listen_fds(3))."""


def chosen_address(host: str | None, port: int | None) -> tuple[str, int]:
    """Return the address to listen on: as given, from the environment, or the default.

    Raises:
        CommandError: A variable is invalid.
    """
    try:
        return address(host, port)
    except VariableError as exc:
        raise CommandError(
            str(exc), why="No command-line option was given that overrides this environment variable."
        ) from exc


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a bound socket. It starts to listen when the server is ready.

    Args:
        host: Host name or address, or ``unix:`` and the path of a UNIX socket.
        port: Port, or 0 for any. UNIX sockets have none.
        shared: Whether other sockets of this user may bind to the same port.

    Raises:
        CommandError: The name doesn't resolve, or the address or port can't be used.
    """
    if host.startswith(UNIX):
        return _listen_at(Path(host.removeprefix(UNIX)).absolute())
    if not 0 <= port <= MAX_PORT:
        raise CommandError(
            f"{port} isn't a valid port.", why=f"Ports range from 0 to {MAX_PORT}.", fix="Use --port 8000."
        )
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise CommandError(
            f"{host} isn't an address on this machine.",
            why=f"{exc.strerror or exc}.",
            fix="Use --host 127.0.0.1, or 0.0.0.0 for every address on this machine. The port is --port.",
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


class UnixListener(socket.socket):
    """A listening UNIX socket that removes its file when it's closed."""

    def __init__(self, path: Path) -> None:
        """Create the file.

        Raises:
            OSError: The path can't be used.
        """
        super().__init__(socket.AF_UNIX)
        self._path = path
        self._inode = 0
        try:
            self.bind(str(path))
            self._inode = path.stat().st_ino
            path.chmod(0o660)
            # Nothing can connect before the socket listens, so permissions are never too wide. It listens before the
            # server is ready, so another server doesn't mistake the file for one that a killed server left behind.
            self.listen(BACKLOG)
        except OSError:
            self.close()
            raise
        self.setblocking(False)

    @override
    def close(self) -> None:
        """Close the socket, and remove the file, unless another server has replaced it."""
        super().close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _listen_at(path: Path) -> socket.socket:
    """Return the UNIX socket of a path. Replace a file that a killed server left behind.

    Raises:
        CommandError: The path can't be used, or a program listens there.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise CommandError("This platform has no UNIX sockets.", fix="Use --host and --port.")
    try:
        if path.is_socket() and _is_abandoned(path):
            path.unlink()
        return UnixListener(path)
    except OSError as exc:
        why, fix = f"{exc.strerror or exc}.", _FIXES.get(exc.errno or 0, "Use a path of fewer than 100 characters.")
        if exc.errno == errno.EADDRINUSE:
            why, fix = (
                ("Another program is listening there.", "Stop it, or use another path.")
                if path.is_socket()
                else ("There is already a file, which isn't a socket.", "Remove it, or use another path.")
            )
        raise CommandError(f"Can't listen on the UNIX socket {path}.", why=why, fix=fix) from exc


_FIXES = {
    errno.ENOENT: "Create the folder, or use another path.",
    errno.ENOTDIR: "Use a path in a folder.",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Use a path in a folder that you can write to."),
}
"""Error of a UNIX socket's path -> what to do."""


def _is_abandoned(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # the listener's queue is full
            pass
    return False


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Return the host and the port of a socket; ``unix:`` and a path, and 0 for a UNIX socket."""
    name: tuple[str, int] | str | bytes = listener.getsockname()
    return (name[0], name[1]) if isinstance(name, tuple) else (UNIX + os.fsdecode(name), 0)


def passed_sockets(descriptor: int | None) -> list[socket.socket]:
    """Return the sockets that were passed to this program, with `--fd` or by systemd. Often, there are none.

    Raises:
        CommandError: A descriptor isn't a TCP or UNIX socket.
    """
    if descriptor is not None:
        return [_open_passed_socket(descriptor)]
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = os.environ.get("LISTEN_FDS", "")
    if not mine or not count.isdigit():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not inherited by programs that this one starts
    return [_open_passed_socket(each) for each in range(FIRST, FIRST + int(count))]


def _open_passed_socket(descriptor: int) -> socket.socket:
    fix = "Pass the number of a listening TCP or UNIX socket, or leave out --fd and use --host and --port."
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise CommandError(f"Descriptor {descriptor} isn't a socket.", why=f"{exc.strerror or exc}.", fix=fix) from exc
    if passed.family not in _FAMILIES or passed.type != socket.SOCK_STREAM:
        kind = f"{passed.family.name}, {passed.type.name}"
        raise CommandError(f"Descriptor {descriptor} isn't a TCP or UNIX socket.", why=f"It's {kind}.", fix=fix)
    os.set_inheritable(descriptor, False)
    passed.setblocking(False)
    return passed


def _address_failure(host: str, port: int, exc: OSError) -> CommandError:
    if isinstance(exc, PermissionError):
        return CommandError(
            f"Port {port} isn't allowed.", why="Ports below 1024 require a privilege.", fix="Use --port 8000."
        )
    if exc.errno == errno.EADDRINUSE:
        other = port + 1 if port < MAX_PORT else 8000
        return CommandError(
            f"Port {port} on {host} is in use.",
            why="Another program is listening there, perhaps this server in another window.",
            fix=f"Stop that one, or use another port: --port {other}, or run(port={other}) in a program.",
        )
    return CommandError(
        f"Can't listen on {host} port {port}.",
        why=exc.strerror or str(exc),
        fix="Use --host 127.0.0.1, or 0.0.0.0 for every address on this machine.",
    )


def check_public(definition: Definition, host: str) -> None:
    """Check that a public address is protected, unless the operator allows it without protection.

    Raises:
        CommandError: The address is public, without sign-in or with a guessable key, or the key is a path.
    """
    settings = definition.settings
    if is_path(settings.auth_key):
        raise CommandError("The auth key is the path of a file.", fix="To accept the keys in it, add --auth-keys FILE.")
    if is_loopback(host) or host.startswith(UNIX) or settings.allow_anonymous:
        return
    if not definition.protected:
        start = "write auth= in the program, or start it with millstream run"
        if definition.live is not None:
            start = f"or start it with millstream gateway {definition.live.path}"
        raise CommandError(
            f"{host} is reachable from other machines, and callers don't have to sign in.",
            why="Anyone who reaches it could call every tool.",
            fix=(
                f"Set MCP_SERVER_AUTH_KEY, {start} --auth-keys FILE."
                " To allow anonymous access, set MILLSTREAM_ALLOW_ANONYMOUS=true, or run it with --allow-anonymous."
            ),
        )
    if settings.auth_key and len(settings.auth_key) < SHORTEST_KEY:
        raise CommandError(
            "The auth key is too short for an address that is reachable from other machines.",
            why=(
                f"It has {len(settings.auth_key)} characters. Keys of fewer than {SHORTEST_KEY} characters can be "
                "guessed."
            ),
            fix='Create one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )


logger = logging.getLogger("millstream")

EVERY = 1.0


class Certificate:
    """A certificate chain and its key, as files, renewed without a restart.

    The files are checked once a second. A matching new pair is used for new connections, and a mismatched one is
    ignored, with a warning after a minute.
    """

    def __init__(self, cert: str, key: str) -> None:
        """Load them.

        Raises:
            CommandError: They can't be used.
        """
        self._cert = Path(cert)
        self._key = Path(key or cert)
        try:
            for each in (self._cert, self._key):
                each.stat()  # the error names a missing file
            self._seen, self._unusable_since = self._stamps(), 0.0
            self.context = self._load()
        except (OSError, ssl.SSLError, ValueError) as exc:
            why = f"{' and '.join(dict.fromkeys((str(self._cert), str(self._key))))}: {exc}."
            fix = "Use a certificate chain and its key in PEM form, without a passphrase: --tls-cert, --tls-key"
            if isinstance(exc, OSError) and exc.filename:
                why, fix = f"{exc.filename}: {exc.strerror}.", "Check the path, and that this user can read the file."
            elif "KEY_VALUES_MISMATCH" in str(exc):
                why = f"The key in {self._key} doesn't belong to the certificate in {self._cert}."
                fix = "Use the key that the certificate was issued for: --tls-key FILE"
            raise CommandError("The certificate can't be used.", why=why, fix=fix) from exc

    def _stamps(self) -> list[Stamp | None]:
        return [stamp_of(self._cert), stamp_of(self._key)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        return context

    def renew(self) -> bool:
        """Use the current files if they are new and valid. Return whether they were.

        Raises:
            LocalError: They can't be used, and not only for a moment between two writes.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        try:
            self._load()  # in a separate context first, because the active one must not be partly renewed
            self.context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as exc:
            self._unusable_since = self._unusable_since or time.monotonic()
            if time.monotonic() - self._unusable_since >= _PATIENCE:
                raise LocalError(
                    f"{self._cert} and {self._key} can't be used: {exc}. The old ones still serve."
                ) from exc
            return False
        self._seen, self._unusable_since = stamps, 0.0
        logger.info("The certificate was renewed.")
        return True

    def _find_date_problem(self) -> str:
        """Return why clients reject the certificate because of its dates, or soon will, or an empty string."""
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415  only servers with a certificate use it

        try:
            found, now = load_pem_x509_certificate(self._cert.read_bytes()), datetime.now(UTC)
        except (OSError, ValueError):
            return ""  # OpenSSL accepts more than this library
        end, begin = found.not_valid_after_utc, found.not_valid_before_utc
        if end < now + min(_NOTICE, (end - begin) / 3):
            return f"it {'expired' if end < now else 'expires'} on {end.date()}"
        return f"it is valid from {begin.isoformat()} on" if begin > now else ""

    async def watch(self, troubles: Troubles) -> None:
        """Renew the certificate when the files change, and check its dates every half an hour, until canceled."""
        renewal = LogOnce(
            troubles,
            "The certificate can't be renewed; retrying",
            "The certificate's files can be used.",
            catches=Exception,
            remedy="Write the renewed certificate and its key to both files.",
        )
        dates = LogOnce(
            troubles,
            f"Clients reject the certificate in {self._cert}, or soon will",
            f"The certificate in {self._cert} is valid.",
            remedy="Renew the certificate. If its dates are right, correct the clock of this machine.",
        )
        checked_at = -_OFTEN
        while True:
            with renewal:
                if self.renew() or time.monotonic() - checked_at >= _OFTEN:
                    checked_at = time.monotonic()
                    if problem := self._find_date_problem():
                        dates.fail(problem)
                    else:
                        dates.end()
            await asyncio.sleep(EVERY)


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")
