"""The address of a NATS store, from its URL."""

import re
import ssl
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

from millstream._override import override
from millstream._protocol.errors import LocalError

_PORT = 4222
_MAX_REPLICAS = 5
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SYNTAX = (
    "Write nats://[user:password@ or token@]host[:port][,host…], with ?replicas=1, 3 or 5, ?namespace=name, "
    "?credentials=file. nats+tls:// connects by TLS."
)


class NatsAddress(Struct, frozen=True):
    """The servers' addresses and the storage options."""

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    """The path of a credentials file."""
    replicas: int = 1
    namespace: str = "millstream"
    """The prefix of all JetStream stream names."""
    tls: ssl.SSLContext | None = None

    @override
    def __repr__(self) -> str:
        return f"NatsAddress({', '.join(self.servers)})"


def parse_address(url: str) -> NatsAddress:
    """Read a URL.

    Raises:
        LocalError: The URL isn't valid for a NATS store. The text doesn't repeat it, because it may contain a password.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    login, at, hosts = rest.rpartition("@")
    hosts = hosts.rstrip("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    replicas = options.pop("replicas", "1")
    namespace = options.pop("namespace", "millstream")
    credentials = options.pop("credentials", None)
    if options or not hosts or "/" in hosts:
        raise LocalError(f"This URL of a NATS store is invalid. {_SYNTAX}")
    if not replicas.isdigit() or int(replicas) not in range(1, _MAX_REPLICAS + 1):
        raise LocalError(f"The number of replicas must be 1 to {_MAX_REPLICAS}. {_SYNTAX}")
    if not _NAMESPACE.fullmatch(namespace):
        raise LocalError("The namespace of a NATS store must have 1 to 32 letters, digits, hyphens, and underscores.")
    if credentials is not None and not Path(credentials).is_file():
        raise LocalError("The credentials file of the NATS store doesn't exist.")
    user, colon, password = login.partition(":")
    return NatsAddress(
        tuple(f"nats://{_with_port(host)}" for host in hosts.split(",")),
        user=unquote(user) if colon else None,
        password=unquote(password) if colon else None,
        token=unquote(user) if at and not colon else None,
        credentials=credentials,
        replicas=int(replicas),
        namespace=namespace,
        tls=ssl.create_default_context() if scheme.endswith("+tls") else None,
    )


def _with_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(_PORT)
    if not name or not port.isdigit() or not 0 < int(port) < 2**16:
        raise LocalError(f"A server in the URL of the NATS store has no valid host or port. {_SYNTAX}")
    return f"{name}:{port}"
