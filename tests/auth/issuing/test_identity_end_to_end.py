import runpy
import time
from typing import Any
from urllib.parse import parse_qs

import pytest
from joserfc.jwk import ECKey

from auth.issuing.test_identity_providers import CLIENT, ROOT, SECRET
from auth.issuing.test_sign_in_end_to_end import serving
from auth_world import run_guarded
from issuer_world import Issuer, run_issuer, token
from issuing_world import KnownUsers
from millstream import Client, auth
from millstream.client import AccessDenied, IdentityProvider, MemoryTokenStore, OAuth, Options, WorkloadIdentity
from processes import ROOT as ROOT_FOLDER
from processes import free_port

JAG = "urn:ietf:params:oauth:token-type:id-jag"


class Login:
    """The provider's token endpoint, which exchanges ID tokens for grants (RFC 8693)."""

    def __init__(self, provider: Issuer) -> None:
        self.provider = provider
        self.forms: list[dict[str, str]] = []
        provider.answers["/token"] = self.exchange
        about = provider.answers["/.well-known/openid-configuration"]
        provider.answers[ROOT] = {**about, "token_endpoint": f"{provider.url}/token"}

    def exchange(self, request: bytes) -> Any:
        """Return a grant for Ada's ID token."""
        form = {name: values[0] for name, values in parse_qs(request.partition(b"\r\n\r\n")[2].decode()).items()}
        self.forms.append(form)
        if form["subject_token"] != "ada's id token":
            body = b'{"error":"invalid_request","error_description":"Sign in again."}'
            return b"HTTP/1.1 400 x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        return {"access_token": self.grant(form["audience"], form["resource"], form.get("scope", "")),
                "issued_token_type": JAG, "token_type": "N_A", "expires_in": 300}  # fmt: skip

    def grant(self, audience: str, resource: str, scope: str) -> str:
        """Return a signed grant."""
        now = int(time.time())
        said = {"iss": self.provider.url, "aud": audience, "sub": "ada", "client_id": "desk", "iat": now,
                "exp": now + 300, "jti": f"{time.time_ns()}", "resource": resource, "scope": scope}  # fmt: skip
        return token(said, typ="oauth-id-jag+jwt")


async def test_client_signs_in_with_a_provider_grant_without_a_login_page() -> None:
    async with run_issuer() as provider:
        login, key = Login(provider), ECKey.generate_key("P-256")
        pem = key.as_pem(private=True).decode()
        ways = [KnownUsers(), auth.identity_provider(provider.url, scopes=["orders:write"])]
        jwks = {"keys": [key.as_dict(private=False)]}
        for known in (CLIENT, auth.client("desk", jwks=jwks)):
            async with serving(ways, clients=[known]) as url:
                for id_token in ("ada's id token", "another"):
                    secret = SECRET if known is CLIENT else ""
                    me = OAuth(store=MemoryTokenStore(), client_id="desk", client_secret=secret)
                    if not secret:
                        me.with_private_key(pem)
                    me.with_identity_provider(
                        IdentityProvider(provider.url, id_token=id_token, client_id="desk-at-login")
                    )
                    if id_token == "another":
                        with pytest.raises(AccessDenied, match=r"Sign in again\."):
                            await Client(f"{url}/mcp", options=Options(auth=me)).__aenter__()
                        continue
                    async with Client(f"{url}/mcp", options=Options(auth=me)) as client:
                        assert (await client.call("who")).text == f"{provider.url}#ada orders:write"
                        assert (await client.call("order")).text == "ordered"
                assert login.forms[-1]["audience"] == url
                assert login.forms[-1]["resource"] == f"{url}/mcp"


async def test_programs_can_present_a_grant_themselves() -> None:
    async with run_issuer() as provider:
        login = Login(provider)
        ways = [KnownUsers(), auth.identity_provider(provider.url, scopes=["orders:write"])]
        async with serving(ways, clients=[CLIENT]) as url:
            me = OAuth(store=MemoryTokenStore(), client_id="desk", client_secret=SECRET)
            me.with_identity_provider(
                WorkloadIdentity(url, token=lambda: login.grant(url, f"{url}/mcp", "orders:write"))
            )
            async with Client(f"{url}/mcp", options=Options(auth=me)) as client:
                assert (await client.call("order")).text == "ordered"


async def test_identity_provider_page_examples_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with run_issuer() as provider:
        Login(provider)
        port = free_port()
        monkeypatch.setenv("SHOP_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("LOGIN", provider.url)
        monkeypatch.setenv("DESK_SECRET", SECRET)
        managed = runpy.run_path(str(ROOT_FOLDER / "examples" / "managed.py"))
        async with run_guarded(managed["mcp"], port=port):
            said = await managed["order_for"](lambda: "ada's id token")
        assert said == f"9780261103573 is on its way to {provider.url}#ada."
