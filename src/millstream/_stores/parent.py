"""The parent's address, passed as text to workers, and the role of this process."""

from msgspec import Struct


class ParentAddress(Struct, frozen=True):
    """A UNIX socket in a private folder or, where there are none, a port of the loopback address with a secret."""

    path: str = ""
    port: int = 0
    secret: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.port}:{self.secret}"


def parse(text: str) -> ParentAddress:
    """The text form of an address."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return ParentAddress(path=rest)
    port, _, secret = rest.partition(":")
    return ParentAddress(port=int(port), secret=secret)


class _ParentConfig:
    """The configuration that this process got from its parent."""

    address: ParentAddress | None = None


def use_parent(text: str) -> None:
    """This process is a worker: its parent holds the stores that every process of a machine has for itself."""
    _ParentConfig.address = parse(text)


def parent_address() -> ParentAddress | None:
    """Return the address of the parent that has the stores, or None if this process isn't a worker."""
    return _ParentConfig.address
