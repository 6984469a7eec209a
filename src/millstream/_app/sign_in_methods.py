"""The ways to sign in that the program and the settings name, put together as one guard.

A server without any imports nothing of `millstream.auth`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from millstream._config import Settings
from millstream._server.calls.services import Services
from millstream._server.features.registry import Registry

if TYPE_CHECKING:
    from millstream.auth._guard import Guard
    from millstream.auth._method import Given, Method


class Protected(Protocol):
    """What of a server's definition matters here."""

    auth: "tuple[Given, ...]"
    registry: Registry

    @property
    def title(self) -> str:
        """What people know it by."""
        ...


def given_methods(auth: "Given | Sequence[Given] | None") -> "tuple[Given, ...]":
    """What ``Server(auth=…)`` was given, as a tuple.

    Raises:
        TypeError: it is none of what `millstream.auth` makes. A list without any would protect nothing.
    """
    if auth is None:
        return ()
    if isinstance(auth, str):
        raise TypeError("auth is a string. If it is a key, write auth=auth.keys(…) around it.")
    methods = tuple(auth) if isinstance(auth, Sequence) else (auth,)
    if not methods:
        raise TypeError("auth=[] protects nothing. Leave it out, or name a method, such as auth.keys(…).")
    for each in methods:
        if not (hasattr(each, "identify") or hasattr(each, "bind")):
            raise TypeError(
                f"auth takes what millstream.auth makes, such as auth.keys(…), not {getattr(each, '__name__', each)!r}"
            )
    return methods


def is_protected(methods: "Sequence[Given]", settings: Settings) -> bool:
    """Whether callers have to sign in."""
    return bool(methods or settings.auth_key or settings.auth_keys)


def all_methods(of: Protected, services: Services) -> "list[Method]":
    """The methods of the program, then the keys of the settings.

    Raises:
        LocalError, ValueError: a key or a key file cannot be used, or there are two authorization servers.
    """
    from millstream.auth._method import Serving, Unbound  # noqa: PLC0415  only where somebody has to sign in

    settings, registry = services.settings, of.registry
    methods: list[Method] = [
        each.bind(services, of.title, lambda: registry.scopes) if isinstance(each, Unbound) else each
        for each in of.auth
    ]
    served: set[str] = set()
    for each in methods:
        if isinstance(each, Serving):
            paths = each.paths().keys()
            if served & paths:
                raise ValueError(
                    "A server has one auth.issuer(…), and one auth.oidc(…) with a client_id: their paths would be the "
                    "same."
                )
            served |= paths
    if settings.auth_key or settings.auth_keys:
        from millstream import auth  # noqa: PLC0415  only where somebody has to sign in

        methods.append(auth.keys(*([settings.auth_key] if settings.auth_key else []), file=settings.auth_keys))
    return methods


def make_guard(of: Protected, services: Services) -> "Guard | None":
    """The guard of a running server; None where nobody has to sign in.

    Raises:
        LocalError, ValueError: a key or a key file cannot be used, or there are two authorization servers.
    """
    if not is_protected(of.auth, services.settings):
        return None
    from millstream.auth._challenge import Challenges  # noqa: PLC0415  only where somebody has to sign in
    from millstream.auth._guard import Guard  # noqa: PLC0415

    methods = all_methods(of, services)
    resources = [each.resource for each in methods if each.resource]
    challenges = Challenges(
        resource=resources[0] if resources else "",
        oauth=any(each.issuers for each in methods),
        scopes=[scope for each in methods for scope in each.scopes],
    )
    return Guard(methods, challenges, ring=lambda: services.ring)
