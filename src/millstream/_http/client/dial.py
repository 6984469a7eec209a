"""Dial functions for connection pools: to any address, or only to addresses that a guard accepts.

The guard is for URLs from untrusted sources (SSRF). It resolves a name once, checks every address, and connects to one
of the checked addresses, so DNS rebinding has no effect.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import Lock, Thread
from typing import Any, TypeVar, cast

from millstream._http.client.url import Url
from millstream._protocol.share import Share

P = TypeVar("P", bound=asyncio.Protocol)

Dial = Callable[[Callable[[], P], Url, ssl.SSLContext | None], Awaitable[P]]
"""``await dial(make_protocol, url, tls)`` connects to the server of a URL."""
AddressCheck = Callable[[str], bool]
"""Returns whether connecting to an address is permitted."""

_NAT64 = 0x0064FF9B << 96
"""64:ff9b::/96, RFC 6052: the last 32 bits are an IPv4 address."""
_lookups = Share(16)
"""The running lookups of untrusted names in this process."""
_lock = Lock()
"""Held while `_lookups` changes, because lookups end in threads."""
_INTERNET = (ip_network("0.0.0.0/0"), ip_network("2000::/3"))
"""IPv4, and the assigned global unicast range of IPv6 (RFC 4291 §2.4)."""
_SPECIAL_NETWORKS = tuple(map(ip_network, (
    # https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    # https://www.iana.org/assignments/iana-ipv6-special-registry: with Teredo and 6to4, which embed IPv4 addresses
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    # the metadata service of Azure
    "168.63.129.16/32",
)))  # fmt: skip
"""Networks that aren't the public Internet. `ipaddress.is_global` differs between versions of Python."""


class AddressRefused(Exception):
    """The guard accepts no address of the host, or too many lookups are running. The text names the host."""


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public Internet, in any notation."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = IPv4Address(int(ip) & 4294967295) if int(ip) >> 32 == _NAT64 >> 32 else ip.ipv4_mapped or ip
    return any(ip in each for each in _INTERNET) and not any(ip in each for each in _SPECIAL_NETWORKS)


def allow_any(address: str) -> bool:
    """Accept any address, because the operator configured the URL."""
    return True


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine, by a name that needs no lookup."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


async def connect_directly(make: Callable[[], P], url: Url, tls: ssl.SSLContext | None) -> P:
    """Connect to the server of a URL, at any of its addresses."""
    _, protocol = await asyncio.get_running_loop().create_connection(make, url.host, url.port, ssl=tls)
    return protocol


def guard_dial(is_allowed: AddressCheck, owner: str = "") -> Dial[Any]:
    """Return a dial function that connects only to addresses that `is_allowed` accepts.

    Lookups count against the share of `owner`, see `Share`.

    A name is refused if any of its addresses isn't accepted, because that suggests an attack. Names of this machine
    resolve to loopback addresses only, which `is_public` refuses.
    """

    async def connect(make: Callable[[], P], url: Url, tls: ssl.SSLContext | None) -> P:
        address, port = await _resolve(url.host, url.port, is_allowed, owner)
        name = url.host if tls is not None else None
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(make, address, port, ssl=tls, server_hostname=name)
        return protocol

    return connect


async def _resolve(host: str, port: int, is_allowed: AddressCheck, owner: str) -> tuple[str, int]:
    loop = asyncio.get_running_loop()
    found = await (
        _look_up(host, port, owner)
        if is_allowed is is_public
        else loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    addresses = [cast("tuple[Any, ...]", each[4]) for each in found]
    is_local = is_this_machine(host)
    for each in addresses:
        if not (ip_address(str(each[0]).partition("%")[0]).is_loopback if is_local else is_allowed(str(each[0]))):
            raise AddressRefused(f"Requests to the address of {host} aren't allowed.")
    if is_local and is_allowed is is_public:
        raise AddressRefused(f"Requests to the address of {host} aren't allowed.")
    return str(addresses[0][0]), int(addresses[0][1])


async def _look_up(host: str, port: int, owner: str) -> list[Any]:
    """Look up an untrusted name, whose name server may never answer.

    A lookup can't be cancelled, so each runs in its own thread, up to a limit. That keeps the event loop's thread pool
    free for other work, such as hashing passwords.
    """
    with _lock:
        if not _lookups.take(owner):
            raise AddressRefused("Too many names are being looked up. Retry later.")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def finish(result: list[Any] | OSError | UnicodeError) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    def run() -> None:
        result: list[Any] | OSError | UnicodeError
        try:
            result = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            result = exc
        finally:
            with _lock:
                _lookups.leave(owner)
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(finish, result)

    Thread(target=run, name="lookup", daemon=True).start()
    return await found
