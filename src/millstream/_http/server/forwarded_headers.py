"""The client behind a trusted proxy, from ``X-Forwarded-For`` and ``X-Forwarded-Proto``."""

import os
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from millstream._http.message import HttpRequest

VARIABLE = "FORWARDED_ALLOW_IPS"
"""The environment variable with trusted addresses and networks, separated by commas; ``*`` trusts every peer."""


class TrustedProxies:
    """Addresses whose forwarded headers are trusted."""

    __slots__ = ("_all", "_networks", "trusts")

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
        if self._all:
            return True
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in each for each in self._networks)

    def scheme(self, headers: dict[bytes, bytes]) -> str:
        """Return the scheme that the proxy reports, or an empty string."""
        scheme = headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip()
        return scheme if scheme in ("http", "https", "ws", "wss") else ""

    def client(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the last address of the chain that is not a trusted proxy, or an empty string."""
        chain = [
            _without_port(each.strip())
            for name, value in headers
            if name == b"x-forwarded-for"
            for each in value.decode("latin-1").split(",")
        ]
        if not chain or self._all:
            return chain[0] if chain else ""
        return next((each for each in reversed(chain) if len(each) > _MAX_ADDRESS or not self.trusts(each)), chain[0])

    def apply(self, request: HttpRequest) -> None:
        """Set the peer and scheme of a request from its proxy's headers."""
        scheme = self.scheme(request.headers)
        if scheme in ("http", "https"):
            request.scheme = scheme
        request.peer = self.client(request.raw_headers) or request.peer


_MAX_ADDRESS = 64
"""Maximum characters of an address. Longer texts can't be trusted and would fill the cache."""


def _without_port(value: str) -> str:
    """Return the address in ``192.0.2.1:80`` or ``[2001:db8::1]:80``, or any other text unchanged."""
    if value.startswith("["):
        host, bracket, rest = value[1:].partition("]")
        return host if bracket and (not rest or rest.startswith(":")) else value
    if value.count(":") == 1:
        host, _, port = value.partition(":")
        return host if port.isdigit() else value
    return value
