"""`auth.issuer(…)` binds tokens to the key of whoever asks for them (DPoP, RFC 9449 §5, §10)."""

import json
import time
from typing import Any

import msgspec
import pytest

from auth.issuing.test_sign_in_end_to_end import Person, said, serving
from auth.test_bound_tokens import KEY, OTHER, signed
from issuing_world import BACK, ONE_AND_FOUR, RESOURCE, URL, Desk, authorization, claims_of, desk_on
from millstream import Client, auth
from millstream._limits.gcra import Rate
from millstream.auth.providers import Provider
from millstream.client import MemoryStore, OAuth, Options
from millstream.client._oauth.fetching import fetch
from wire import request

SECRET = "x" * 32
JKT = KEY.thumbprint()


def shown(key: Any = KEY, **changes: Any) -> str:
    """A good proof for the token endpoint, but for the changes."""
    good = {"jti": f"{time.time_ns()}", "htm": "POST", "htu": f"{URL}/token", "iat": int(time.time())}
    return signed({**good, **changes}, key=key)


async def redeem(desk: Desk, client: str, code: str, *proofs: str, **form: str) -> Any:
    """Exchange a code, with proofs."""
    said = {"grant_type": "authorization_code", "client_id": client, "code": code, "redirect_uri": BACK,
            "code_verifier": "v" * 43, **form}  # fmt: skip
    return await desk.post("/token", said, **({"dpop": proofs[0]} if proofs else {}))


async def renew(desk: Desk, client: str, token: str, *proofs: str, **form: str) -> Any:
    """Use a refresh token, with a proof."""
    said = {"grant_type": "refresh_token", "client_id": client, "refresh_token": token, **form}
    return await desk.post("/token", said, **({"dpop": proofs[0]} if proofs else {}))


@pytest.mark.parametrize("kind", ONE_AND_FOUR)
async def test_a_client_that_shows_a_key_gets_tokens_for_that_key_alone(kind: str) -> None:
    """RFC 9449 §5: `token_type`, `cnf`, and a refresh token of a public client that only its key can use."""
    async with desk_on(kind) as desk:
        id = (await desk.register())["client_id"]
        given = (await redeem(desk, id, (await desk.sign_in(id))["code"], shown())).message
        assert (given["token_type"], claims_of(given["access_token"])["cnf"]) == ("DPoP", {"jkt": JKT})
        found = await desk.who(given["access_token"])
        assert (found is not None and found.thumbprint) == JKT
        for proofs in ((), (shown(OTHER),)):
            assert (await renew(desk, id, given["refresh_token"], *proofs)).error == "invalid_grant"
        again = (await renew(desk, id, given["refresh_token"], shown())).message
        assert claims_of(again["access_token"])["cnf"] == {"jkt": JKT}


@pytest.mark.parametrize("kind", ONE_AND_FOUR)
async def test_a_proof_counts_once_at_the_token_endpoint(kind: str) -> None:
    """§11.1: at all workers."""
    async with desk_on(kind) as desk:
        id = (await desk.register())["client_id"]
        once = shown()
        given = (await redeem(desk, id, (await desk.sign_in(id))["code"], once)).message
        for _ in range(4):
            assert (await renew(desk, id, given["refresh_token"], once)).error == "invalid_dpop_proof"
        assert (await renew(desk, id, given["refresh_token"], shown())).status == 200


BAD: dict[str, str] = {
    "nothing": "", "no token": "x", "another URL": shown(htu=RESOURCE), "another method": shown(htm="GET"),
    "an old one": shown(iat=int(time.time()) - 10_000), "no id": shown(jti=""), "two": f"{shown()}, {shown()}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_proof_gets_no_token_and_the_code_still_counts(desk: Desk, name: str) -> None:
    """§5: `invalid_dpop_proof`. Nobody spends a code of somebody else by that."""
    id = (await desk.register())["client_id"]
    code = (await desk.sign_in(id))["code"]
    reply = await redeem(desk, id, code, BAD[name])
    assert (reply.status, reply.error) == (400, "invalid_dpop_proof")
    assert (await redeem(desk, id, code, shown())).status == 200


async def test_an_address_can_not_fill_the_store_with_proofs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is remembered for two minutes, before anybody knows whether the code that comes with it is good."""
    monkeypatch.setattr("millstream.auth._issuing.key_proof.RATE", Rate(3, 60))
    desk = Desk(desk.services.store)
    id = (await desk.register())["client_id"]
    replies = [await redeem(desk, id, "made-up", shown()) for _ in range(5)]
    assert [each.status for each in replies] == [400] * 3 + [429] * 2
    assert "retry-after" in replies[-1].headers
    assert len(await desk.services.store.kv.keys("oauth-proof:")) <= 3
    assert (await desk.tokens(id))["token_type"] == "Bearer"


async def test_a_code_that_was_asked_for_with_a_key_counts_with_that_key(desk: Desk) -> None:
    """§10: `dpop_jkt`. Whoever catches the code has another."""
    id = (await desk.register())["client_id"]
    code = (await desk.sign_in(id, dpop_jkt=JKT))["code"]
    for proofs in ((), (shown(OTHER),)):
        assert (await redeem(desk, id, code, *proofs)).error == "invalid_grant"
    assert (await redeem(desk, id, code, shown())).status == 200
    for wrong in ("x", JKT + "x", "ä" * 43):
        page = await desk.ask("GET", "/authorize", query=f"{authorization(id)}&dpop_jkt={wrong}")
        assert "dpop_jkt" in page.text, wrong


async def test_a_client_with_a_secret_may_change_its_key(desk: Desk) -> None:
    """§5: its refresh tokens are bound to the client by its secret."""
    office = Desk(desk.services.store, clients=[auth.client("office", secret=SECRET, redirect_uris=[BACK])])
    secret = {"client_secret": SECRET}
    code = (await office.sign_in("office"))["code"]
    given = (await redeem(office, "office", code, shown(), **secret)).message
    again = (await renew(office, "office", given["refresh_token"], shown(OTHER), **secret)).message
    assert claims_of(again["access_token"])["cnf"] == {"jkt": OTHER.thumbprint()}
    plain = (await renew(office, "office", again["refresh_token"], **secret)).message
    assert (plain["token_type"], "cnf" in claims_of(plain["access_token"])) == ("Bearer", False)
    form = {"grant_type": "client_credentials", "client_id": "office", **secret}
    own = (await office.post("/token", form, dpop=shown())).message
    assert (own["token_type"], claims_of(own["access_token"])["cnf"]) == ("DPoP", {"jkt": JKT})
    told = (await office.post("/introspect", {"client_id": "office", "token": own["access_token"], **secret})).message
    assert (told["token_type"], told["cnf"]) == ("DPoP", {"jkt": JKT})


async def test_a_client_that_registered_for_bound_tokens_gets_no_others(desk: Desk) -> None:
    """§5.2: `dpop_bound_access_tokens`."""
    told = await desk.register(dpop_bound_access_tokens=True)
    assert told["dpop_bound_access_tokens"] is True
    assert "dpop_bound_access_tokens" not in await desk.register()
    code = (await desk.sign_in(told["client_id"]))["code"]
    assert (await redeem(desk, told["client_id"], code)).error == "invalid_dpop_proof"
    assert (await redeem(desk, told["client_id"], code, shown())).status == 200
    with pytest.raises(AssertionError, match="dpop_bound_access_tokens is true or false"):
        await desk.register(dpop_bound_access_tokens="yes")


async def test_a_provider_can_not_bind_or_unbind_a_token(desk: Desk) -> None:
    """What a token is bound to is what the client has shown."""

    class Ours(Provider):
        async def claims(self, *_: Any) -> dict[str, object]:
            return {"cnf": {"jkt": "x"}}

    desk = Desk(desk.services.store, provider=Ours())
    id = (await desk.register())["client_id"]
    assert "cnf" not in claims_of((await desk.tokens(id))["access_token"])


async def test_the_metadata_say_so(desk: Desk) -> None:
    """§5.1."""
    about = (await desk.ask("GET", "/.well-known/oauth-authorization-server")).message
    assert "ES256" in about["dpop_signing_alg_values_supported"]


async def test_our_client_binds_its_tokens_at_our_server_from_sign_in_to_renewal() -> None:
    """When it's told to. The token alone opens nothing, and the renewed one is bound to the same key."""
    person, kept = Person(), MemoryStore()
    async with serving() as url:
        credentials = OAuth(store=kept, visit=person.visit).proving()
        async with Client(f"{url}/mcp", options=Options(auth=credentials)) as client:
            assert said(await client.call("order")) == "ordered"
            (tokens,) = kept.load().tokens.values()
            assert tokens.proof_key
            kept.load().tokens[f"{url}/mcp"] = msgspec.structs.replace(tokens, expires_at=1.0)
            assert said(await client.call("order")) == "ordered"
            (renewed,) = kept.load().tokens.values()
        assert (renewed.access_token != tokens.access_token, renewed.proof_key) == (True, tokens.proof_key)
        bond = [claims_of(each.access_token)["cnf"] for each in (tokens, renewed)]
        assert bond[0] == bond[1]
        for scheme in ("Bearer", "DPoP"):
            headers = {"content-type": "application/json", "authorization": f"{scheme} {renewed.access_token}"}
            reply = await fetch("POST", f"{url}/mcp", headers=headers, body=json.dumps(request("ping")).encode())
            assert reply.status == 401, reply.body
        assert person.visits <= 2


async def test_our_client_does_not_bind_its_tokens_at_our_server_by_itself() -> None:
    """Our choice: each call would take two signatures' time. Servers with a foreign issuer say that they take them."""
    person, kept = Person(), MemoryStore()
    async with serving() as url:
        async with Client(f"{url}/mcp", options=Options(auth=OAuth(store=kept, visit=person.visit))) as client:
            assert said(await client.call("order")) == "ordered"
        (tokens,) = kept.load().tokens.values()
        assert (tokens.proof_key, "cnf" in claims_of(tokens.access_token)) == ("", False)
