"""Authentication: the guard in front of paths that aren't public, and the paths for signing in."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._http.message import Handler
from millstream._limits import Rate
from millstream._parts import PartHost, Route
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import EVERYTHING
from millstream._server.dispatch import Dispatcher

if TYPE_CHECKING:
    from millstream.auth._guard import AuthGuard
    from millstream.auth._method import AuthMethod

logger = logging.getLogger("millstream")

_STYLES = (
    "/assets/tokens.css", "/assets/basics.css", "/assets/base.css", "/assets/sign-in.css", "/assets/vendor/inter.woff2",
)  # fmt: skip
"""Style sheets and font of the authorization server's pages."""


class AuthPart(OwnPart):
    """Combines the auth methods of the program and the settings into one guard."""

    name: str = "auth"

    async def open(self, host: PartHost) -> None:
        """Create the guard, if callers have to sign in.

        Raises:
            LocalError, ValueError: A key or a key file can't be used, or there are two authorization servers.
        """
        definition, services = self.definition, host.services
        if not definition.protected:
            host.on_http(lambda: _check_mounted(definition))
            return
        from millstream.auth._guard import Addresses, AuthGuard, ChallengeResponses  # noqa: PLC0415
        from millstream.auth._method import addresses_for  # noqa: PLC0415

        methods, settings = _methods(definition, host), host.settings
        issuing = [each for each in methods if each.issuers]
        resource = next((each.resource for each in issuing if each.resource), "")
        if issuing and not resource:
            logger.warning(
                "Clients can't tell for sure which URL their tokens are for, because the audience of %s isn't a URL. "
                "The metadata advertises the address that each client uses, which may be wrong behind a proxy. Pass "
                "resource=, such as resource='https://mcp.example.com%s'.",
                issuing[0].issuers[0],
                settings.path,
            )

        def accept(dispatcher: Dispatcher) -> None:
            for each in issuing:
                each.serve_at(sorted({*addresses_for(each.resource, services.addresses).values()}))

        host.at_each_address(accept)
        challenges = ChallengeResponses(
            addresses=Addresses(resource, services.addresses) if issuing else None,
            oauth=any(each.issuers or each.shows for each in methods),
            scope_prefix=issuing[0].scope_prefix if issuing else "",
            scopes=[scope for each in methods for scope in each.scopes],
        )
        host.guard = guard = AuthGuard(
            methods,
            challenges,
            key_header=settings.auth_key_header,
            failures=Rate.of(settings.limit_failed_sign_ins),
        )
        guard.on_failure = services.report_failed_sign_in
        host.on_close(guard.close)
        services.scope_error = challenges.refuse
        services.threads.places.several = guard.has_several()
        for each in guard.methods:
            host.shared_paths |= set(each.shared_paths())
        if host.store.shared:
            guard.pool = services.pool = host.pool

        def end_streams(now: float) -> None:
            if guard.refresh(host.streams.end_revoked):
                for opened in host.streams, services.questions, services.parked:
                    opened.end_of(guard.lacks)

        host.every_second(end_streams)
        host.on_http(lambda: self._serve(host, guard))

    def _serve(self, host: PartHost, guard: "AuthGuard") -> None:
        from millstream._web.pages import asset_handler  # noqa: PLC0415  only where there are pages

        guard.note = host.services.note
        paths: dict[str, Mapping[str, Handler]] = {}
        describe: Callable[[], Mapping[str, Handler]] | None = None
        if (addresses := guard.challenges.addresses) is not None:
            from millstream.auth._guard import metadata_paths  # noqa: PLC0415  only where callers sign in

            describe = partial(metadata_paths, guard.methods, self.definition.title, host.known_scopes, addresses)
            paths |= {path: {"GET": handler} for path, handler in describe().items()}
        if "rest" in self.definition.parts or self.definition.pages:
            paths |= self._sign_in(host, guard)
        if "rest" not in self.definition.parts and self.definition.pages:
            paths |= {name: {"GET": asset_handler(name)} for name in (*_STYLES, "/assets/mark.svg")}
        for each in guard.methods:
            served = each.paths()
            below = {path.removesuffix("/authorize") for path in served if path.endswith("/authorize")}
            paths |= {prefix + name: {"GET": asset_handler(name)} for prefix in below for name in _STYLES}
            paths |= served
        for path, handlers in paths.items():
            # Callers of these paths don't have a credential yet.
            is_file = "/assets/" in path
            host.routes.add(path, Route(handlers, public=True, charged="" if is_file else "request", reserved=True))
        if describe is not None:
            host.at_each_address(partial(_serve_metadata, host, describe))

    def _sign_in(self, host: PartHost, guard: "AuthGuard") -> Mapping[str, Mapping[str, Handler]]:
        """Return the sign-in paths of the pages."""
        from millstream.auth._sign_in import ACCOUNT_PATH, OUT_PATH, PATH, SignIn  # noqa: PLC0415  only where callers sign in

        definition, pages = self.definition, {*self.definition.pages}
        if "rest" in definition.parts:
            pages.add("/docs")
        if "web" in definition.parts:
            pages |= {"/connect", "/dashboard", "/chat", "/inspect"}
            if definition.upstreams:
                pages.add("/gateway")
        own = [(before, each) for before, each in definition.paths() if "GET" in each.methods and not each.public]
        sign_in = SignIn(
            guard,
            pages,
            host.services,
            server=definition.title,
            icon=_icon(definition),
            opens=lambda path: any(each.serves(path, before) for before, each in own),
        )
        host.on_close(sign_in.signed_out.stop)
        guard.ambient, guard.challenges.form = sign_in.ambient, sign_in.page
        host.routes.add(ACCOUNT_PATH, Route({"GET": sign_in.account}))
        return {PATH: {"GET": sign_in.show, "POST": sign_in.take}, OUT_PATH: {"POST": sign_in.leave}}


def _serve_metadata(host: PartHost, describe: Callable[[], Mapping[str, Handler]], _: Dispatcher) -> None:
    """Serve the metadata of an address that has been added. That of a removed one responds with 404."""
    for path, handler in describe().items():
        if path not in host.routes.exact:
            host.routes.add(path, Route({"GET": handler}, public=True, reserved=True))


def _methods(definition: Definition, host: PartHost) -> "list[AuthMethod]":
    """Return the methods of the program, then the keys of the settings.

    Raises:
        LocalError, ValueError: A key or a key file can't be used, or there are two authorization servers.
    """
    from millstream.auth._method import NeedsServer, PageMethod  # noqa: PLC0415  only where callers sign in

    settings = host.settings
    methods: list[AuthMethod] = [
        each.bind(host.services, definition.title, host.known_scopes) if isinstance(each, NeedsServer) else each
        for each in definition.auth
    ]
    served: set[str] = set()
    for each in methods:
        if isinstance(each, PageMethod):
            each.icon = _icon(definition)
        paths = each.paths().keys()
        if served & paths:
            raise ValueError(
                "A server can have only one auth.issuer(…), and one auth.oidc(…) with a client_id, because their "
                "paths would be the same."
            )
        served |= paths
    if settings.auth_key or settings.auth_keys:
        from millstream.auth._key_file import key_method  # noqa: PLC0415  only where callers sign in

        wanted = [("key", settings.auth_key, (EVERYTHING,))] if settings.auth_key else []
        methods.append(key_method(wanted, settings.auth_keys))
    for outage in chain.from_iterable(each.outages for each in methods):
        outage.table = host.store.troubles
    return methods


def _icon(definition: Definition) -> str:
    """Return the server's icon for its sign-in pages, which load nothing from other hosts."""
    return next((each.src for each in definition.info.icons or () if each.src.startswith("data:image/")), "")


def _check_mounted(definition: Definition) -> None:
    """Reject a mounted server that requires sign-in if this one doesn't, because a guard protects a whole server.

    Raises:
        LocalError: There is one.
    """
    for each in definition.mounted:
        if each.auth:
            raise LocalError(
                f"{each.name!r} has auth=…, but is mounted on {definition.name!r}, which has none, so anyone "
                f"could call its tools there. Pass the same auth=… to {definition.name!r}."
            )
        _check_mounted(each)
