"""Forged tokens (CVE-2026-32597, CVE-2025-59420, CVE-2024-37568, CVE-2025-62706): the list of them on every transport.

The list and what each one is: tests/auth/test_tokens.py, where it is judged case by case.
"""

import pytest
from websockets.exceptions import InvalidStatus

from auth_world import STREAM, guarded, make_server
from issuer_world import AUDIENCE, ISSUER, KEYS, OTHER, by_hand, claims, key_set, misread, token
from millstream import auth
from wire import request

FORGED = {
    "none": by_hand({"alg": "none"}),
    "a public key as a secret": misread(KEYS["RS256"].as_pem(private=False), kid="rs"),
    "a key in the token": token(key=OTHER, jwk=OTHER.as_dict(private=False)),
    "something critical": by_hand({"alg": "ES256", "kid": "es", "crit": ["b64"], "b64": False}, signature=b"x" * 64),
    "encrypted": "a.b.c.d.e",
    "expired": token(claims(exp=1)),
    "another audience": token(claims(aud="https://other.example")),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
async def test_a_forged_token_gets_nobody_in_on_any_transport(forged: str) -> None:
    """401 each time, and no principal anywhere."""
    async with guarded(make_server(auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set()))) as world:
        assert (await world.post(forged, request("ping"))).status == 401
        for path in ("/sse", "/events", "/mcp/sse/x", "/mcp"):
            assert (await world.ask(forged, "GET", path, **STREAM)).status == 401
        for path in ("/tools/who", "/publish", "/mcp/tools/call", "/messages/?session_id=x"):
            assert (await world.ask(forged, "POST", path, b"{}", content_type="application/json")).status == 401
        with pytest.raises(InvalidStatus) as refused:
            async with world.socket(forged):
                pass
        assert refused.value.response.status_code == 401
        assert world.runtime.guard is not None
        assert world.runtime.guard.verdicts == {}
