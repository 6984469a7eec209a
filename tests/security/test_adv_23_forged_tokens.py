"""Forged tokens on every transport (CVE-2026-32597, CVE-2025-59420, CVE-2024-37568, CVE-2025-62706).

tests/auth/test_tokens.py tests each kind of token.
"""

import pytest
from websockets.exceptions import InvalidStatus

from auth_world import STREAM, make_server, run_guarded
from cases import for_each
from four_workers import FOUR, ON_FOUR
from security.forged_tokens import FORGED, judging
from wire import request


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("forged", FORGED.values(), ids=FORGED)
async def test_forged_tokens_are_rejected_on_every_transport(forged: str, way: str) -> None:
    async with run_guarded(make_server(judging()), way=way) as world:
        assert (await world.post(forged, request("ping"))).status == 401
        for path in ("/sse", "/events", "/mcp/sse/x", "/mcp"):
            assert (await world.ask(forged, "GET", path, **STREAM)).status == 401
        for path in ("/tools/who", "/publish", "/mcp/tools/call", "/messages/?session_id=x"):
            assert (await world.ask(forged, "POST", path, b"{}", content_type="application/json")).status == 401
        with pytest.raises(InvalidStatus) as refused:
            async with world.socket(forged):
                pass
        assert refused.value.response.status_code in (400, 401)  # 400: too large for a handshake
        if way != FOUR:
            assert world.runtime.guard is not None
            assert world.runtime.guard.verdicts == {}
