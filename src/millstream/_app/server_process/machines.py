"""Connections between the machines of one server, at the address of the setting `peer`.

They use mutual TLS with a key and certificate that each machine derives from the server's secret. So nobody else can
read or send requests, and someone who can write to the store can neither name a worker nor receive requests.
"""

import asyncio
import datetime as dt
import errno
import hmac
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from millstream._app.server_process import CommandError
from millstream._app.server_process.listen_sockets import MAX_PORT, address_of
from millstream._http.client.connection import HttpConnection
from millstream._http.message import peer_network
from millstream._http.server.listener import BACKLOG, SocketListener, set_options
from millstream._protocol.principal import Share
from millstream._tasks import Tasks, retry_delay
from millstream._troubles import PAUSE

_NAME = "millstream-peer"
"""The name that each certificate has."""
_LABEL = b"millstream peer certificate v1"
_PORTS = 100
"""Number of ports that are tried, from the one in the address: enough for all workers, also while they're replaced."""
_MAX_HANDSHAKES = 64
"""Maximum unfinished handshakes. More connections wait in the system's backlog."""
_HANDSHAKE_SECONDS = 0.5
"""Age at which an unfinished handshake makes room: the oldest one of the address that has the most."""
_MAX_FAILED = 32
"""Maximum handshakes per address and `PAUSE` that fail, so that a flood of them uses little CPU."""
_RETRIES = 4
"""Number of retries if a connection is reset, because a process that ends does that before it refuses connections."""


class PeerPort:
    """This worker's port for requests from other machines, and its connections to theirs.

    Args:
        listener: Serves the connections from other machines.
        address: The setting `peer`. Each worker has a port of its own: any free one, or the first free one from the
            port in the address.
        secrets: The secrets of all machines. The first one's certificate is presented, and all are accepted.
    """

    def __init__(self, listener: SocketListener, address: str, secrets: Sequence[bytes]) -> None:
        self._listener = listener
        self._receiving, self._sending = make_contexts(secrets)
        self._address = address
        self._handshakes: dict[asyncio.Task[None], tuple[str, float]] = {}
        """Unfinished handshakes, from the oldest to the newest: their addresses, and when they began."""
        self._room = asyncio.Event()
        """Set when a handshake has ended."""
        self._failed = Share(each=_MAX_FAILED)
        self._tasks = Tasks()

    def listen(self, timeout: float) -> tuple[str, int]:
        """Accept connections from other machines. Return the address and port.

        Args:
            timeout: Seconds for a handshake.

        Raises:
            CommandError: The address can't be used.
        """
        host, _, port = (
            self._address.rpartition(":")
            if self._address.count(":") == 1 or "]" in self._address
            else (self._address, "", "")
        )
        try:
            sock = _bind(host.strip("[]"), int(port or 0))
        except OSError as exc:
            why = f"{exc.strerror or exc}."
            fix = "Set MILLSTREAM_PEER to an address of this machine that the other machines can reach."
            if port and exc.errno == errno.EADDRINUSE:
                why = f"The ports from {port} to {min(int(port) + _PORTS - 1, MAX_PORT)} are in use."
                fix = "Set MILLSTREAM_PEER to the address with another port, or without one."
            raise CommandError("Can't listen for other machines.", why=why, fix=fix) from exc
        set_options(sock, timeout)
        sock.setblocking(False)
        self._tasks.spawn(self._accept(sock, timeout))
        return address_of(sock)

    async def close(self) -> None:
        """Accept no more connections, and end unfinished handshakes."""
        await self._tasks.close()

    async def connect(
        self, make: Callable[[], HttpConnection], host: str, port: int, *, patience: float
    ) -> HttpConnection:
        """Connect to a worker on another machine.

        Args:
            patience: Seconds without an acknowledgment after which the connection ends, because the network is cut.

        Raises:
            OSError: It can't be reached, or doesn't have the secret.
        """
        loop, attempt, made = asyncio.get_running_loop(), 0, None
        while made is None:
            if attempt:
                await asyncio.sleep(retry_delay(attempt, 0.025, 1.0))
            attempt += 1
            try:
                made = await loop.create_connection(make, host, port, ssl=self._sending, server_hostname=_NAME)
            except ConnectionError as exc:
                if isinstance(exc, ConnectionRefusedError) or attempt > _RETRIES:
                    raise
        transport, connection = made
        set_options(transport.get_extra_info("socket"), patience)
        return connection

    async def _accept(self, sock: socket.socket, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            while True:
                accepted = None
                with suppress(OSError):  # too many open files
                    accepted = await loop.sock_accept(sock)
                if accepted is None:
                    await asyncio.sleep(PAUSE)
                    continue
                connection, (host, *_) = accepted
                owner = peer_network(host)
                if not self._failed.has_room(owner):
                    connection.close()
                    continue
                task = self._tasks.spawn(self._shake_hands(connection, owner, timeout))
                self._handshakes[task] = owner, loop.time()
                await asyncio.sleep(0)  # a task that hasn't begun can't close its connection
                while len(self._handshakes) >= _MAX_HANDSHAKES and not self._make_room(loop.time()):
                    self._room.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_HANDSHAKE_SECONDS):
                            await self._room.wait()

    def _make_room(self, now: float) -> bool:
        """End the oldest handshake of the address that has the most. Return False if all of its are young."""
        crowd = Counter(owner for owner, _ in self._handshakes.values()).most_common(1)[0][0]
        oldest, began = next((task, at) for task, (owner, at) in self._handshakes.items() if owner == crowd)
        if now - began < _HANDSHAKE_SECONDS:
            return False
        del self._handshakes[oldest]
        return oldest.cancel()

    async def _shake_hands(self, connection: socket.socket, owner: str, timeout: float) -> None:
        """Serve a connection once its handshake has succeeded."""
        make, tls, loop = self._listener.make_protocol, self._receiving, asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  it runs
        try:
            await loop.connect_accepted_socket(make, connection, ssl=tls, ssl_handshake_timeout=timeout)
        except asyncio.CancelledError:
            connection.close()
        except OSError:
            connection.close()
            self._failed.force(owner)
            loop.call_later(PAUSE, self._failed.leave, owner)
        finally:
            self._handshakes.pop(task, None)
            self._room.set()


def _bind(host: str, first: int) -> socket.socket:
    """Listen at the first free port. The workers don't share one, because a frozen worker would get others' requests.

    Raises:
        OSError: The address can't be used, or all ports are in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    error = OSError(f"{first} isn't a valid port")
    for port in range(first, min(first + _PORTS, MAX_PORT + 1)):
        try:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as exc:
            error = exc
            if exc.errno != errno.EADDRINUSE:
                break
    raise error


def make_contexts(secrets: Sequence[bytes]) -> list[ssl.SSLContext]:
    """Return the TLS contexts for receiving and for sending."""
    contexts: list[ssl.SSLContext] = []
    pairs = [_derive(each) for each in secrets]
    for protocol in ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        with tempfile.NamedTemporaryFile() as file:  # with mode 0600, because OpenSSL reads keys from files only
            file.write(b"".join(pairs[0]))
            file.flush()
            context.load_cert_chain(file.name)
        context.load_verify_locations(cadata="".join(certificate.decode() for _, certificate in pairs))
        contexts.append(context)
    contexts[0].num_tickets = 0
    return contexts


def _derive(secret: bytes) -> tuple[bytes, bytes]:
    """Return a key and its certificate as PEM. Ed25519 signs without random bits, so machines get the same.

    The subject identifies the key, because OpenSSL finds one certificate per subject in those that it trusts.
    """
    key = Ed25519PrivateKey.from_private_bytes(hmac.digest(secret, _LABEL, "sha256"))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key.public_key().public_bytes_raw().hex())])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, tzinfo=dt.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, certificate.public_bytes(Encoding.PEM)
