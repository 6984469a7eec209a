"""What ``auth.google`` and ``auth.github`` take for ``auth.issuer``, besides their own options."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

from millstream._protocol.suggesting import refuse_unknown
from millstream._server.functions.description import Names
from millstream.auth._issuing.provider import Provider
from millstream.auth._issuing.records import Client


class IssuingOptions(TypedDict, total=False):
    """See `millstream.auth.issuer`."""

    clients: Sequence[Client]
    audience: str
    resources: Names
    scopes: Names
    described: Mapping[str, str]
    implied: Mapping[str, Names]
    registration: bool
    provider: Provider | None


_OWN = ("url", "allow", "client_id", "client_secret")


def check_options(where: str, given: Collection[str]) -> None:
    """Make sure that there are such options.

    Raises:
        TypeError: there aren't; the text says which one was probably meant.
    """
    refuse_unknown(where, given, (*_OWN, *IssuingOptions.__annotations__), {})
