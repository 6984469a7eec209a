"""Where bytes are kept: key-value, event log and bus, chosen by a URL. `base` has the contracts."""

from millstream.protocol.errors import LocalError
from millstream.stores.base import Store
from millstream.stores.local.address import Address, parent
from millstream.stores.memory.store import MemoryStore


def open_store(url: str) -> Store:
    """The store that a URL names. It is not connected yet: await its `open`.

    In a worker of a supervisor, the parent holds it.

    Raises:
        LocalError: no store of this kind exists.
    """
    scheme, separator, rest = url.partition("://")
    # Only the scheme is repeated: the rest of a URL may hold a password.
    if scheme != "memory" or not separator:
        raise LocalError(f"Unknown store {scheme[:32]!r}: the stores are memory:// (this process only).")
    if rest:
        raise LocalError("memory:// takes nothing behind it.")
    address = parent()
    return MemoryStore() if address is None else _at_parent(address, url)


def _at_parent(address: Address, url: str) -> Store:
    from millstream.stores.local.store import LocalStore  # noqa: PLC0415  most processes are nobody's workers

    return LocalStore(address, url)
