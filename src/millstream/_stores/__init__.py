"""Stores of logs and maps, selected by URL. `base` defines the contract."""

import sys
from collections.abc import Callable
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import Backend
from millstream._stores.memory.store import MemoryBackend
from millstream._stores.store import Store
from millstream._stores.workers import parent_address


def open_store(url: str) -> Store:
    """Return the store for a URL. It isn't connected yet: await its `open`.

    Under a supervisor, the parent process runs the store, so all workers share it.

    Raises:
        LocalError: No store supports the URL's scheme.
    """
    return Store(backend_for(url))


def open_with_siblings(url: str, owner: str) -> Store | None:
    """Return a store that other processes of the same server share, or None if there can't be others.

    Args:
        url: URL of the store.
        owner: Name of the server.

    Raises:
        OSError: There may be others, but they can't share a store.
    """
    if sys.platform != "linux" or url.partition("://")[0] not in ("memory", "sqlite") or parent_address():
        return None
    from millstream._stores.local.siblings import SiblingBackend, shared_socket  # noqa: PLC0415  as for `_at_parent`

    shared = shared_socket()
    if shared:
        name = f"memory://\0{owner}"  # an application may have several servers
        if url != "memory://":
            from millstream._stores.sqlite.file import locate  # noqa: PLC0415  as in `_sqlite`

            name = locate(url).url
        return Store(SiblingBackend(shared, name))
    return None


def backend_for(url: str) -> Backend:
    """Return the backend for a URL, as for `open_store`."""
    scheme, separator, _ = url.partition("://")
    # Errors repeat the scheme only: the rest of the URL may contain a password.
    kind = (_KINDS.get(scheme) or _installed_factory(scheme)) if separator else None
    if kind is None:
        raise LocalError(f"Unknown store {scheme[:32]!r}. {_WHICH}")
    return kind(url)


def _installed_factory(scheme: str) -> Callable[[str], Backend] | None:
    """Return the factory that another package registers as a `millstream.stores` entry point."""
    from importlib.metadata import entry_points  # noqa: PLC0415  most programs use a store of ours

    for point in entry_points(group="millstream.stores", name=scheme):
        factory: Callable[[str], Backend] = point.load()
        return factory
    return None


def _memory(url: str) -> Backend:
    if url != "memory://":
        raise LocalError("memory:// takes no host or path. Write memory:// alone.")
    return _at_parent(url) or MemoryBackend()


def _sqlite(url: str) -> Backend:
    from millstream._stores.sqlite.file import locate  # noqa: PLC0415  loads SQLite only where it's used
    from millstream._stores.sqlite.store import SqliteBackend  # noqa: PLC0415

    location = locate(url)
    return _at_parent(location.url) or SqliteBackend(location)


def _redis(url: str) -> Backend:
    try:
        from millstream._stores.redis.store import RedisBackend  # noqa: PLC0415  needs an extra
    except ImportError as missing:
        if missing.name not in ("redis", "redis.asyncio", "hiredis"):
            raise
        raise LocalError("A store in Redis needs an extra package: pip install 'millstream[redis]'.") from None
    from millstream._stores.redis.address import parse_address  # noqa: PLC0415  loads TLS

    return RedisBackend(parse_address(url))


def _nats(url: str) -> Backend:
    try:
        from millstream._stores.nats.link import parse_address  # noqa: PLC0415  needs an extra
        from millstream._stores.nats.store import NatsBackend  # noqa: PLC0415
    except ImportError as missing:
        if missing.name != "nats":
            raise
        raise LocalError("A store in NATS needs an extra package: pip install 'millstream[nats]'.") from None
    return NatsBackend(parse_address(url))


def _at_parent(url: str) -> Backend | None:
    """Return the backend for this URL in the parent process, or None if there is no parent."""
    address = parent_address()
    if address is None:
        return None
    from millstream._stores.local.store import LocalBackend  # noqa: PLC0415  most processes aren't workers

    return LocalBackend(address, url)


_KINDS: Final[dict[str, Callable[[str], Backend]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    **{f"{scheme}{kind}": _redis for scheme in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")},
    "nats": _nats,
    "nats+tls": _nats,
}
_WHICH = (
    "Use memory:// or sqlite:///file.db on one machine, or redis://host or nats://host on any number of machines. "
    "For Redis with TLS, Sentinel, or a Cluster, use rediss://, redis+sentinel://, or redis+cluster://."
)
