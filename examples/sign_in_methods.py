"""Each way to sign in, as a server of its own: the blocks of the reference page "Sign-in"."""
# ruff: noqa: RET504  a block assigns what the function returns

# region: server
import os

from millstream import Principal, Server, Settings, auth

URL = "https://mcp.example.com"
LOGIN = "https://login.example.com"
PARTNERS = "https://login.example.org"

mcp = Server("orders", auth=auth.oidc(LOGIN, audience=f"{URL}/mcp"))
# endregion


def for_staff_and_partners() -> Server:
    # region: list
    mcp = Server(
        "orders",
        auth=[
            auth.oidc(LOGIN, audience=f"{URL}/mcp"),
            auth.oidc(PARTNERS, audience=f"{URL}/mcp"),
            auth.keys(named_keys={"nightly": (os.environ["NIGHTLY_KEY"], ["orders:write"])}),
        ],
    )
    # endregion
    return mcp


def without_variables() -> Server:
    # region: fixed
    mcp = Server("orders", auth=auth.keys(file="millstream-keys.json"), settings=Settings(limit_calls="60/minute"))
    # endregion
    return mcp


def for_named_keys() -> Server:
    # region: keys
    desk, robot = os.environ["DESK_KEY"], os.environ["ROBOT_KEY"]
    mcp = Server("orders", auth=auth.keys(named_keys={"desk": (desk, ["orders:write"]), "robot": robot}))
    # endregion
    return mcp


def with_a_button() -> Server:
    # region: oidc
    mcp = Server(
        "orders",
        auth=auth.oidc(
            LOGIN,
            audience=f"{URL}/mcp",
            scopes=["orders:read"],
            scope_includes={"orders:write": ["orders:read"]},
            client_ids=["desk", "orders"],
            client_id="orders",
            client_secret=os.environ["ORDERS_SECRET"],
        ),
    )
    # endregion
    return mcp


def for_signed_tokens() -> Server:
    # region: jwt
    mcp = Server("orders", auth=auth.jwt(issuer=LOGIN, audience=f"{URL}/mcp", jwks=f"{LOGIN}/keys"))
    # endregion
    return mcp


def for_opaque_tokens() -> Server:
    # region: introspection
    mcp = Server(
        "orders",
        auth=auth.introspection(
            issuer=LOGIN,
            audience=f"{URL}/mcp",
            endpoint=f"{LOGIN}/introspect",
            client="orders",
            secret=os.environ["ORDERS_SECRET"],
        ),
    )
    # endregion
    return mcp


def for_people() -> Server:
    # region: issuer
    mcp = Server(
        "orders",
        auth=auth.issuer(
            URL,
            users=auth.users(file="users.json"),
            clients=[auth.client("desk", redirect_uris=["https://desk.example.com/back"])],
            scope_descriptions={"orders:write": "Order books"},
        ),
    )
    # endregion
    return mcp


def for_members() -> Server:
    # region: identity-provider
    mcp = Server(
        "orders",
        auth=auth.issuer(
            URL,
            users=auth.identity_provider(LOGIN, scopes=["orders:write"]),
            clients=[auth.client("desk", secret=os.environ["DESK_SECRET"])],
        ),
    )
    # endregion
    return mcp


def for_staff() -> Server:
    # region: login-provider
    staff = auth.login_provider(
        LOGIN,
        name="staff",
        title="our sign-in",
        client_id="orders",
        client_secret=os.environ["ORDERS_SECRET"],
        allow={"@example.com": ["orders:write"]},
    )
    mcp = Server("orders", auth=auth.issuer(URL, users=staff))
    # endregion
    return mcp


def with_google() -> Server:
    # region: google
    mcp = Server("orders", auth=auth.google(URL, allow=["@example.com"]))
    # endregion
    return mcp


def with_github() -> Server:
    # region: github
    mcp = Server("orders", auth=auth.github(URL, allow={"org:example": ["orders:write"]}))
    # endregion
    return mcp


def for_a_job() -> Server:
    # region: client
    nightly = auth.client("nightly", jwks=os.environ["NIGHTLY_PUBLIC_KEY"], scopes=["orders:write"])
    mcp = Server("orders", auth=auth.issuer(URL, users=auth.users(file="users.json"), clients=[nightly]))
    # endregion
    return mcp


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


def for_badges() -> Server:
    # region: badges
    mcp = Server("orders", auth=Badges({"b-17": "ada"}))
    # endregion
    return mcp
