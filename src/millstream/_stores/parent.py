"""Where the parent listens, as a text that the supervisor gives to its workers, and which of these this process is."""

from msgspec import Struct


class ParentAddress(Struct, frozen=True):
    """A UNIX socket in a private folder or, where there are none, a port of the loopback address with a secret."""

    path: str = ""
    port: int = 0
    secret: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.port}:{self.secret}"


def parse(text: str) -> ParentAddress:
    """What `str` made of an address."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return ParentAddress(path=rest)
    port, _, secret = rest.partition(":")
    return ParentAddress(port=int(port), secret=secret)


class _ParentConfig:
    """What this process knows from its parent."""

    address: ParentAddress | None = None


def use_parent(text: str) -> None:
    """This process is a worker: its parent holds the stores that every process of a machine has for itself."""
    _ParentConfig.address = parse(text)


def parent_address() -> ParentAddress | None:
    """Where the parent of this worker holds the stores; None in a process that is nobody's worker."""
    return _ParentConfig.address
