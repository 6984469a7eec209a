"""The parent's address, passed as text to workers, and the role of this process."""

from msgspec import Struct

from millstream._override import override


class ParentAddress(Struct, frozen=True):
    """A UNIX socket in a private folder or, on systems without UNIX sockets, a loopback port with a secret."""

    path: str = ""
    port: int = 0
    secret: str = ""

    @override
    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.port}:{self.secret}"


def parse(text: str) -> ParentAddress:
    """Parse the text form of an address."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return ParentAddress(path=rest)
    port, _, secret = rest.partition(":")
    return ParentAddress(port=int(port), secret=secret)


class _ParentConfig:
    """The configuration that this process got from its parent."""

    address: ParentAddress | None = None


def use_parent(text: str) -> None:
    """Use the parent process for stores that would otherwise be private to this process."""
    _ParentConfig.address = parse(text)


def parent_address() -> ParentAddress | None:
    """Return the address of the parent's store server, or None if this process isn't a worker."""
    return _ParentConfig.address
