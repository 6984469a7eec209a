"""The default token store: the system's key ring if available, or else a file."""

from millstream.client._oauth.store import FileTokenStore, MemoryTokenStore, TokenStore


def default_store() -> TokenStore:
    """Return the key ring, if the extra `keyring` is installed and the system has one, or else the file."""
    try:
        file = FileTokenStore()
    except RuntimeError:  # a user without a home directory, as in some containers
        return MemoryTokenStore()
    try:
        from millstream.client._oauth.keyring_store import KeyringTokenStore, works  # noqa: PLC0415  an optional dependency
    except ImportError:
        return file
    return KeyringTokenStore(file) if works() else file
