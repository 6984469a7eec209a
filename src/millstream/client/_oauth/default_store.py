"""The default token store: the system's key ring if there is one, or else a file."""

from millstream.client._oauth.store import FileStore, MemoryStore, Store


def default_store() -> Store:
    """Return the key ring, if the extra `keyring` is installed and the system has one, or else the file."""
    try:
        file = FileStore()
    except RuntimeError:  # a user without a home directory, as in some containers
        return MemoryStore()
    try:
        from millstream.client._oauth.keyring_store import KeyringStore, works  # noqa: PLC0415  an optional dependency
    except ImportError:
        return file
    return KeyringStore(file) if works() else file
