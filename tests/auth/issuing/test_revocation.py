import asyncio
from typing import Any

import pytest

from auth_world import run_guarded
from cases import for_each
from issuing_world import BACK, URL, Clock, Desk, KnownUsers, claims_of
from millstream import auth
from millstream._http.message import HttpRequest, Response
from millstream._limits import Rate
from millstream._protocol.principal import Principal
from millstream._stores.store import Store
from millstream.auth._guard import AuthGuard, ChallengeResponses
from patience import WAIT
from store_parts import BACKINGS, Backing

SECRET = "x" * 32
OFFICE = {"client_id": "office", "client_secret": SECRET}
INACTIVE = {"active": False}


def office(store: Store, **options: Any) -> Desk:
    """Return an authorization server with a configured client that has a secret."""
    return Desk(store, clients=[auth.client("office", secret=SECRET, redirect_uris=[BACK])], **options)


@for_each("kind", ["access_token", "refresh_token"])
async def test_token_revocation_ends_the_grant(every_store: Store, kind: str) -> None:
    """RFC 7009 §2.1."""
    desk = Desk(every_store)
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    reply = await desk.post("/revoke", {"client_id": id, "token": given[kind], "token_type_hint": "nonsense"})
    assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
    assert await desk.who(given["access_token"]) is None
    assert (await desk.refresh(id, given["refresh_token"])).error == "invalid_grant"


async def test_clients_can_revoke_only_their_own_tokens(desk: Desk) -> None:
    """RFC 7009 §2.2."""
    id, other = (await desk.register())["client_id"], (await desk.register())["client_id"]
    given = await desk.tokens(id)
    for token in (given["access_token"], given["refresh_token"], "unknown", "a.b.c"):
        assert (await desk.post("/revoke", {"client_id": other, "token": token})).status == 200
    assert await desk.who(given["access_token"]) is not None
    assert (await desk.post("/revoke", {"client_id": id})).error == "invalid_request"
    assert (await desk.post("/revoke", {"client_id": "nobody", "token": "x"})).status == 401


async def test_revoking_a_client_credentials_token_affects_no_other(every_store: Store) -> None:
    desk = office(every_store)
    form = {"grant_type": "client_credentials", **OFFICE}
    one, two = [(await desk.post("/token", form)).message["access_token"] for _ in range(2)]
    await desk.post("/revoke", {**OFFICE, "token": one})
    assert await desk.who(one) is None
    assert await desk.who(two) is not None


async def test_removing_a_client_invalidates_its_tokens(desk: Desk) -> None:
    known = office(desk.services.store)
    token = (await known.post("/token", {"grant_type": "client_credentials", **OFFICE})).message["access_token"]
    assert await known.who(token) is not None
    assert await Desk(desk.services.store).who(token) is None


async def test_introspection_returns_current_claims(every_store: Store) -> None:
    """RFC 7662 §2.2."""
    clock = Clock()
    desk = office(every_store, clock=clock)
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id, scope="orders:read")

    async def said(token: str) -> Any:
        reply = await desk.post("/introspect", {**OFFICE, "token": token})
        assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
        return reply.message

    access = await said(given["access_token"])
    assert access == {"active": True, **claims_of(given["access_token"]), "token_type": "Bearer"}
    refresh = await said(given["refresh_token"])
    assert refresh["active"] is True
    assert refresh["token_type"] == "refresh_token"  # servers accept only bearer tokens
    assert refresh["client_id"] == id
    assert refresh["sub"] == "ada"
    assert refresh["scope"] == "orders:read"
    await desk.refresh(id, given["refresh_token"])
    assert await said(given["refresh_token"]) == INACTIVE
    for token in ("unknown", "a.b.c", "mr_x"):
        assert await said(token) == INACTIVE
    clock.now += 901
    assert await said(given["access_token"]) == INACTIVE


async def test_introspection_requires_authentication_and_ownership(
    desk: Desk,
) -> None:
    """RFC 7662 §2.1."""
    desk = office(desk.services.store)
    public = (await desk.register())["client_id"]
    stranger = await desk.register(token_endpoint_auth_method="client_secret_post")
    token = (await desk.tokens(public))["access_token"]
    assert (await desk.post("/introspect", {"client_id": public, "token": token})).status == 401
    assert (await desk.post("/introspect", {"token": token})).status == 401
    shown = {"client_id": stranger["client_id"], "client_secret": stranger["client_secret"]}
    assert (await desk.post("/introspect", {**shown, "token": token})).message == INACTIVE
    code = (await desk.sign_in(stranger["client_id"]))["code"]
    own = (await desk.token(stranger["client_id"], code, **shown)).message["access_token"]
    assert (await desk.post("/introspect", {**shown, "token": own})).message["active"] is True


# Propagation between workers


def guard_of(desk: Desk) -> AuthGuard:
    """Return one worker's guard."""
    challenges = ChallengeResponses(oauth=True)
    return AuthGuard([desk.running], challenges, failures=Rate(30, 60))


async def asks(guard: AuthGuard, token: str) -> Principal | Response:
    """Return the result of one request with a token."""
    raw = [(b"host", b"mcp.example.com"), (b"authorization", f"Bearer {token}".encode())]
    return await guard(HttpRequest("POST", "/mcp", raw, dict(raw), peer="192.0.2.1"))


async def test_revocation_reaches_other_workers_at_their_next_sweep(shared: Backing) -> None:
    one, two = Desk(await shared.worker()), Desk(await shared.worker())
    guards = [guard_of(one), guard_of(two)]
    id = (await one.register())["client_id"]
    given = await one.tokens(id)
    for guard in guards:
        assert isinstance(await asks(guard, given["access_token"]), Principal)
    principal = await asks(guards[1], given["access_token"])
    assert isinstance(principal, Principal)
    await one.post("/revoke", {"client_id": id, "token": given["access_token"]})
    async with asyncio.timeout(WAIT):
        for guard in guards:
            while not guard.refresh():  # noqa: ASYNC110  no notification
                await asyncio.sleep(0.01)  # like the server's sweep
    for guard in guards:
        refused = await asks(guard, given["access_token"])
        assert isinstance(refused, Response)
        assert refused.status == 401
    assert not guards[1].holds(principal.id)


async def test_any_worker_can_continue_a_grant(shared: Backing) -> None:
    desks = [Desk(await shared.worker()) for _ in range(3)]
    id = (await desks[0].register())["client_id"]
    code = (await desks[1].sign_in(id))["code"]
    given = (await desks[2].token(id, code)).message
    for desk in desks:
        assert await desk.who(given["access_token"]) is not None
    again = (await desks[0].refresh(id, given["refresh_token"])).message
    assert (await desks[1].refresh(id, again["refresh_token"])).status == 200
    sets = [(await desk.ask("GET", "/.well-known/jwks.json")).message for desk in desks]
    assert sets[0] == sets[1] == sets[2]


async def test_missed_revocations_trigger_a_full_recheck(desk: Desk) -> None:
    guard = guard_of(desk)
    desk.running._on_gap()
    assert guard.refresh()
    assert not guard.refresh()


async def test_revocation_ends_only_that_users_streams(
    desk: Desk,
) -> None:
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    ada = await desk.who(given["access_token"])
    assert ada is not None
    assert desk.running.holds(ada.principal.id)
    assert not desk.running.holds(f"{URL} bob")
    await desk.post("/revoke", {"client_id": id, "token": given["access_token"]})
    desk.running.epoch()
    assert not desk.running.holds(ada.principal.id)
    desk.running.epoch()
    assert desk.running.holds(ada.principal.id)
    desk.people.remove("ada")
    assert not desk.running.holds(ada.principal.id)


async def test_cached_tokens_cost_one_dictionary_lookup(desk: Desk) -> None:
    guard = guard_of(desk)
    id = (await desk.register())["client_id"]
    token = (await desk.tokens(id))["access_token"]
    seen: list[Any] = []

    async def handler(request: HttpRequest) -> Response:
        seen.append(request.principal)
        return Response()

    protected = guard.protect(handler)
    raw = [(b"host", b"mcp.example.com"), (b"authorization", f"Bearer {token}".encode())]
    await protected(HttpRequest("POST", "/mcp", raw, dict(raw)))

    async def nobody(credential: str) -> None:
        raise AssertionError("asked again")

    desk.running.examine = nobody  # type: ignore[method-assign,assignment]
    steps = protected(HttpRequest("POST", "/mcp", raw, dict(raw)))
    with pytest.raises(StopIteration):
        steps.__await__().send(None)
    assert [each.subject for each in seen] == ["ada", "ada"]


async def test_tokens_revoked_during_a_lookup_are_rejected(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    introspection = type(desk.running._token)
    ask, asked = introspection.user_of, 0

    async def slow(own: Any, claims: Any) -> Any:
        nonlocal asked
        asked += 1
        found = await ask(own, claims)
        if asked == 1:
            await desk.post("/revoke", {"client_id": id, "token": given["access_token"]})
        return found

    monkeypatch.setattr(introspection, "user_of", slow)
    assert await desk.who(given["access_token"]) is None
    assert asked == 2


# The store


async def test_store_contains_no_secrets(every_store: Store) -> None:
    desk = Desk(every_store)
    about = await desk.register(token_endpoint_auth_method="client_secret_post")
    id, secret = about["client_id"], about["client_secret"]
    code = (await desk.sign_in(id))["code"]
    given = (await desk.token(id, code, client_secret=secret)).message
    given2 = (await desk.refresh(id, given["refresh_token"], client_secret=secret)).message
    shown = [
        secret,
        code,
        given["access_token"],
        given["refresh_token"],
        given2["refresh_token"],
        "correct horse",
        '"d"',
    ]
    keys = await every_store.kv.keys("")
    kept = b"\n".join([*(key.encode() for key in keys), *[each or b"" for each in await every_store.kv.get_many(keys)]])
    assert keys
    assert [each for each in shown if each.encode() in kept] == []


async def test_store_outage_gets_503_not_401(desk: Desk) -> None:
    from shared_store import SharedStore  # noqa: PLC0415

    store = SharedStore().worker()
    await store.open()
    broken: Any = Desk(store)
    id = (await broken.register())["client_id"]
    given = await broken.tokens(id)
    store.down = True
    for reply in (
        await broken.token(id, "x"),
        await broken.ask(
            "POST", "/register", body=b'{"redirect_uris":["https://a.example/"]}', content_type="application/json"
        ),
        await broken.post("/revoke", {"client_id": id, "token": "x"}),
    ):
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    refused = await asks(guard_of(broken), given["access_token"])
    assert isinstance(refused, Response)
    assert refused.status == 503
    await store.close()


async def test_stopped_servers_unsubscribe_from_revocations(desk: Desk) -> None:
    people = KnownUsers()
    from issuing_world import Desk as Another  # noqa: PLC0415

    other = Another(desk.services.store, people=people)
    before = other.running.epoch()
    other.running.close()
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    await desk.post("/revoke", {"client_id": id, "token": given["access_token"]})
    assert other.running.epoch() == before


async def test_two_authorization_servers_in_one_server_are_rejected() -> None:
    from millstream import Server  # noqa: PLC0415

    both = [auth.issuer(URL, users=KnownUsers()), auth.issuer("https://b.example", users=KnownUsers())]
    with pytest.raises(ValueError, match=r"one auth\.issuer"):
        async with run_guarded(Server("x", auth=both)):
            pass


async def test_tokens_from_before_a_restart_do_not_keep_new_ones_out(desk: Desk) -> None:
    """With a store in memory, a restart also replaces the signing keys."""
    backing = BACKINGS["memory"]()
    before, after = desk, Desk(await backing.worker())
    old = await before.tokens((await before.register())["client_id"])
    client = (await after.register())["client_id"]
    new = await after.tokens(client)
    revoked = await after.tokens(client)
    await after.post("/revoke", {"client_id": client, "token": revoked["refresh_token"]})
    guard = guard_of(after)
    claims = claims_of(old["access_token"])
    for number in range(40):
        again = await before.running.signing.sign({**claims, "jti": str(number)})
        reply = await asks(guard, again)
        assert isinstance(reply, Response)
        assert (reply.status, b"by an unknown key" in reply.head) == (401, True)
        ended = await after.running.signing.sign({**claims_of(revoked["access_token"]), "jti": str(number)})
        reply = await asks(guard, ended)
        assert isinstance(reply, Response)
        assert b"The token was revoked" in reply.head
    assert isinstance(await asks(guard, new["access_token"]), Principal)
    for number in range(40):
        await asks(guard, f"guess-{number}")
    newer = await after.tokens(client)
    assert isinstance(await asks(guard, newer["access_token"]), Principal)
    await backing.close()
