"""A way to authenticate as another package would write it, with public names."""

import json

from app_peer import Reply, ask
from millstream import Context, Principal, Server
from millstream.auth import AuthMethod, Identity, Unavailable
from millstream.protocol import NEWEST
from wire import per_request

BADGES = {"4711": "ada"}


class Badges(AuthMethod):
    """Looks up a badge in a directory that may not respond."""

    down = False

    async def identify(self, credential: str) -> Identity | None:
        """Return whose badge it is."""
        if self.down:
            raise Unavailable("Badges can't be checked at the moment. Try again later.", "the directory is down")
        name = BADGES.get(credential)
        return None if name is None else Identity(Principal(name, scopes=frozenset({"shop"})), 0.0)

    def holds(self, id: str) -> bool:
        """Return whether a person still has a badge."""
        return id in BADGES.values()


async def test_custom_auth_method_identifies_the_caller() -> None:
    badges = Badges()
    mcp = Server("shop", auth=badges)

    @mcp.tool
    async def who(ctx: Context) -> str:
        """Return the caller."""
        assert ctx.principal is not None
        return f"{ctx.principal.subject} {sorted(ctx.principal.scopes)}"

    async def call(badge: str) -> Reply:
        body = json.dumps(per_request("tools/call", {"name": "who", "arguments": {}})).encode()
        return await ask(
            mcp, "POST", "/mcp", body, authorization=f"Bearer {badge}", content_type="application/json",
            accept="application/json, text/event-stream", mcp_protocol_version=NEWEST.date,
            mcp_method="tools/call", mcp_name="who",
        )  # fmt: skip

    async with mcp.running():
        assert b"ada ['shop']" in (await call("4711")).body
        assert (await call("4712")).status == 403
        badges.down = True
        refused = await call("4713")
    assert refused.status == 503
    assert b"Badges can't be checked" in refused.body
    assert b"directory" not in refused.body


async def test_later_methods_are_tried_if_one_is_unavailable() -> None:
    first, second = Badges(), Badges()
    first.down = True
    mcp = Server("shop", auth=[first, second])
    mcp.tool(lambda: "mill", name="mill")
    about = {"content_type": "application/json", "accept": "application/json, text/event-stream"}

    async def ping(badge: str) -> int:
        body = json.dumps(per_request("tools/list", {})).encode()
        names = {"mcp_protocol_version": NEWEST.date, "mcp_method": "tools/list"}
        return (await ask(mcp, "POST", "/mcp", body, authorization=f"Bearer {badge}", **about, **names)).status

    async with mcp.running():
        assert await ping("4711") == 200
        assert await ping("unknown") == 503
