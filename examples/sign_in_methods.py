"""Each way to sign in, as a function of its own: the blocks of the reference page "Sign-in"."""

import os
from pathlib import Path
from typing import Any

from millstream import Principal, Server, Settings, auth

URL = "https://mcp.example.com"


# region: list
def for_staff_and_partners(staff: str, partners: str) -> Server:
    """Accept the tokens of two issuers, and the key of a job."""
    return Server(
        "orders",
        auth=[
            auth.oidc(staff, audience=f"{URL}/mcp"),
            auth.oidc(partners, audience=f"{URL}/mcp"),
            auth.keys(named_keys={"nightly": (os.environ["NIGHTLY_KEY"], ["orders:write"])}),
        ],
    )


# endregion


# region: fixed
def without_variables() -> Server:
    """Accept the keys in a file, and no key from the environment."""
    return Server("orders", auth=auth.keys(file="millstream-keys.json"), settings=Settings(limit_calls="60/minute"))


# endregion


# region: oidc
def with_a_button(issuer: str) -> Any:
    """Accept tokens of two applications, and let people sign in to the server's pages."""
    return auth.oidc(
        issuer,
        audience=f"{URL}/mcp",
        scopes=["orders:read"],
        scope_includes={"orders:write": ["orders:read"]},
        client_ids=["desk", "orders"],
        client_id="orders",
        client_secret=os.environ["ORDERS_SECRET"],
    )


# endregion


# region: introspection
def for_opaque_tokens(issuer: str) -> Any:
    """Ask the issuer about each token."""
    return auth.introspection(
        issuer=issuer,
        audience=f"{URL}/mcp",
        endpoint=f"{issuer}/introspect",
        client="orders",
        secret=os.environ["ORDERS_SECRET"],
    )


# endregion


# region: issuer
def for_people(users: Path) -> Any:
    """Let people with a password sign in, at this server."""
    return auth.issuer(
        URL,
        users=auth.users(file=users),
        clients=[auth.client("desk", redirect_uris=["https://desk.example.com/back"])],
        scope_descriptions={"orders:write": "Order books"},
    )


# endregion


# region: identity-provider
def for_members(login: str) -> Any:
    """Let an organization decide who can use which program."""
    return auth.issuer(
        URL,
        users=auth.identity_provider(login, scopes=["orders:write"]),
        clients=[auth.client("desk", secret=os.environ["DESK_SECRET"])],
    )


# endregion


# region: login-provider
def for_staff(login: str) -> Any:
    """Let people sign in at an OpenID provider, and order books."""
    staff = auth.login_provider(
        login,
        name="staff",
        title="our sign-in",
        client_id="orders",
        client_secret=os.environ["ORDERS_SECRET"],
        allow={"@example.com": ["orders:write"]},
    )
    return auth.issuer(URL, users=staff)


# endregion


# region: google
def with_google() -> Any:
    """Let people with an address at example.com sign in with Google."""
    return auth.google(URL, allow=["@example.com"], scope_descriptions={"orders:write": "Order books"})


# endregion


# region: github
def with_github() -> Any:
    """Let the members of an organization sign in with GitHub."""
    return auth.github(URL, allow={"org:example": ["orders:write"]})


# endregion


# region: method
class Badges(auth.AuthMethod):
    """Employees send the number of their badge."""

    def __init__(self, owners: dict[str, str]) -> None:
        self.owners = owners

    async def identify(self, credential: str) -> auth.Identity | None:
        """Return the owner of a badge, to be remembered for a minute."""
        owner = self.owners.get(credential)
        return None if owner is None else auth.Identity(Principal(owner), seconds=60)

    def holds(self, id: str) -> bool:
        """Return whether the person still has a badge."""
        return id in self.owners.values()


# endregion
