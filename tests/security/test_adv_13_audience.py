"""Tokens for another server (CVE-2026-116684, CVE-2025-69196): each server accepts only tokens with its own audience.

tests/auth/test_tokens.py tests the claims in detail.
"""

import pytest

from auth_world import make_server, run_guarded
from cases import for_each
from four_workers import FOUR
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import auth
from wire import request

SHOP, BANK = "https://mcp.example.com/shop/mcp", "https://mcp.example.com/bank/mcp"


@for_each("mine", [SHOP, BANK])
async def test_servers_on_one_origin_reject_each_others_tokens(mine: str) -> None:
    """RFC 8707: the audience is the server's own URL, with its path."""
    async with run_guarded(make_server(auth.jwt(issuer=ISSUER, audience=mine, jwks=key_set()))) as world:
        for audience, status in ((SHOP, 200), (BANK, 200), ("https://mcp.example.com", 401), ([SHOP, BANK], 200)):
            wanted = status if audience == mine or isinstance(audience, list) else 401
            reply = await world.post(token(claims(aud=audience)), request("ping"))
            assert reply.status == wanted, audience


@pytest.mark.server
@for_each("audience", ["", AUDIENCE + "2", AUDIENCE + "/x", AUDIENCE[:-1], "https://mcp.example.com", [SHOP, BANK]])
async def test_no_worker_accepts_tokens_for_another_server(audience: str | list[str]) -> None:
    """RFC 8707."""
    async with run_guarded(way=FOUR) as world:
        for _ in range(4):
            assert (await world.post(token(claims(aud=audience or None)), request("ping"))).status == 401
            assert (await world.post(token(claims(aud=[SHOP, AUDIENCE])), request("ping"))).status == 200


async def test_caller_tokens_do_not_leave_the_server() -> None:
    async with run_guarded(make_server(auth.jwt(issuer=ISSUER, audience=SHOP, jwks=key_set()))) as world:
        sent = token(claims(aud=SHOP))
        guard = world.runtime.guard
        assert guard is not None
        await world.post(sent, request("ping"))
        (verdict,) = guard.verdicts.values()
        assert sent not in repr(verdict.principal)
