"""URLs for a client: the address to connect to, the request target, and the proxy that the environment selects.

``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, and ``NO_PROXY`` are read as curl reads them, in upper or lower case
(https://everything.curl.dev/usingcurl/proxies/env.html). Hosts on this machine never use a proxy. https uses a tunnel
(CONNECT, RFC 9110 §9.3.6), and http an absolute URL in the request line (RFC 9112 §3.2.2).
"""

import base64
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from millstream._confidential import Confidential
from millstream._http.client.errors import ConnectFailed, TargetError
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.hosts import is_loopback
from millstream._override import override
from millstream._protocol.uri import encode_host, join_url, split_url

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


_FORBIDDEN = re.compile(r"[\x00-\x20\x7f]")


def _ascii_host(parts: SplitResult) -> str:
    """Return the host of a URL in ASCII.

    Raises:
        ValueError: It isn't a host.
    """
    host = encode_host(parts.hostname or "")
    if _FORBIDDEN.search(host):  # IDNA turns U+00A0 into a space, which would end the target of a request line
        raise ValueError("its host contains spaces")
    return host


def _bracket(host: str) -> str:
    """Return a host as written before a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


class Url(Struct, frozen=True):
    """An absolute URL without a fragment: ``parse_url("https://example.com/mcp").origin``."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def secure(self) -> bool:
        """Whether TLS protects the connection."""
        return self.scheme in ("https", "wss")

    @property
    def authority(self) -> str:
        """The value of the `Host` header."""
        host = _bracket(self.host)
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The scheme, host, and port."""
        return f"{self.scheme}://{self.authority}"

    @override
    def __str__(self) -> str:
        return self.origin + self.target

    def join(self, reference: str) -> "Url":
        """Resolve a relative or absolute reference against this URL.

        Args:
            reference: The reference (RFC 3986 §4.1), such as the value of a `Location` header.
        """
        try:
            return parse_url(join_url(str(self), reference))
        except ValueError as exc:
            raise TargetError(f"{reference} isn't a valid URL: {exc}.") from exc


def parse_url(text: str) -> Url:
    """Parse a URL: ``parse_url("https://example.com/mcp")``.

    Args:
        text: The URL.

    Raises:
        TargetError: It isn't an absolute http, https, ws, or wss URL, or it contains a password.
    """
    if _FORBIDDEN.search(text):
        raise TargetError(f"{text!r} isn't a valid URL: it contains spaces or control characters.")
    try:
        parts = split_url(text)
        try:
            port = parts.port
        except ValueError:
            raise TargetError(f"{text} isn't a valid URL: its port isn't a number from 0 to 65535.") from None
        host = _ascii_host(parts)
    except ValueError as exc:
        raise TargetError(f"{text} isn't a valid URL: {exc}.") from exc
    if parts.scheme not in _PORTS or not host:
        raise TargetError(f"{text} isn't a server URL. Use a URL such as https://example.com/mcp.")
    if parts.username is not None or parts.password is not None:
        raise TargetError(
            "A URL must not contain a user name or password. Send them in headers, for example Authorization."
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii():
        raise TargetError(f"{text} has non-ASCII characters in its path. Percent-encode them.")
    return Url(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target)


class Proxy(Confidential, Struct, frozen=True):
    """A proxy and its credentials."""

    host: str
    port: int
    credentials: str = ""
    """The value of `Proxy-Authorization`."""
    address: str = ""
    """The URL as configured."""

    @override
    def __str__(self) -> str:
        return f"http://{_bracket(self.host)}:{self.port}"

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers for this proxy."""
        return {"Proxy-Authorization": self.credentials} if self.credentials else {}

    def connect(self, url: Url) -> bytes:
        """Return a request for a tunnel to the server of a URL."""
        place = f"{_bracket(url.host)}:{url.port}"
        return encode_request("CONNECT", place, encode_headers({"Host": place, **self.headers}))

    def forward(self, url: Url, request: bytes) -> bytes:
        """Return a request in the form for a proxy, with the absolute URL and the proxy's own headers."""
        method, _, rest = request.partition(b" ")
        line, end, fields = rest.partition(b"\r\n")
        return b"%b %b%b%b%b%b" % (
            method, url.origin.encode(), line, end, encode_headers(self.headers).encode(), fields
        )  # fmt: skip


def proxy_for(url: Url, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy for a URL, or None to connect directly.

    Raises:
        TargetError: The variable isn't the URL of a supported proxy.
    """
    variables = os.environ if environment is None else environment
    scheme = "https" if url.secure else "http"
    name, value = _variable(variables, f"{scheme}_proxy")
    if not value:
        name, value = _variable(variables, "all_proxy")
    is_local = is_loopback(url.host) or url.host.endswith(".localhost")
    if not value or is_local or _is_excluded(url, _variable(variables, "no_proxy")[1]):
        return None
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = _ascii_host(parts), parts.port or 80
        if parts.scheme != "http" or not host:
            raise ValueError
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    except ValueError:
        raise TargetError(
            f"{name} isn't the URL of a supported proxy. Set it to a URL such as http://proxy.example.com:3128."
        ) from None
    credentials = f"Basic {base64.b64encode(user).decode()}" if parts.username else ""
    return Proxy(host, port, credentials, parts.geturl())


def _variable(variables: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the name and value of a variable. Lower case takes precedence.

    Ignore an upper-case HTTP_PROXY under CGI, where it may come from a request header.
    """
    if variables.get(name):
        return name, variables[name].strip()
    upper = name.upper()
    return upper, "" if upper == "HTTP_PROXY" and "REQUEST_METHOD" in variables else variables.get(upper, "").strip()


def _is_excluded(url: Url, exceptions: str) -> bool:
    """Return whether an exception list matches. Names include subdomains, a port can follow, networks such as
    ``10.0.0.0/8`` include their addresses, and ``*`` matches everything.
    """
    for each in exceptions.replace(" ", ",").split(","):
        name, colon, port = each.strip().rpartition(":") if each.count(":") == 1 else (each.strip(), "", "")
        if colon and port != str(url.port):
            continue
        name = name.strip("[]").removeprefix("*.").removeprefix(".").lower()
        if name and (name in ("*", url.host) or url.host.endswith(f".{name}")):
            return True
        with suppress(ValueError):  # the host or the entry is a name
            if "/" in name and ip_address(url.host) in ip_network(name, strict=False):
                return True
    return False


def proxy_error(proxy: Proxy, url: Url, status: int) -> ConnectFailed:
    """Return the error for a proxy that refused to connect."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        if proxy.credentials:
            return ConnectFailed(
                f"The proxy {proxy} rejected the name or password in the variable (407). Correct them."
            )
        return ConnectFailed(
            f"The proxy {proxy} requires credentials (407). Add them to the variable: "
            f"http://name:password@{proxy.host}:{proxy.port}"
        )
    return ConnectFailed(f"The proxy {proxy} refused to connect to {url.origin} ({status}).")


def no_proxy(proxy: Proxy, exc: OSError) -> ConnectFailed:
    """Return the error for an unreachable proxy."""
    return ConnectFailed(f"Can't connect to the proxy {proxy} from the environment: {exc.strerror or exc}.")
