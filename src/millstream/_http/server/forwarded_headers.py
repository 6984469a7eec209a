"""The client behind a trusted proxy, from ``X-Forwarded-For`` and ``X-Forwarded-Proto``."""

import os
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from millstream._http.message import HttpRequest

VARIABLE = "FORWARDED_ALLOW_IPS"
"""The environment variable with trusted addresses and networks, separated by commas.

``*`` trusts every peer, as the only proxy.
"""


class TrustedProxies:
    """Addresses whose forwarded headers are trusted."""

    def __init__(self, entries: Iterable[str]) -> None:
        names = [each.strip() for each in entries]
        self._all = "*" in names
        networks: list[IPv4Network | IPv6Network] = []
        for each in names:
            try:
                networks.append(ip_network(each))
            except ValueError:
                continue  # Skip names, because a peer's address is never a name.
        self._networks = networks
        self.trusts = lru_cache(maxsize=1024)(self._trusts)

    @classmethod
    def from_environment(cls) -> "TrustedProxies":
        """Return the proxies of `VARIABLE`, or the IPv4 loopback address."""
        return cls(os.environ.get(VARIABLE, "127.0.0.1").split(","))

    def _trusts(self, address: str) -> bool:
        """Return whether an address is a trusted proxy."""
        normalized = _normalize(address)
        return self._all or (bool(normalized) and any(ip_address(normalized) in each for each in self._networks))

    def scheme(self, headers: dict[bytes, bytes]) -> str:
        """Return the scheme that the proxy reports, or an empty string."""
        scheme = headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip()
        return scheme if scheme in ("http", "https", "ws", "wss") else ""

    def client(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address that the trusted proxies report, or an empty string.

        It's the last one that isn't a proxy's own. Addresses further left are what the client itself has sent.
        """
        found = ""
        values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        for entry in reversed(",".join(values).split(",") if values else ()):
            address = _normalize(entry)
            if address:
                found = address
            if not address or self._all or not self.trusts(address):
                break
        return found

    def apply(self, request: HttpRequest) -> None:
        """Set the peer and scheme of a request from its proxy's headers."""
        scheme = self.scheme(request.headers)
        if scheme in ("http", "https"):
            request.scheme = scheme
        request.peer = self.client(request.raw_headers) or request.peer


def _normalize(entry: str) -> str:
    """Return the usual spelling of an address such as ``192.0.2.1:80`` or ``[2001:db8::1%eth0]``, or an empty string.

    A second spelling would be a second client for every limit.
    """
    text, bracket, _ = entry.strip().removeprefix("[").partition("]")
    if not bracket and text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)
