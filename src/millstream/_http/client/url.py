"""URLs for a client: the address to connect to, and the request target."""

from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from millstream._http.client.errors import TargetError
from millstream._override import override

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Url(Struct, frozen=True):
    """An absolute URL without a fragment."""

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
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The scheme, host, and port."""
        return f"{self.scheme}://{self.authority}"

    @override
    def __str__(self) -> str:
        return self.origin + self.target

    def join(self, reference: str) -> "Url":
        """Resolve a relative or absolute reference against this URL."""
        try:
            return parse(urljoin(str(self), reference))
        except TargetError:
            raise
        except ValueError as exc:
            raise TargetError(f"{reference} is not a URL: {exc}.") from exc


def parse(text: str) -> Url:
    """Parse a URL.

    Raises:
        TargetError: it isn't an absolute http, https, ws, or wss URL, or it contains a password.
    """
    if any(ord(letter) <= 0x20 or ord(letter) == 0x7F for letter in text):
        raise TargetError(f"{text!r} is not a URL: it contains spaces or control characters.")
    try:
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            raise TargetError(f"{text} is not a URL: its port isn't a number from 0 to 65535.") from None
        host = (parts.hostname or "").encode("idna").decode() if parts.hostname else ""
    except (ValueError, UnicodeError) as exc:
        raise TargetError(f"{text} is not a URL: {exc}.") from exc
    if parts.scheme not in _PORTS or not host:
        raise TargetError(f"{text} is not a URL of a server. Use a URL such as https://example.com/mcp.")
    if parts.username is not None or parts.password is not None:
        raise TargetError(
            "A URL must not contain a user name or password. Send them in headers, for example Authorization."
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii():
        raise TargetError(f"{text} has non-ASCII characters in its path. Percent-encode them.")
    return Url(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target)
