"""Instructions of an upstream, which only callers who see the upstream read."""

import pytest

from auth_world import run_guarded
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Client, Server, auth
from millstream.gateway import GroupPolicy, UpstreamPolicy
from patience import WAIT
from wire import LATEST_HANDSHAKE, request

INTERN, FINANCE = token(claims(sub="ian", groups=["interns"])), token(claims(sub="fay", groups=["finance"]))
SECRET = "Ask for the account 4711 before you open the ledger."


@pytest.mark.parametrize(
    "policy", [UpstreamPolicy(groups={"finance": GroupPolicy()}), UpstreamPolicy(groups=("finance",))]
)
async def test_callers_who_see_nothing_of_an_upstream_do_not_read_its_instructions(policy: UpstreamPolicy) -> None:
    ledger, shop = Server("ledger", instructions=SECRET), Server("shop")
    ledger.tool(lambda: "paid", name="pay")
    front = Server("front", auth=auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set()))
    front.upstream("ledger", ledger, policy=policy, start_timeout=WAIT)
    front.upstream("shop", shop, start_timeout=WAIT)
    about = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    async with run_guarded(front) as world:
        for key, reads in ((FINANCE, True), (INTERN, False)):
            for reply in (
                await world.modern(key, "server/discover"),
                await world.post(key, request("initialize", about, 0)),
            ):
                assert (SECRET.encode() in reply.body) is reads, reply.body


async def test_callers_with_full_access_read_the_instructions_of_what_they_see() -> None:
    """A client in the same program or on standard input has no scopes, and sees everything."""
    ledger, front = Server("ledger", instructions=SECRET), Server("front")
    ledger.tool(lambda: "paid", name="pay")
    front.upstream("ledger", ledger, policy=UpstreamPolicy(scopes=("finance",)), start_timeout=WAIT)
    for revision in LATEST_HANDSHAKE, "2026-07-28":
        async with Client(front, revision=revision) as client:
            assert [each.name for each in await client.tools()] == ["ledger_pay"]
            assert SECRET in client.instructions


async def test_without_visible_items_scopes_still_hide_the_instructions() -> None:
    ledger, front = (
        Server("ledger", instructions=SECRET),
        Server("front", auth=auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set())),
    )
    front.upstream("ledger", ledger, policy=UpstreamPolicy(groups=("finance",)), start_timeout=WAIT)
    async with run_guarded(front) as world:
        reply = await world.modern(INTERN, "server/discover")
        assert SECRET.encode() not in reply.body
