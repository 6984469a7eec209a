from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from cases import for_each
from identity_world import find_continue_link
from issuer_world import Issuer, run_issuer
from issuing_world import Browser, Desk, challenge
from millstream import auth
from millstream.auth._authorization_server.upstreams import GitHubUpstream
from millstream.auth.providers import Callback, SignInFailed, UpstreamLogin, User

CALLBACK = "https://mcp.example.com/sign-in/callback/github"
TOKEN, USER = "/login/oauth/access_token", "/api/v3/user"
ORGANIZATIONS, EMAILS = "/api/v3/user/memberships/orgs?state=active&per_page=100", "/api/v3/user/emails?per_page=100"


@pytest.fixture
async def github() -> AsyncIterator[Issuer]:
    """Yield a fake GitHub Enterprise server."""
    async with run_issuer() as server:
        server.answers[TOKEN] = {"access_token": "gho_1", "scope": "", "token_type": "bearer"}
        server.answers[USER] = {"id": 583231, "login": "Octocat", "name": "The Octocat", "email": "octo@example.com"}
        server.answers[ORGANIZATIONS] = [
            {"state": "active", "organization": {"login": "Example"}},
            {"state": "pending", "organization": {"login": "invited"}},
        ]
        server.answers[EMAILS] = [
            {"email": "octo@example.com", "verified": True, "primary": True},
            {"email": "octo@other.example", "verified": False, "primary": False},
        ]
        yield server


def way(github: Issuer, *allow: str) -> UpstreamLogin:
    """Return our upstream for that server."""
    return auth.login_provider(
        "github", allow=allow, client_id="Iv1.0", client_secret="the secret", base_url=f"{github.url}/"
    )


async def sign_in(upstream: UpstreamLogin, **query: str) -> tuple[dict[str, str], User]:
    """Sign in with the upstream; return the parameters of the redirect, and the user."""
    away = await upstream.begin(CALLBACK, "st")
    return dict(parse_qsl(urlsplit(away.url).query)), await upstream.finish(
        Callback(query or {"code": "c"}, CALLBACK, away.state_data)
    )


async def test_github_users_are_identified_by_number(github: Issuer) -> None:
    asked, user = await sign_in(way(github, "octocat"))
    assert (user.subject, user.name) == ("583231", "The Octocat")
    assert (asked["redirect_uri"], asked["state"], "scope" in asked) == (CALLBACK, "st", False)
    assert set(github.request_counts) == {TOKEN, USER}
    form = dict(parse_qsl(github.requests[0].partition(b"\r\n\r\n")[2].decode()))
    assert (form["code"], form["client_secret"], form["redirect_uri"]) == ("c", "the secret", CALLBACK)
    assert challenge(form["code_verifier"]) == asked["code_challenge"]
    assert b"authorization: Bearer gho_1\r\n" in github.requests[1]


@pytest.mark.parametrize(
    ("allow", "scope", "path"),
    [("org:example", "read:org", ORGANIZATIONS), ("octo@example.com", "user:email", EMAILS),
     ("@example.com", "user:email", EMAILS)],
)  # fmt: skip
async def test_memberships_and_emails_are_fetched_only_if_configured(
    github: Issuer, allow: str, scope: str, path: str
) -> None:
    asked, user = await sign_in(way(github, allow))
    assert (asked["scope"], user.subject, github.request_counts[path]) == (scope, "583231", 1)


@for_each("allow", ["org:invited", "org:octocat", "octo@other.example", "@other.example", "octo", "example"])
async def test_pending_unverified_and_similar_names_are_rejected(github: Issuer, allow: str) -> None:
    with pytest.raises(SignInFailed, match="Octocat can't sign in here"):
        await sign_in(way(github, allow))


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        (TOKEN, {"error": "bad_verification_code", "error_description": "<b>"}, r"\(bad_verification_code\)"),
        (TOKEN, ["what"], r"\(no code\)"),
        (USER, {"login": "octocat"}, "didn't identify you"),
        (USER, {"id": True, "login": "octocat"}, "didn't identify you"),
        (USER, [], "didn't identify you"),
        (USER, b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "isn't responding as expected"),
        (ORGANIZATIONS, {"message": "no"}, "can't sign in"),
    ],
)
async def test_invalid_upstream_responses_do_not_sign_users_in(
    github: Issuer, path: str, answer: Any, said: str
) -> None:
    github.answers[path] = answer
    with pytest.raises(SignInFailed, match=said):
        await sign_in(way(github, "org:example"))


async def test_denied_github_login_shows_an_error(github: Issuer) -> None:
    with pytest.raises(SignInFailed, match="didn't allow GitHub to identify you"):
        await sign_in(way(github, "*"), error="access_denied")
    assert not github.request_counts


async def test_github_users_receive_our_tokens(github: Issuer, desk: Desk) -> None:
    made = auth.login_provider(
        "github", allow={"octocat": ["orders:read"]}, client_id="a", client_secret="b", base_url=github.url
    )
    desk = Desk(desk.services.store, people=made)
    browser = Browser(desk)
    id = (await desk.register())["client_id"]
    page = await browser.answer(await browser.open(id, scope="orders:read orders:write"), way="github")
    state = dict(parse_qsl(urlsplit(find_continue_link(page.text)).query))["state"]
    reply = await browser.ask("GET", "/sign-in/callback/github", query=urlencode({"state": state, "code": "c"}))
    found = await desk.who((await desk.token(id, reply.answer["code"])).message["access_token"])
    assert found is not None
    assert (found.principal.subject, found.principal.scopes) == ("github:583231", {"orders:read"})


@for_each(
    ("at", "api"),
    [("", "https://api.github.com"), ("https://octocorp.ghe.com", "https://api.octocorp.ghe.com"),
     ("https://git.example.com", "https://git.example.com/api/v3")],
)  # fmt: skip
def test_github_enterprise_uses_its_own_api_url(at: str, api: str) -> None:
    made = auth.login_provider("github", allow=["*"], client_id="a", client_secret="b", base_url=at)
    assert isinstance(made, GitHubUpstream)
    assert made._api == api


@for_each("provider", ["github", "google"])
def test_secrets_are_not_shown(provider: str) -> None:
    made = auth.login_provider(provider, allow=["*"], client_id="a", client_secret="not for logs")
    assert "not for logs" not in repr(made)
