import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from cases import for_each
from issuing_world import (
    BACK,
    FORM,
    OTHER,
    RESOURCE,
    URL,
    VERIFIER,
    Browser,
    Clock,
    Desk,
    Reply,
    challenge,
    claims_of,
)
from millstream import auth
from millstream.stores import Store

REPLY = {"access_token", "token_type", "expires_in", "scope", "refresh_token"}


async def test_codes_are_exchanged_for_rfc_9068_tokens(every_store: Store) -> None:
    """RFC 9068 §2.2."""
    desk = Desk(every_store)
    id = (await desk.register())["client_id"]
    answer = await desk.sign_in(id, scope="orders:read orders:write")
    assert (answer["state"], answer["iss"]) == ("st", URL)
    reply = await desk.token(id, answer["code"])
    assert reply.status == 200
    assert (reply.headers["cache-control"], reply.headers["content-type"]) == ("no-store", "application/json")
    assert set(reply.message) == REPLY
    claims = claims_of(reply.message["access_token"])
    assert {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope"} <= set(claims)
    assert (claims["iss"], claims["sub"], claims["aud"], claims["client_id"]) == (URL, "ada", RESOURCE, id)
    found = await desk.who(reply.message["access_token"])
    assert found is not None
    assert (found.principal.subject, found.principal.client) == ("ada", id)
    assert found.principal.scopes == {"orders:read", "orders:write"}


@for_each(("changes", "error"), [
    ({"code": "made-up"}, "invalid_grant"), ({"code": ""}, "invalid_request"),
    ({"code_verifier": None}, "invalid_request"),
    ({"code_verifier": "w" * 43}, "invalid_grant"), ({"code_verifier": "v" * 42}, "invalid_request"),
    ({"code_verifier": "v" * 129}, "invalid_request"), ({"code_verifier": VERIFIER[:-1] + "!"}, "invalid_request"),
    ({"redirect_uri": BACK + "/x"}, "invalid_grant"), ({"resource": OTHER}, "invalid_target"),
    ({"resource": "https://evil.example/"}, "invalid_target"), ({"grant_type": "password"}, "unsupported_grant_type"),
    ({"grant_type": None}, "invalid_request"), ({"client_id": "nobody"}, "invalid_client"),
    ({"client_id": None}, "invalid_client"),
    ({"grant_type": "client_credentials"}, "unauthorized_client"),
    ({"code_verifier": [VERIFIER, VERIFIER]}, "invalid_request"),
])  # fmt: skip
async def test_codes_are_bound_to_client_redirect_challenge_and_resource(
    desk: Desk, changes: dict[str, Any], error: str
) -> None:
    """OAuth 2.1 §4.1.3, RFC 7636 §4.6."""
    id, code = await desk.authorize()
    reply = await desk.token(id, code, **changes)
    assert reply.error == error
    assert reply.status == (401 if error == "invalid_client" else 400)
    assert reply.headers["cache-control"] == "no-store"
    assert (await desk.token(id, code)).status == 200


async def test_codes_cannot_be_used_by_another_client(desk: Desk) -> None:
    right, wrong = (await desk.register())["client_id"], (await desk.register())["client_id"]
    code = (await desk.sign_in(right))["code"]
    assert (await desk.token(wrong, code)).error == "invalid_grant"
    assert (await desk.token(right, code)).status == 200


async def test_reused_codes_end_their_grant(every_store: Store) -> None:
    """OAuth 2.1 §4.1.3."""
    desk = Desk(every_store)
    id, code = await desk.authorize()
    given = (await desk.token(id, code)).message
    assert await desk.who(given["access_token"]) is not None
    assert (await desk.token(id, code)).error == "invalid_grant"
    assert await desk.who(given["access_token"]) is None
    assert (await desk.refresh(id, given["refresh_token"])).error == "invalid_grant"


async def test_concurrent_reuse_of_a_code_ends_the_grant(every_store: Store) -> None:
    desk = Desk(every_store)
    id, code = await desk.authorize()
    replies = await asyncio.gather(*(desk.token(id, code) for _ in range(10)))
    given = [each.message["access_token"] for each in replies if each.status == 200]
    assert len(given) <= 1
    assert [await desk.who(each) for each in given] == [None] * len(given)


async def used(desk: Desk, clock: Clock, kind: str) -> Callable[[], Awaitable[Reply]]:
    """Use a code or a refresh token, and return a function that reuses it after the grace period."""
    id, code = await desk.authorize()
    given = (await desk.token(id, code)).message
    newer = (await desk.refresh(id, given["refresh_token"])).message
    assert (await desk.refresh(id, newer["refresh_token"])).status == 200
    clock.now += 11
    return lambda: desk.token(id, code) if kind == "code" else desk.refresh(id, given["refresh_token"])


@for_each("concurrent", [False, True])
@for_each("kind", ["code", "refresh token"])
async def test_reuse_is_audited_once(every_store: Store, kind: str, *, concurrent: bool) -> None:
    clock, told = Clock(), list[str]()
    desk = Desk(every_store, clock=clock)
    desk.services.on_failed_sign_in = told.append
    use = await used(desk, clock, kind)
    assert told == []
    for _ in range(3):
        replies = await asyncio.gather(*(use() for _ in range(10 if concurrent else 1)))
        assert {reply.error for reply in replies} == {"invalid_grant"}
        assert told == [desk.peer]


async def test_concurrent_code_reuse_is_audited_once(desk: Desk) -> None:
    told: list[str] = []
    desk.services.on_failed_sign_in = told.append
    id, code = await desk.authorize()
    await asyncio.gather(*(desk.token(id, code) for _ in range(10)))
    assert told == [desk.peer]


async def test_codes_expire_after_a_minute(desk: Desk) -> None:
    clock = desk.services.clock = Clock()
    late = Desk(desk.services.store, clock=clock)
    id, code = await late.authorize()
    clock.now += 61
    assert (await late.token(id, code)).error == "invalid_grant"


@for_each("length", [43, 128])
async def test_verifiers_of_every_allowed_length_are_accepted(desk: Desk, length: int) -> None:
    """RFC 7636 §4.1."""

    id = (await desk.register())["client_id"]
    verifier = ("aZ0-._~" * 20)[:length]
    code = (await desk.sign_in(id, code_challenge=challenge(verifier)))["code"]
    assert (await desk.token(id, code, code_verifier=verifier)).status == 200


async def test_rotated_refresh_token_works_for_a_minute(
    every_store: Store,
) -> None:
    """OAuth 2.1 §4.3.1."""
    clock = Clock()
    desk = Desk(every_store, clock=clock)
    id = (await desk.register())["client_id"]
    first = (await desk.tokens(id, scope="orders:read"))["refresh_token"]
    second = (await desk.refresh(id, first)).message
    assert second["refresh_token"] != first
    clock.now += 60
    retried = (await desk.refresh(id, first)).message
    third = (await desk.refresh(id, retried["refresh_token"])).message
    clock.now += 60
    assert (await desk.refresh(id, second["refresh_token"])).status == 200
    assert (await desk.refresh(id, third["refresh_token"])).status == 200
    assert await desk.who(third["access_token"]) is not None


@for_each("generations", [2, 3])
async def test_old_refresh_tokens_end_the_grant(every_store: Store, generations: int) -> None:
    """RFC 9700 §4.14.2."""
    clock = Clock()
    desk = Desk(every_store, clock=clock)
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    old = given["refresh_token"]
    for _ in range(generations):
        given = (await desk.refresh(id, given["refresh_token"])).message
    clock.now += 11
    assert (await desk.refresh(id, old)).error == "invalid_grant"
    assert (await desk.refresh(id, given["refresh_token"])).error == "invalid_grant"
    assert await desk.who(given["access_token"]) is None


async def test_the_previous_refresh_token_never_ends_the_grant(every_store: Store) -> None:
    clock = Clock()
    desk = Desk(every_store, clock=clock)
    id = (await desk.register())["client_id"]
    previous = (await desk.tokens(id))["refresh_token"]
    newest = (await desk.refresh(id, previous)).message
    clock.now += 61
    for _ in range(2):
        assert (await desk.refresh(id, previous)).error == "invalid_grant"
    assert await desk.who(newest["access_token"]) is not None
    assert (await desk.refresh(id, newest["refresh_token"])).status == 200


async def test_older_refresh_tokens_have_no_grace_period(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    first = (await desk.tokens(id))["refresh_token"]
    second = (await desk.refresh(id, first)).message["refresh_token"]
    third = (await desk.refresh(id, second)).message["refresh_token"]
    assert (await desk.refresh(id, first)).error == "invalid_grant"
    assert (await desk.refresh(id, third)).error == "invalid_grant"


async def test_concurrent_refreshes_get_the_same_generation(every_store: Store) -> None:
    desk = Desk(every_store)
    id = (await desk.register())["client_id"]
    first = (await desk.tokens(id))["refresh_token"]
    replies = await asyncio.gather(*(desk.refresh(id, first) for _ in range(10)))
    assert [each.status for each in replies] == [200] * 10
    assert (await desk.refresh(id, replies[-1].message["refresh_token"])).status == 200
    assert (await desk.refresh(id, replies[0].message["refresh_token"])).status == 200


@for_each("token", ["", "mr_", "mr_AAAA", "x" * 5000, "mr_" + "A" * 200])
async def test_invalid_refresh_tokens_are_rejected(desk: Desk, token: str) -> None:
    id = (await desk.register())["client_id"]
    assert (await desk.refresh(id, token)).error == "invalid_grant"


async def test_refresh_tokens_are_bound_to_client_and_scopes(desk: Desk) -> None:
    """OAuth 2.1 §4.3.1 and §4.3.2."""
    id, other = (await desk.register())["client_id"], (await desk.register())["client_id"]
    token = (await desk.tokens(id, scope="orders:read"))["refresh_token"]
    assert (await desk.refresh(other, token)).error == "invalid_grant"
    assert (await desk.refresh(id, token, scope="orders:read orders:write")).error == "invalid_scope"
    assert (await desk.refresh(id, token, scope="orders:read")).message["scope"] == "orders:read"


@for_each(("asked", "granted"), [
    ("offline_access", ""), ("openid", ""), ("openid profile email", ""), ("no:such", ""), ("OPENID", ""),
    ("orders:read offline_access", "orders:read"), ("openid  orders:read ", "orders:read"), ("https://x.example/a", ""),
])  # fmt: skip
async def test_unknown_scopes_are_ignored_and_the_reply_lists_the_granted_ones(
    desk: Desk, asked: str, granted: str
) -> None:
    """RFC 6749 §3.3."""
    id = (await desk.register())["client_id"]
    reply = await desk.tokens(id, scope=asked)
    assert reply["scope"] == granted
    renewed = await desk.refresh(id, reply["refresh_token"], scope=asked)
    assert (renewed.status, renewed.message["scope"]) == (200, granted)


async def test_refreshes_with_only_unknown_scopes_keep_the_granted_ones(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    token = (await desk.tokens(id, scope="orders:read"))["refresh_token"]
    assert (await desk.refresh(id, token, scope="offline_access")).message["scope"] == "orders:read"


async def test_refresh_tokens_are_issued_only_on_request(desk: Desk) -> None:
    """RFC 7591 §2."""
    id = (await desk.register(grant_types=["authorization_code"]))["client_id"]
    given = await desk.tokens(id)
    assert set(given) == REPLY - {"refresh_token"}
    assert (await desk.refresh(id, "mr_x")).error == "unauthorized_client"


async def test_removing_a_user_invalidates_their_tokens(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id)
    before = desk.running.epoch()
    desk.people.remove("ada")
    assert desk.running.epoch() != before
    assert await desk.who(given["access_token"]) is None
    assert (await desk.refresh(id, given["refresh_token"])).error == "invalid_grant"


async def test_users_cannot_grant_scopes_they_lack(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    page = await browser.open(id, scope="orders:read orders:write")
    reply = await browser.answer(page, name="bob", password="battery staple", answer="allow")
    given = (await desk.token(id, reply.answer["code"])).message
    assert given["scope"] == "orders:read"


@for_each(("kind", "body", "status"), [
    ("application/json", b"{}", 415), ("", b"grant_type=x", 415), ("text/plain", b"grant_type=x", 415),
    (FORM, b"a" * 70_000, 413), (FORM, b"&".join(b"a%d=1" % n for n in range(50)), 400),
    (FORM, b"grant_type=authorization_code&grant_type=authorization_code", 400), (FORM, b"\xff\xfe=1", 400),
    (FORM, b"", 400),
])  # fmt: skip
async def test_token_endpoint_rejects_large_forms_and_duplicates(
    desk: Desk, kind: str, body: bytes, status: int
) -> None:
    """OAuth 2.1 §3.2."""
    reply = await desk.ask("POST", "/token", body=body, content_type=kind)
    assert (reply.status, reply.error, reply.headers["cache-control"]) == (status, "invalid_request", "no-store")


async def test_token_endpoint_ignores_the_query(desk: Desk) -> None:
    """OAuth 2.1 §3.2."""
    id, code = await desk.authorize()
    query = f"grant_type=authorization_code&client_id={id}&code={code}&code_verifier={VERIFIER}"
    assert (await desk.ask("POST", "/token", query=query, content_type=FORM)).status == 400


SECRET = "s%cret:" + "x" * 32


def machine(desk: Desk) -> Desk:
    """Return an authorization server with a client that has a secret and acts for itself."""
    client = auth.client("nightly", secret=SECRET, scopes=["orders:read"], redirect_uris=[BACK])
    return Desk(desk.services.store, clients=[client])


def basic(name: str, secret: str) -> str:
    """Return the Basic credentials, form-encoded first (RFC 6749 §2.3.1)."""
    return "Basic " + b64encode(f"{quote(name, safe='')}:{quote(secret, safe='')}".encode()).decode()


@for_each("way", ["basic", "post"])
async def test_client_credentials_grant_returns_a_token(desk: Desk, way: str) -> None:
    """OAuth 2.1 §4.2."""
    desk = machine(desk)
    form = {"grant_type": "client_credentials", "resource": RESOURCE}
    more = {} if way == "post" else {"authorization": basic("nightly", SECRET)}
    shown = {"client_id": "nightly", "client_secret": SECRET} if way == "post" else {}
    given = (await desk.post("/token", {**form, **shown}, **more)).message
    assert set(given) == REPLY - {"refresh_token"}
    found = await desk.who(given["access_token"])
    assert found is not None
    assert (found.principal.subject, found.principal.scopes) == ("nightly", {"orders:read"})
    denied = await desk.post("/token", {**form, **shown, "scope": "orders:write"}, **more)
    assert denied.error == "invalid_scope"
    some = await desk.post("/token", {**form, **shown, "scope": "orders:read orders:write"}, **more)
    assert some.message["scope"] == "orders:read", "a fixed defect: clients ask for all that a server lists"


@for_each(("form", "authorization", "status"), [
    ({}, basic("nightly", "wrong" * 8), 401), ({}, basic("nobody", SECRET), 401), ({}, "Basic !!!", 401),
    ({}, basic("nightly", ""), 401),
    ({}, "Bearer x", 401), ({"client_id": "nightly", "client_secret": "wrong"}, "", 401),
    ({"client_id": "nightly"}, "", 401),
    ({"client_id": "nightly", "client_secret": ""}, "", 401), ({"client_id": "other"}, basic("nightly", SECRET), 401),
    ({"client_id": "nightly", "client_secret": SECRET}, basic("nightly", SECRET), 400),
    ({}, "Basic " + b64encode(b"no-colon").decode(), 401),
])  # fmt: skip
async def test_unauthenticated_clients_are_rejected(
    desk: Desk, form: dict[str, str], authorization: str, status: int
) -> None:
    """OAuth 2.1 §3.2.4."""
    desk = machine(desk)
    more = {"authorization": authorization} if authorization else {}
    reply = await desk.post("/token", {"grant_type": "client_credentials", **form}, **more)
    assert (reply.status, reply.error) == (status, "invalid_client" if status == 401 else "invalid_request")
    assert ("www-authenticate" in reply.headers) is (status == 401 and bool(authorization))


async def test_public_clients_may_send_their_id_as_basic_credentials_without_a_secret(desk: Desk) -> None:
    """RFC 6749 §2.3.1. Some OAuth libraries try this before they put the id into the form."""
    client_id, code = await desk.authorize()
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": VERIFIER}
    assert (await desk.post("/token", form, authorization=basic(client_id, "guess"))).error == "invalid_client"
    assert "access_token" in (await desk.post("/token", form, authorization=basic(client_id, ""))).message


async def test_secret_guesses_are_throttled(desk: Desk) -> None:
    desk = machine(desk)
    form = {"grant_type": "client_credentials", "client_id": "nightly"}
    statuses = [(await desk.post("/token", {**form, "client_secret": f"wrong{n}"})).status for n in range(31)]
    assert statuses == [401] * 30 + [429]
    assert (await desk.post("/token", {**form, "client_secret": SECRET})).headers["retry-after"]
    assert (await desk.post("/token", {**form, "client_secret": SECRET}, peer="192.0.2.9")).status == 200


async def test_secret_guesses_do_not_keep_people_from_signing_in(desk: Desk) -> None:
    desk = machine(desk)
    id, code = await desk.authorize()
    for number in range(40):
        await desk.post(
            "/token", {"grant_type": "client_credentials", "client_id": "nightly", "client_secret": f"{number}"}
        )
    given = await desk.token(id, code)
    assert given.status == 200
    assert (await desk.refresh(id, given.message["refresh_token"])).status == 200


@for_each("form", [
    {"client_id": "forgotten-{}"}, {"client_id": "forgotten-{}", "client_secret": SECRET}, {"client_id": "nightly"},
    {"client_id": "https://unreachable.invalid/{}"},
])  # fmt: skip
async def test_requests_without_a_guessed_secret_are_not_throttled(desk: Desk, form: dict[str, str]) -> None:
    """A server with a store in memory forgets clients when it restarts."""
    desk = machine(desk)
    for number in range(40):
        sent = {name: value.format(number) for name, value in form.items()}
        assert (await desk.post("/token", {"grant_type": "client_credentials", **sent})).status == 401
    right = {"grant_type": "client_credentials", "client_id": "nightly", "client_secret": SECRET}
    assert (await desk.post("/token", right)).status == 200


@for_each("path", ["/token", "/introspect", "/revoke"])
async def test_repeated_wrong_secrets_are_one_guess(desk: Desk, path: str) -> None:
    desk = machine(desk)
    form = {"grant_type": "client_credentials", "client_id": "nightly", "token": "x"}
    for _ in range(40):
        assert (await desk.post(path, {**form, "client_secret": "old"})).status == 401
    assert (await desk.post(path, {**form, "client_secret": SECRET})).status == 200
