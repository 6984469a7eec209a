"""Where tokens are kept unless a program says so: the key ring of the system if there is one, else a file."""

from millstream.client._oauth.store import FileStore, MemoryStore, Store


def default_store() -> Store:
    """The key ring, where the extra `keyring` is installed and the system has one; else the file, if there's a home."""
    try:
        file = FileStore()
    except RuntimeError:  # a user without a home, as in some containers
        return MemoryStore()
    try:
        from millstream.client._oauth.keyring_store import KeyringStore, works  # noqa: PLC0415  an optional dependency
    except ImportError:
        return file
    return KeyringStore(file) if works() else file
