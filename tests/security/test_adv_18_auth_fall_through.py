"""Requests with an invalid credential are never anonymous (CVE-2026-59822), and no other header replaces the credential
(CVE-2026-110279). tests/auth/test_guard.py tests every path.
"""

import pytest

from auth_world import ALICE, run_guarded
from cases import for_each
from four_workers import ON_FOUR
from wire import request

BOGUS = ["", "x", "Bearer", "Bearer x", "bearer null", "Bearer undefined", "Bearer  ", "Basic eDp4", "Basic",
         "Digest a=b", "Negotiate x", "Token x", "Bearer " + "a" * 4000, "Bearer \xff", f"Basic {ALICE}",
         ALICE]  # fmt: skip


@for_each("value", BOGUS)
@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_invalid_authorization_is_never_anonymous(value: str, way: str) -> None:
    async with run_guarded(lane=way == "lane", way=way) as world:
        reply = await world.post(None, request("tools/list"), authorization=value)
        assert reply.status in (400, 401, 403)
        assert b"tools" not in reply.body


@for_each("name", ["x-upstream-authorization", "x-forwarded-user", "x-remote-user",
                                  "x-auth-request-user", "x-api-key", "x-user",
                                  "x-original-authorization"])  # fmt: skip
@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_proxy_identity_headers_are_ignored(way: str, name: str) -> None:
    refused = 403 if way == "lane" else 401  # with tokens, too, clients are asked to get another one
    async with run_guarded(way=way) as world:
        for value in ("alice", ALICE, f"Bearer {ALICE}"):
            assert (await world.post(None, request("ping"), **{name.replace("-", "_"): value})).status == 401
            assert (await world.post("wrong", request("ping"), **{name.replace("-", "_"): value})).status == refused
