"""Which rejected credentials count as guesses, and who is throttled for them."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey
from msgspec.structs import replace
from websockets.exceptions import InvalidStatus

from account_parts import KeyFile
from auth.test_issuers import answers, introspected
from auth_world import ALICE, ROOT, STREAM, GuardedServer, make_server, run_guarded
from cases import for_each
from issuer_world import AUDIENCE, ISSUER, OTHER, claims, craft_token, key_set, run_issuer, token
from millstream import Principal, auth
from millstream.auth import AuthMethod, Identity, Rejection
from wire import request

PING = request("ping", id=5)
KEYS = auth.keys(named_keys={"alice": ALICE})
NOW = time.time()
SECRET = OctKey.import_key("s" * 40)
REMOVED = ECKey.generate_key("P-256", {"kid": "removed"})


def signed(**options: Any) -> Any:
    """Return a method for the tokens of one issuer."""
    return auth.jwt(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks": key_set(), **options})


def good_token(number: int) -> str:
    """Return a valid token of one of many people."""
    return token(claims(sub=f"person{number}"))


async def statuses(world: GuardedServer, credentials: list[str]) -> list[int]:
    """Return the status for each credential."""
    return [(await world.post(each, PING)).status for each in credentials]


NO_GUESSES: dict[str, Callable[[int], str]] = {
    "expired tokens of many people": lambda number: token(claims(sub=f"p{number}", exp=NOW - 100)),
    "one expired token": lambda number: token(claims(exp=int(NOW) - 100, iat=1)),
    "tokens for another server": lambda number: token(claims(sub=f"p{number}", aud="https://other.example/mcp")),
    "tokens from another issuer": lambda number: token(claims(sub=f"p{number}", iss=ISSUER + "/")),
    "tokens that aren't valid yet": lambda number: token(claims(sub=f"p{number}", nbf=NOW + 9000)),
    "tokens without a subject": lambda number: token(claims(sub=None, jti=str(number))),
    "bound tokens": lambda number: token(claims(sub=f"p{number}", cnf={"jkt": "x"})),
    "tokens signed by a removed key": lambda number: token(claims(sub=f"p{number}"), key=REMOVED),
    "tokens signed by a replaced key": lambda number: token(claims(sub=f"p{number}"), key=OTHER),
    "tokens of another type": lambda number: token(claims(sub=f"p{number}"), typ="id+jwt"),
}


@for_each("methods", [[signed()], [KEYS, signed()], [signed(), signed(issuer="https://second.example")]],
          ids=["tokens", "keys too", "two issuers"])  # fmt: skip
@for_each("kind", NO_GUESSES)
async def test_invalid_tokens_do_not_keep_good_ones_out(methods: list[Any], kind: str) -> None:
    async with run_guarded(make_server(methods)) as world:
        assert await statuses(world, [NO_GUESSES[kind](number) for number in range(40)]) == [401] * 40
        assert await statuses(world, [good_token(number) for number in range(10)]) == [200] * 10
        if KEYS in methods:
            assert await statuses(world, [ALICE]) == [200]


async def test_forged_signed_tokens_of_one_address_are_limited_but_known_ones_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guard: Any = sys.modules["millstream.auth._guard"]
    monkeypatch.setattr(guard, "_FORGERIES", replace(guard._FORGERIES, count=20))
    forge, expired = NO_GUESSES["tokens signed by a replaced key"], NO_GUESSES["expired tokens of many people"]
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("first", (), 0.0, None)
    async with run_guarded(make_server([signed(), auth.keys(file=keys.path)])) as world:
        guard = world.runtime.guard
        assert guard is not None
        known = good_token(0)
        assert await statuses(world, [known]) == [200]
        assert await statuses(world, [expired(number) for number in range(30)]) == [401] * 30
        assert await statuses(world, [forge(number) for number in range(30)]) == [401] * 20 + [429] * 10
        assert await statuses(world, [known, good_token(1)]) == [200, 429]
        unknown = keys.add("second", (), 0.0, None)
        assert guard.refresh()  # ends all verdicts
        assert await statuses(world, [known, good_token(1), unknown]) == [200, 429, 429]


@for_each("way", ["socket", "stream", "key header", "form", "rest"])
async def test_expired_tokens_are_not_guesses_on_any_transport(way: str) -> None:
    said = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "same-origin"}
    async with run_guarded(make_server([signed()], auth_key_header="X-API-Key")) as world:

        async def status(credential: str) -> int:
            match way:
                case "socket":
                    try:
                        async with world.socket(credential):
                            return 200
                    except InvalidStatus as exc:
                        return exc.response.status_code
                case "stream":
                    peer = await world.send(credential, "GET", "/events", **STREAM)
                    found = (await peer.reply(head_only=True))[0]
                    peer.close()
                    return found
                case "key header":
                    return (await world.post(None, PING, x_api_key=credential)).status
                case "form":
                    found = (await world.ask(None, "POST", "/sign-in", f"key={credential}".encode(), **said)).status
                    return {303: 200, 403: 401}.get(found, found)
                case _:
                    return (
                        await world.ask(credential, "POST", "/tools/who", b"{}", content_type="application/json")
                    ).status

        expired = [token(claims(sub=f"p{number}", exp=NOW - 100)) for number in range(40)]
        assert [await status(each) for each in expired] == [401] * 40
        assert await status(good_token(1)) == 200


GUESSES: dict[str, Callable[[int], str]] = {
    "keys": lambda number: f"guess-{number}",
    "tokens without a signature": lambda number: craft_token({"alg": "none"}, {"sub": str(number)}),
    "tokens with an HMAC": lambda number: token(claims(sub=str(number)), alg="HS256", key=SECRET, kid="es"),
    "text with two dots": lambda number: f"eyJ{number}.eyJ.x",
}


@for_each("kind", GUESSES)
async def test_guesses_are_throttled(kind: str) -> None:
    async with run_guarded(make_server([signed(), KEYS])) as world:
        guesses = [GUESSES[kind](number) for number in range(40)]
        assert await statuses(world, guesses) == [401] * 30 + [429] * 10
        assert await statuses(world, [guesses[0], ALICE]) == [429, 429]


async def test_guessed_keys_do_not_keep_signed_tokens_out() -> None:
    async with run_guarded(make_server([signed(), KEYS])) as world:
        await statuses(world, [f"guess-{number}" for number in range(40)])
        assert await statuses(world, [good_token(number) for number in range(10)]) == [200] * 10
        assert await statuses(world, [token(claims(exp=1)), token(key=OTHER)]) == [401, 401], (
            "clients then refresh them"
        )
        assert await statuses(world, [ALICE]) == [429]


async def test_guessed_secrets_of_tokens_are_throttled() -> None:
    method = signed(jwks="", secret="s" * 40)
    async with run_guarded(make_server([method])) as world:
        expired = [token(claims(sub=str(n), exp=1), alg="HS256", key=SECRET, kid=None) for n in range(40)]
        assert await statuses(world, expired) == [401] * 40
        wrong = OctKey.import_key("w" * 40)
        forged = [token(claims(sub=str(n)), alg="HS256", key=wrong, kid=None) for n in range(40)]
        assert await statuses(world, forged) == [401] * 30 + [429] * 10
        assert await statuses(world, [token(claims(), alg="HS256", key=SECRET, kid=None)]) == [429]


async def test_repeated_wrong_key_is_one_guess() -> None:
    async with run_guarded(make_server([KEYS])) as world:
        assert await statuses(world, ["old-key"] * 100) == [403] * 100
        assert await statuses(world, [f"guess-{number}" for number in range(29)]) == [403] * 29
        assert await statuses(world, ["last-guess", "old-key", ALICE]) == [429] * 3


class Badges(AuthMethod):
    """A method whose credentials can be added and removed, and aren't cached."""

    def __init__(self) -> None:
        self.valid: set[str] = set()

    async def identify(self, credential: str) -> Identity | None:
        return Identity(Principal(credential), 0.0) if credential in self.valid else None

    def holds(self, id: str) -> bool:
        return True


async def test_wrong_credentials_that_become_valid_are_accepted() -> None:
    badges = Badges()
    async with run_guarded(make_server([badges])) as world:
        assert await statuses(world, ["7"] * 3) == [403] * 3
        badges.valid.add("7")
        assert await statuses(world, ["7"]) == [200]


async def test_credentials_that_were_valid_are_not_guesses() -> None:
    badges = Badges()
    names = [f"badge{number}" for number in range(40)]
    badges.valid |= {*names, "another"}
    async with run_guarded(make_server([badges])) as world:
        assert await statuses(world, names) == [200] * 40
        badges.valid -= set(names)
        assert await statuses(world, names) == [403] * 40
        assert await statuses(world, ["another"]) == [200]


async def test_opaque_tokens_are_guesses_and_are_introspected_once() -> None:
    async with run_issuer() as issuer:
        answers(issuer, {"good": {**claims(iss=None), "active": True}})
        async with run_guarded(make_server([introspected(issuer)])) as world:
            assert await statuses(world, ["old"] * 40) == [401] * 40
            assert issuer.request_counts["/introspect"] == 1
            assert await statuses(world, ["good"]) == [200]
            assert await statuses(world, [f"guess{number}" for number in range(40)]) == [401] * 29 + [429] * 11
            assert issuer.request_counts["/introspect"] == 31


@for_each("others", [[KEYS], [signed()], [KEYS, signed()]], ids=["keys", "tokens", "both"])
async def test_other_methods_do_not_repeat_introspections(others: list[Any]) -> None:
    async with run_issuer() as issuer:
        answers(issuer, {"good": {**claims(iss=None), "active": True}})
        async with run_guarded(make_server([*others, introspected(issuer)])) as world:
            assert await statuses(world, ["old"] * 100) == [401] * 100
            assert issuer.request_counts["/introspect"] == 1
            assert await statuses(world, ["good"]) == [200]


async def test_introspections_that_cannot_be_cached_are_counted() -> None:
    async with run_issuer() as issuer:
        answers(issuer, {})
        async with run_guarded(make_server([Badges(), introspected(issuer)])) as world:
            assert await statuses(world, ["old"] * 100) == [401] * 30 + [429] * 70
            assert issuer.request_counts["/introspect"] == 30


async def test_repeated_tokens_do_not_extend_their_rejection() -> None:
    async with run_issuer() as issuer:
        answers(issuer, {})
        async with run_guarded(make_server([introspected(issuer)])) as world:
            guard = world.runtime.guard
            assert guard is not None
            began = guard.clock()
            for seconds in (0, 20):
                guard.clock = lambda seconds=seconds: began + seconds
                assert await statuses(world, ["early"]) == [401]
            answers(issuer, {"early": {**claims(iss=None), "active": True}})
            guard.clock = lambda: began + 31
            assert await statuses(world, ["early"]) == [200]


async def test_opaque_tokens_for_another_server_are_not_guesses() -> None:
    async with run_issuer() as issuer:
        others = {
            f"t{number}": {**claims(iss=None, aud="https://other.example"), "active": True} for number in range(40)
        }
        answers(issuer, {**others, "good": {**claims(iss=None), "active": True}})
        async with run_guarded(make_server([introspected(issuer)])) as world:
            assert await statuses(world, list(others)) == [401] * 40
            assert await statuses(world, ["good"]) == [200]


async def test_forged_tokens_cause_few_introspections() -> None:
    async with run_issuer() as issuer:
        answers(issuer, {})
        async with run_guarded(make_server([signed(), introspected(issuer)])) as world:
            forged = [token(claims(sub=str(number)), key=OTHER) for number in range(60)]
            assert set(await statuses(world, forged)) == {401}
            assert issuer.request_counts["/introspect"] == 30
            assert await statuses(world, [good_token(1)]) == [200]


async def test_the_limit_of_failed_sign_ins_is_a_setting() -> None:
    async with run_guarded(make_server([KEYS], limit_failed_sign_ins="3/hour")) as world:
        assert await statuses(world, [f"guess-{number}" for number in range(5)]) == [403] * 3 + [429] * 2


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log's lines about rejected credentials."""
    return [each.getMessage() for each in caplog.records if each.getMessage().startswith("Rejected a credential")]


SECOND = "https://second.example/mcp"
REASONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "expired": ({"exp": NOW - 500}, "The token has expired.", r"Its exp is [\d,]+ seconds ago\."),
    "audience": ({"aud": SECOND}, "The token is for another audience.", f"'{SECOND}', and .* expects '{AUDIENCE}'"),
    "audiences": ({"aud": ["a", SECOND]}, "The token is for another audience.", f"'a' and '{SECOND}'"),
    "issuer": ({"iss": ISSUER + "/"}, "The token is from another issuer.", f"'{ISSUER}/', and .* expects '{ISSUER}'"),
    "early": ({"nbf": NOW + 9000}, "The token isn't valid yet.", r"Its nbf is in [\d,]+ seconds\."),
    "made later": ({"iat": NOW + 9000}, "The token isn't valid yet.", r"Its iat is in [\d,]+ seconds\."),
    "subject": ({"sub": None}, "The token has no subject (sub).", ""),
    "no expiry": ({"exp": None}, "The token has no expiration time (exp).", ""),
    "bound": ({"cnf": {"jkt": "x"}}, "The token is bound to a key (cnf), and proofs aren't checked here.", ""),
    "ID token": ({"typ": "ID"}, "This isn't an access token.", ""),
}  # fmt: skip


@for_each("kind", REASONS)
async def test_reasons_are_in_the_log_the_header_and_the_body(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    changes, reason, details = REASONS[kind]
    sent = token(claims(**changes))
    async with run_guarded(make_server([KEYS, signed()])) as world:
        reply = await world.post(sent, PING)
    (line,) = log_lines(caplog)
    assert line.startswith(f"Rejected a credential from 127.0.0.1. {reason}")
    assert re.search(details, line)
    assert reply.message["detail"] == reason
    assert f'error_description="{reason}"' in reply.headers[b"www-authenticate"].decode()
    assert not any(part in line for part in sent.split("."))


@for_each(("sent", "reason", "details"), [
    (token(kid="k9"), "The signature is by an unknown key.",
     f"Its key id is 'k9', its algorithm is ES256, and it claims to be from '{ISSUER}'"),
    (token(key=OTHER), "The signature is invalid.", "'es'"),
    (token(alg="RS256"), "The token's signature algorithm isn't accepted here.",
     "'RS256', and the accepted ones are ES256"),
    (token(typ="id+jwt"), "It must be a signed JWT of the type at+jwt.", "'id+jwt'"),
    ("opaque", "This isn't a signed token.", ""),
])  # fmt: skip
async def test_reasons_of_unverified_tokens_are_logged(
    sent: str, reason: str, details: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    async with run_guarded(make_server([signed(algorithms=["ES256"])])) as world:
        assert (await world.post(sent, PING)).message["detail"] == reason
    (line,) = log_lines(caplog)
    assert reason in line
    assert details in line


async def test_missing_required_scopes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    async with run_guarded(make_server([signed(scopes=["notes:read"])])) as world:
        assert (await world.post(token(), PING)).status == 403
    assert "The token lacks required scopes. It needs notes:read." in log_lines(caplog)[0]


HOSTILE = 'x"\r\nSet-Cookie: a=b\\\x1b[2J\u202e\ud800' + "é" * 200


async def test_text_from_tokens_is_escaped_in_the_log_and_not_in_headers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    hostile = HOSTILE.replace("\ud800", "")
    tokens = [
        token(claims(aud=hostile)), token(claims(iss=hostile)), token(claims(aud=[hostile] * 9)),
        token(claims(iss=hostile), key=OTHER), token(typ="x\r\ny"), token(kid="x\r\n\x1by"),
        token(claims(aud=[[[["deep"]]]])), token(claims(aud={"a": hostile})),
    ]  # fmt: skip
    async with run_guarded(make_server([signed()])) as world:
        for each in tokens:
            reply = await world.post(each, PING)
            head = reply.headers[b"www-authenticate"].decode()
            assert reply.status == 401
            assert re.fullmatch(r'Bearer error="invalid_token", error_description="[A-Za-z+ .]+", resource_.*"', head)
            assert b"set-cookie" not in reply.headers
    for line in log_lines(caplog):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 2000
    assert len(log_lines(caplog)) >= 5


class Verbose(Badges):
    """A method with reasons of any content."""

    shows = True

    async def examine(self, credential: str) -> Identity | Rejection:
        return Rejection(HOSTILE)


async def test_reasons_of_custom_methods_are_safe_in_headers() -> None:
    """RFC 6750 §3."""
    async with run_guarded(make_server([Verbose()])) as world:
        reply = await world.post("x", PING)
    head = reply.headers[b"www-authenticate"].decode()
    found = re.fullmatch(
        r'Bearer error="invalid_token", error_description="([\x20-\x21\x23-\x5b\x5d-\x7e]{1,200})"', head
    )
    assert found
    assert found[1].startswith("x???Set-Cookie: a=b??[2J??")
    assert b"set-cookie" not in reply.headers


async def test_reasons_are_logged_once_a_minute_per_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    async with run_guarded(make_server([signed()])) as world:
        guard = world.runtime.guard
        assert guard is not None
        for address in ("192.0.2.1", "192.0.2.2"):
            for number in range(40):
                await guard.check(address, token(claims(sub=str(number), exp=1)))
            await guard.check(address, token(claims(aud=SECOND)))
        lines = log_lines(caplog)
        assert [len([line for line in lines if f"from 192.0.2.{n}." in line]) for n in (1, 2)] == [2, 2]
        for number in range(3, 203):
            await guard.check(f"192.0.2.{number}", token(claims(exp=1)))
        assert len(log_lines(caplog)) <= 61


async def test_wrong_keys_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level("INFO", "millstream")
    async with run_guarded(make_server([signed(), KEYS])) as world:
        await world.post("wrong-key", PING)
    assert log_lines(caplog) == []


async def test_floods_of_invalid_tokens_do_not_fill_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with run_guarded(make_server([signed(), KEYS], audit_log=str(path))) as world:
        for number in range(200):
            await world.post(token(claims(sub=str(number)), key=OTHER), PING)
        assert (await world.call(good_token(1), "who")).status == 200
    outcomes = [json.loads(line).get("outcome", "ok") for line in path.read_text("utf-8").splitlines()]
    assert 60 <= outcomes.count("refused") <= 70
    assert outcomes.count("ok") == 1


EMPTY = {"keys": []}
SYMMETRIC = {"keys": [SECRET.as_dict()]}


@for_each("keys", [EMPTY, SYMMETRIC])
async def test_key_sets_without_a_usable_key_are_reported_at_start(keys: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    async with run_issuer() as issuer:
        issuer.answers["/keys"] = keys
        async with run_guarded(make_server([auth.oidc(issuer.url, audience=AUDIENCE)])) as world:
            assert world.runtime.guard is not None
            await world.runtime.guard.prefetch()
    (line,) = [each.getMessage() for each in caplog.records if "key" in each.getMessage()]
    assert f"The key set {issuer.url}/keys has no key that can verify signatures" in line


@for_each(("options", "reported"), [
    ({"jwks": EMPTY}, True), ({"jwks": key_set("RS256"), "algorithms": ["ES256"]}, True), ({"jwks": key_set()}, False),
    ({"jwks": "", "secret": "s" * 40}, False),
])  # fmt: skip
async def test_fixed_keys_that_do_not_fit_are_reported_at_start(
    options: dict[str, Any], reported: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    await signed(**options).prefetch()
    assert (f"No key of {ISSUER} can verify a signature" in caplog.text) is reported


async def test_rejected_tokens_count_toward_the_limit_of_their_address() -> None:
    expired = [token(claims(sub=f"p{number}", exp=1)) for number in range(6)]
    async with run_guarded(make_server([signed()], limit_address="4/day")) as world:
        assert await statuses(world, expired) == [401] * 4 + [429] * 2
        assert await statuses(world, [token(claims(sub="ada"))]) == [429]
    async with run_guarded(make_server([signed()], limit_calls="4/day")) as world:
        assert await statuses(world, expired) == [401] * 6


async def test_address_that_is_locked_out_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with run_guarded(make_server([KEYS])) as world:
        found = await statuses(world, [f"not-a-key-of-this-server-{number}" for number in range(40)])
    assert found[-1] == 429
    lines = [each.getMessage() for each in caplog.records if "Too many failed sign-ins from" in each.getMessage()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Too many failed sign-ins from 127.0.0.1")


async def test_rejected_credentials_are_counted_in_the_metrics() -> None:
    async with run_guarded(make_server([auth.keys(ROOT), signed()])) as world:
        assert await statuses(world, ["wrong" * 5, "other" * 5, NO_GUESSES["one expired token"](0)]) == [401] * 3
        metrics = (await world.ask(ROOT, "GET", "/metrics")).body
    assert b"\nmillstream_failed_sign_ins_total 3.0\n" in metrics
