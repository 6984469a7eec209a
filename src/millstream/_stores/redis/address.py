"""Redis addresses, parsed from the store's URL. Passwords never appear in errors or logs."""

import ssl
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

from millstream._override import override
from millstream._protocol.errors import LocalError

_PORTS = {"": 6379, "+cluster": 6379, "+sentinel": 26379}
_OPTIONS = frozenset({"prefix", "ca", "cert", "key", "sentinel_user", "sentinel_password", "wait"})
_MOST_REPLICAS = 100
_PREFIX = "millstream:"


class RedisAddress(Struct, frozen=True):
    """The address of a single server, a set of Sentinels, or a Cluster."""

    kind: str
    """Empty for a single server, else ``+sentinel`` or ``+cluster``."""
    hosts: tuple[tuple[str, int], ...]
    user: str = ""
    password: str = ""
    database: int = 0
    service: str = ""
    """The primary's name in Sentinel."""
    sentinel_user: str = ""
    sentinel_password: str = ""
    prefix: str = _PREFIX
    """Prefix of every key, so several applications can share one Redis."""
    wait: int = 0
    """Number of replicas that must confirm an append."""
    tls: dict[str, Any] = {}
    """TLS options for redis-py. Empty without TLS."""

    @override
    def __repr__(self) -> str:
        return f"RedisAddress({self})"

    @override
    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def parse_address(url: str) -> RedisAddress:
    """Parse a store URL.

    Raises:
        LocalError: The URL has an unsupported form.
    """
    scheme, _, rest = url.partition("://")
    name, plus, topology = scheme.partition("+")
    kind = plus + topology
    try:
        # redis-py can't parse URLs with several hosts.
        parts = urlsplit(f"redis://{rest}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        unknown = options.keys() - _OPTIONS
        if "@" in parts.path or (unknown and "@" in parts.query):
            raise ValueError  # a password with / or ?, which another error could show
        if unknown:
            raise LocalError(f"Unknown option {min(unknown)[:32]!r}. The options are {', '.join(sorted(_OPTIONS))}.")
        user, password = _credentials(parts)
        database, service = _path(parts.path, kind)
        prefix = options.get("prefix", _PREFIX)
        if not prefix.isascii() or not prefix.isprintable() or set(prefix) & set("{}*?[]\\ "):
            raise LocalError("The prefix must consist of visible ASCII characters, except {}*?[]\\.")
        return RedisAddress(
            kind=kind,
            hosts=_hosts(parts.netloc.rpartition("@")[2], _PORTS[kind]),
            user=user,
            password=password,
            database=database,
            service=service,
            sentinel_user=options.get("sentinel_user", ""),
            sentinel_password=options.get("sentinel_password", ""),
            prefix=prefix,
            wait=_wait(options.get("wait", "0")),
            tls=_tls(options) if name == "rediss" else {},
        )
    except LocalError as wrong:
        raise LocalError(f"The URL of the store ({scheme}://…) can't be used. {wrong}") from None
    except ValueError:
        # The original error may repeat parts of the URL, such as a password.
        raise LocalError(
            f"The URL of the store ({scheme}://…) is invalid. Write it as {_form(scheme, kind)}, and "
            "percent-encode special characters in the password."
        ) from None


def _form(scheme: str, kind: str) -> str:
    hosts = "HOST:PORT,HOST:PORT" if kind else "HOST:PORT"
    path = {"": "/DATABASE", "+sentinel": "/SERVICE/DATABASE", "+cluster": ""}[kind]
    return f"{scheme}://USER:PASSWORD@{hosts}{path}"


def _credentials(parts: SplitResult) -> tuple[str, str]:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return unquote(user, errors="strict"), unquote(password, errors="strict")


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for each in text.split(","):
        one = urlsplit(f"redis://{each}")
        if not one.hostname:
            raise LocalError("It has no host.")
        found.append((one.hostname, one.port or port))
    return tuple(found)


def _path(path: str, kind: str) -> tuple[int, str]:
    parts = [unquote(part, errors="strict") for part in path.split("/")[1:] if part]
    service = ""
    if kind == "+sentinel":
        if not parts:
            raise LocalError("The Sentinel service name is missing: redis+sentinel://HOST:PORT/SERVICE.")
        service = parts.pop(0)
    if not parts:
        return 0, service
    if len(parts) > 1 or not (parts[0].isascii() and parts[0].isdigit()):
        raise LocalError("The path must be the database number.")
    if kind == "+cluster" and int(parts[0]):
        raise LocalError("A Cluster has only database 0.")
    return int(parts[0]), service


def _wait(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= _MOST_REPLICAS):
        raise LocalError(f"wait must be a number of replicas, at most {_MOST_REPLICAS}.")
    return int(text)


def _tls(options: dict[str, str]) -> dict[str, Any]:
    try:  # load files now, so a wrong path is reported as such and not as a failed connection
        context = ssl.create_default_context(cafile=options.get("ca"))
        if "cert" in options:
            context.load_cert_chain(options["cert"], options.get("key"))
    except OSError as failure:
        raise LocalError(f"Its certificates can't be read: {failure.strerror or type(failure).__name__}.") from None
    return {
        "ssl": True,
        "ssl_check_hostname": True,
        "ssl_ca_certs": options.get("ca"),
        "ssl_certfile": options.get("cert"),
        "ssl_keyfile": options.get("key"),
    }
