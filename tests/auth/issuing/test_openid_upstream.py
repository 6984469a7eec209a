"""OpenID providers with forged, wrong, or missing responses sign no user in."""

import hmac
import json
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from joserfc import jws

from cases import for_each
from issuer_world import KEYS, OTHER, Issuer, craft_token, run_issuer, token
from issuing_world import challenge
from millstream import auth
from millstream._http.client.pool import fetch
from millstream.auth import _oidc
from millstream.auth.providers import (
    AuthorizationRedirect,
    Callback,
    RevocableLogin,
    SignInFailed,
    UpstreamLogin,
    UpstreamWithPrompt,
    User,
)
from patience import WAIT

CALLBACK = "https://mcp.example.com/sign-in/callback/openid"
CLIENT, SECRET = "desk", "a secret:of more than 32 bytes, with a colon"
CONFIGURATION = "/.well-known/openid-configuration"


class World:
    """An issuer, and our upstream for it."""

    def __init__(self, issuer: Issuer, **more: Any) -> None:
        self.issuer = issuer
        self.said: dict[str, Any] = {}
        """Changes to the claims of the ID token."""
        self.given: dict[str, Any] = {}
        """Changes to the response of the token endpoint."""
        self.make: Callable[[dict[str, Any]], str] = signed
        self.forms: list[dict[str, str]] = []
        self.about: dict[str, Any] = {
            "issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys", "authorization_endpoint": f"{issuer.url}/auth?a=b",
            "token_endpoint": f"{issuer.url}/token", "userinfo_endpoint": f"{issuer.url}/me",
        }  # fmt: skip
        issuer.answers[CONFIGURATION] = self.about
        issuer.answers["/token"] = self._token
        options = {"allow": ["@example.com", "@kite.example"], "client_id": CLIENT, "client_secret": SECRET, **more}
        self.way: UpstreamLogin = auth.login_provider(issuer.url, **options)
        self.nonce = ""

    def _token(self, request: bytes) -> Any:
        self.forms.append(dict(parse_qsl(request.partition(b"\r\n\r\n")[2].decode())))
        now = int(time.time())
        good = {"iss": self.issuer.url, "aud": CLIENT, "sub": "248289761001", "nonce": self.nonce, "iat": now,
                "exp": now + 600, "email": "Ada@Example.com", "email_verified": True, "name": "Ada"}  # fmt: skip
        claims = {name: value for name, value in {**good, **self.said}.items() if value is not None}
        return {"id_token": self.make(claims), "access_token": "at", "token_type": "Bearer", **self.given}

    async def begin(self) -> AuthorizationRedirect:
        """Return the redirect to the issuer."""
        away = await self.way.begin(CALLBACK, "st")
        self.nonce = parse_qs(urlsplit(away.url).query)["nonce"][0]
        return away

    async def sign_in(self, **query: str) -> User:
        """Complete a login, and return the user."""
        away = await self.begin()
        return await self.way.finish(Callback({"code": "c", **query}, CALLBACK, away.state_data))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Yield an issuer without time limits, for slow machines."""
    monkeypatch.setattr(_oidc, "fetch", partial(fetch, seconds=WAIT))
    async with run_issuer() as issuer:
        yield World(issuer)


async def test_authorization_codes_are_bound_to_this_server(world: World) -> None:
    """OpenID Connect Core §3.1.2; RFC 7636; RFC 6749 §2.3.1."""
    away = await world.begin()
    asked = dict(parse_qsl(urlsplit(away.url).query))
    user = await world.way.finish(Callback({"code": "c"}, CALLBACK, away.state_data))
    assert (user.subject, user.name) == ("248289761001", "Ada")
    (form,) = world.forms
    assert away.url.startswith(f"{world.issuer.url}/auth?a=b&response_type=code&")
    assert (asked["redirect_uri"], asked["state"], asked["client_id"]) == (CALLBACK, "st", CLIENT)
    assert asked["code_challenge"] == challenge(form["code_verifier"])
    assert (form["code"], form["redirect_uri"], "client_secret" in form) == ("c", CALLBACK, False)
    (header,) = (line for line in world.issuer.requests[-2].split(b"\r\n") if line.startswith(b"authorization"))
    assert b64decode(header.split()[-1]) == b"desk:a%20secret%3Aof%20more%20than%2032%20bytes%2C%20with%20a%20colon"
    assert world.issuer.request_counts["/me"] == 0


async def test_reauthentication_is_requested_from_the_issuer(world: World) -> None:
    """OpenID Connect Core §3.1.2.1."""
    assert isinstance(world.way, UpstreamWithPrompt)
    away = await world.way.begin_anew(CALLBACK, "st", "login")
    assert parse_qs(urlsplit(away.url).query)["prompt"] == ["login"]
    assert "prompt" not in parse_qs(urlsplit((await world.begin()).url).query)
    google = auth.login_provider(
        "google", allow=["*"], client_id=CLIENT, client_secret=SECRET, base_url=world.issuer.url
    )
    assert isinstance(google, UpstreamWithPrompt)
    away = await google.begin_anew(CALLBACK, "st", "login")
    assert parse_qs(urlsplit(away.url).query)["prompt"] == ["select_account"]


async def test_client_secret_post_is_supported(world: World) -> None:
    """OpenID Connect Discovery §3."""
    world.about["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    await world.sign_in()
    assert (world.forms[0]["client_id"], world.forms[0]["client_secret"]) == (CLIENT, SECRET)


NOW = time.time()
LIES: dict[str, dict[str, Any]] = {
    "issuer": {"iss": "https://elsewhere.example"},
    "audience": {"aud": "another"},
    "no-audience": {"aud": None},
    "asked-by-another": {"azp": "another"},
    "several-and-nobody-asked": {"aud": [CLIENT, "another"]},
    "nonce": {"nonce": "another"},
    "no-nonce": {"nonce": None},
    "no-text-for-a-nonce": {"nonce": ["x"]},
    "over": {"exp": NOW - 3600},
    "of-the-future": {"iat": NOW + 3600},
    "endless": {"exp": None},
    "nobody": {"sub": None},
}


@for_each("lie", LIES)
async def test_id_tokens_with_wrong_claims_are_rejected(world: World, lie: str) -> None:
    """OpenID Connect Core §3.1.3.7."""
    world.said = LIES[lie]
    with pytest.raises(SignInFailed, match="couldn't be verified"):
        await world.sign_in()


def signed(said: dict[str, Any], **header: Any) -> str:
    """Return a valid ID token."""
    return token(said, **{"typ": "JWT", **header})


def with_secret(said: dict[str, Any], secret: bytes, **header: str) -> str:
    """Sign an ID token with a secret by hand, because JWT libraries refuse public keys as secrets."""
    unsigned = craft_token({"alg": "HS256", "typ": "JWT", **header}, said)[:-1]
    signature = hmac.digest(secret, unsigned.encode(), "sha256")
    return f"{unsigned}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def critical(said: dict[str, Any]) -> str:
    """Return an ID token with an unknown critical header."""
    signing = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    key = KEYS["ES256"]
    unsigned = craft_token({"alg": "ES256", "kid": "es", "typ": "JWT", "crit": ["x"], "x": 1}, said)[:-1]
    signature = signing.get_alg("ES256").sign(unsigned.encode(), key)
    return f"{unsigned}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGERIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "none": lambda said: craft_token({"alg": "none", "typ": "JWT"}, said),
    "another-key": lambda said: signed(said, key=OTHER),
    "its-own-key": lambda said: signed(said, key=OTHER, kid="own", jwk=OTHER.as_dict(private=False)),
    "our-secret": lambda said: with_secret(said, SECRET.encode()),
    "public-key-as-secret": lambda said: with_secret(said, KEYS["RS256"].as_pem(private=False), kid="rs"),
    "critical": critical,
    "access-token": lambda said: signed(said, typ="at+jwt"),
    "logout-token": lambda said: signed(said, typ="logout+jwt"),
    "no-token": lambda said: "",
}


@for_each("forgery", FORGERIES)
async def test_id_tokens_with_wrong_signatures_are_rejected(world: World, forgery: str) -> None:
    """RFC 8725."""
    world.make = FORGERIES[forgery]
    with pytest.raises(SignInFailed, match="couldn't be verified"):
        await world.sign_in()


async def test_id_tokens_of_type_jwt_are_accepted(world: World) -> None:
    for alg in ("ES256", "RS256", "PS256", "Ed25519"):
        world.make = partial(signed, alg=alg)
        assert (await world.sign_in(iss=world.issuer.url)).subject == "248289761001"


@pytest.mark.parametrize(("promised", "query"), [(False, {"iss": "https://elsewhere.example"}), (True, {})])
async def test_responses_from_other_issuers_are_rejected_before_the_code_is_used(
    world: World, promised: bool, query: dict[str, str]
) -> None:
    """RFC 9207 §2.4."""
    world.about["authorization_response_iss_parameter_supported"] = promised
    with pytest.raises(SignInFailed, match="isn't from"):
        await world.sign_in(**query)
    assert world.forms == []


ADDRESSES: dict[str, dict[str, Any]] = {
    "another-domain": {"email": "ada@example.com.evil.example"},
    "a-domain-below": {"email": "ada@sub.example.com"},
    "two-signs": {"email": "ada@example.com@evil.example"},
    "unverified": {"email_verified": False},
    "verified-in-words": {"email_verified": "false"},
    "a-letter-that-looks-alike": {"email": "ada@e\u0445ample.com"},
    "a-letter-that-becomes-ascii": {"email": "ada@\u212aite.example"},
    "cut-it-would-fit": {"email": "a" * 244 + "@example.com" + ".evil.example"},
    "no-text": {"email": ["ada@example.com"]},
    "no-address": {"email": None},
}


@for_each("address", ADDRESSES)
async def test_unverified_and_similar_emails_are_rejected(world: World, address: str) -> None:
    world.said = ADDRESSES[address]
    with pytest.raises(SignInFailed, match="can't sign in here"):
        await world.sign_in()


async def test_userinfo_for_another_subject_is_rejected(world: World) -> None:
    """OpenID Connect Core §5.3.4."""
    world.said = {"email": None, "email_verified": None}
    mail = {"email": "ada@example.com", "email_verified": True}
    world.issuer.answers["/me"] = {"sub": "someone", **mail}
    with pytest.raises(SignInFailed, match="couldn't be verified"):
        await world.sign_in()
    world.given = {"access_token": None}
    with pytest.raises(SignInFailed, match="didn't identify you"):
        await world.sign_in()
    world.given = {"access_token": "\u20ac"}
    with pytest.raises(SignInFailed, match="isn't responding as expected"):
        await world.sign_in()
    world.given = {}
    world.issuer.answers["/me"] = {"sub": "248289761001", **mail}
    assert (await world.sign_in()).name == "ada@example.com"


async def test_upstream_errors_are_reworded(world: World) -> None:
    for error, said in (("server_error", "server_error"), ("<b>", "no code"), ("", "no code")):
        with pytest.raises(SignInFailed, match=f"didn't sign you in \\({said}\\)"):
            await world.sign_in(code="", error=error)
    assert world.forms == []


@pytest.mark.parametrize(
    "broken",
    [b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{", ["no"]],
)
async def test_missing_id_token_is_rejected_and_logged(
    world: World, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.issuer.answers["/token"] = broken
    with pytest.raises(SignInFailed):
        await world.sign_in()
    assert world.issuer.url in caplog.text
    assert SECRET not in caplog.text


async def test_unreachable_and_unsafe_issuers_are_not_used(world: World) -> None:
    world.about["authorization_endpoint"] = "javascript:alert(1)"
    with pytest.raises(SignInFailed, match="isn't available"):
        await world.begin()
    async with run_issuer() as issuer:
        issuer.answers.clear()
        away = auth.login_provider(issuer.url, allow=["*"], client_id="a", client_secret="b")
        with pytest.raises(SignInFailed, match="isn't responding"):
            await away.begin(CALLBACK, "st")
    async with run_issuer() as issuer:
        other = World(issuer)
        other.about["token_endpoint"] = "http://192.0.2.1/token"
        with pytest.raises(SignInFailed, match="isn't available"):
            await other.sign_in()


CLIENT_OPTIONS = {"client_id": "a", "client_secret": "b"}


@pytest.mark.parametrize(
    ("who", "options", "error", "said"),
    [
        ("google", {"allow": ["*"]}, ValueError, "set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET"),
        ("github", {"allow": ["*"], "client_id": "a"}, ValueError, "set GITHUB_CLIENT_ID and GITHUB_CLIENT_SECRET"),
        ("https://id.example", {"allow": ["*"]}, ValueError, "pass client_id= and client_secret="),
        ("google", {"allow": [], **CLIENT_OPTIONS}, ValueError, "allow must list who can sign in"),
        ("google", {"allow": "@example.com", **CLIENT_OPTIONS}, TypeError, "allow must be a list"),
        ("google", {"allow": ["example.com"], **CLIENT_OPTIONS}, ValueError, "can't contain 'example.com'"),
        ("google", {"allow": ["octocat"], **CLIENT_OPTIONS}, ValueError, "can't contain 'octocat'"),
        ("github", {"allow": ["example.com"], **CLIENT_OPTIONS}, ValueError, r"\['org:example'\]"),
        ("google", {"allow": {"@example.com": "orders"}, **CLIENT_OPTIONS}, TypeError, "must be a list"),
        ("google", {"allow": {"@example.com": ["a b"]}, **CLIENT_OPTIONS}, ValueError, "a b"),
        ("gogle", {"allow": ["*"], **CLIENT_OPTIONS}, ValueError, "'gogle' isn't an upstream"),
        ("http://id.example", {"allow": ["*"], **CLIENT_OPTIONS}, ValueError, "must use https"),
        ("google", {"allow": ["*"], "base_url": "http://id.example", **CLIENT_OPTIONS}, ValueError, "must use https"),
        ("github", {"allow": ["*"], "base_url": "http://git.example", **CLIENT_OPTIONS}, ValueError, "must use https"),
    ],
)
def test_invalid_openid_configuration_is_rejected(
    who: str, options: Any, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET", "GITHUB_CLIENT_ID", "GITHUB_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(error, match=said):
        auth.login_provider(who, **options)


async def test_openid_login_reads_the_secret_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET", "GITHUB_CLIENT_ID", "GITHUB_CLIENT_SECRET"):
        monkeypatch.setenv(name, f"the {name}")
    google = auth.google("https://mcp.example.com", allow=["@example.com"], scopes=["shop:use"])
    github = auth.github("https://mcp.example.com", allow=["octocat"])
    assert (google.config.scopes, list(google.config.upstreams)) == (("shop:use",), ["google"])
    away = await github.config.upstreams["github"].begin(CALLBACK, "st")
    asked = dict(parse_qsl(urlsplit(away.url).query))
    assert away.url.startswith("https://github.com/login/oauth/authorize?")
    assert asked["client_id"] == "the GITHUB_CLIENT_ID"
    assert json.dumps(asked).count("SECRET") == 0


async def test_users_from_two_issuers_are_distinct(world: World) -> None:
    user = await world.sign_in()
    options: Any = {"allow": ["@example.com", "bob@example.net"], "client_id": CLIENT, "client_secret": SECRET}
    same, other = (auth.login_provider(url, **options) for url in (world.issuer.url, "https://id.example"))
    assert isinstance(same, RevocableLogin)
    assert isinstance(other, RevocableLogin)
    assert same.still(user)
    assert not other.still(user)
