import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from auth_world import make_server, run_guarded
from backend_stores import MemoryStore
from cases import for_each
from issuer_world import AUDIENCE, claims, make_many_keys, run_issuer, token
from issuing_world import Desk, KnownUsers
from millstream import Server, auth
from millstream._app.server_process.asgi_application import look_ahead
from millstream._app.server_process.startup_message import facts
from millstream.auth._jose import FetchedKeys
from patience import WAIT
from redis_parts import until

CONFIGURATION = "/.well-known/openid-configuration"


async def warned(method: Any, caplog: pytest.LogCaptureFixture) -> str:
    """Start a server with this method, and return its log."""
    async with run_guarded(make_server(method)) as world:
        look_ahead(world.runtime)
        await until(lambda: not world.runtime.sweep._jobs)
    texts = [each.getMessage() for each in caplog.records]
    found = [each for each in texts if "tokens can't be verified" in each or "can't sign in with" in each]
    assert len(found) <= 1
    return "".join(found)


async def test_unreachable_issuer_is_reported_at_startup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Regression: the server started without a warning and refused the issuer's tokens later."""
    async with run_issuer() as issuer:
        url = issuer.url
    text = await warned(auth.oidc(url, audience=AUDIENCE), caplog)
    assert f"{url}{CONFIGURATION}: There is no server at {url}: nothing listens on that port." in text
    assert f"Check the issuer's URL, {url}, and that this machine can reach it." in text


@pytest.mark.parametrize(
    ("path", "said"), [("/tenant", "responded with 404"), ("", "has no jwks_uri"), ("/other", "the issuer is")]
)
async def test_wrong_issuer_is_reported_at_startup(path: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        issuer.answers[CONFIGURATION] = {"issuer": issuer.url}
        issuer.answers[f"/other{CONFIGURATION}"] = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
        text = await warned(auth.oidc(issuer.url + path, audience=AUDIENCE), caplog)
    assert said in text
    assert issuer.url in text


async def test_missing_keys_are_reported_at_startup(caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        method = auth.jwt(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/nothing")
        text = await warned(method, caplog)
    assert f"{issuer.url}/nothing: 127.0.0.1 responded with 404." in text


async def test_oversized_key_sets_are_reported_at_startup(caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        issuer.answers["/keys"] = make_many_keys(257)
        text = await warned(auth.jwt(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/keys"), caplog)
    assert f"{issuer.url}/keys: The set has 257 keys, but at most 256 are supported." in text


async def test_unreachable_upstream_is_reported_at_startup(caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        issuer.answers.clear()
        people = auth.login_provider(issuer.url, allow=["@example.com"], client_id="shop", client_secret="s" * 32)
        text = await warned(auth.issuer("http://127.0.0.1:8000", users=people), caplog)
    assert f"{issuer.url}{CONFIGURATION}: 127.0.0.1 responded with 404" in text


async def test_first_token_contacts_an_issuer_that_was_unavailable_at_startup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_issuer() as issuer:
        answers = dict(issuer.answers)
        issuer.answers.clear()
        async with run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world:
            look_ahead(world.runtime)
            await until(lambda: not world.runtime.sweep._jobs)
            [trouble] = world.runtime.host.store.troubles.describe()
            assert trouble.what.endswith("because its keys can't be fetched")
            assert "responded with 404" in trouble.reason
            issuer.answers |= answers
            reply = await world.call(token(claims(iss=issuer.url)), "who")
            assert reply.status == 200
            assert world.runtime.host.store.troubles.describe() == []
    assert "responded with 404" in caplog.text
    assert caplog.text.count("The issuer's keys can be fetched again.") == 1


async def test_log_says_why_an_introspection_endpoint_cannot_verify_a_token(caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        endpoint = f"{issuer.url}/nothing"
        method = auth.introspection(
            issuer=issuer.url, audience=AUDIENCE, endpoint=endpoint, client="shop", secret="s" * 32
        )
        caplog.set_level("INFO", "millstream")
        async with run_guarded(make_server(method)) as world:
            assert (await world.call("opaque", "who")).status == 503
    assert f"{endpoint}: 127.0.0.1 responded with 404." in caplog.text


async def test_healthy_issuer_is_contacted_once_without_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        run_issuer() as issuer,
        run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world,
    ):
        look_ahead(world.runtime)
        await until(lambda: not world.runtime.sweep._jobs)
        assert (await world.call(token(claims(iss=issuer.url)), "who")).status == 200
        assert issuer.request_counts == {CONFIGURATION: 1, "/keys": 1}
    assert "can't" not in caplog.text


async def test_server_stops_while_waiting_for_an_issuer() -> None:
    async with run_issuer() as issuer:
        issuer.gate = asyncio.Event()
        async with run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world:
            look_ahead(world.runtime)
            await until(issuer.request_counts.total)
        issuer.gate.set()


@for_each(
    ("methods", "variable", "options"),
    [
        (lambda url: auth.oidc(url, audience=AUDIENCE), "$TOKEN", "--login"),
        (
            lambda url: auth.issuer(url, users=auth.login_provider(url, allow=["*"], client_id="a", client_secret="b")),
            "$TOKEN",
            "--login",
        ),
        (
            lambda url: [auth.oidc(url, audience=AUDIENCE), auth.keys("k" * 20)],
            "$MCP_SERVER_AUTH_KEY",
            '--auth "$MCP_SERVER_AUTH_KEY"',  # unquoted, an unset variable would leave --auth without a value
        ),
    ],
)
def test_suggested_command_accepts_the_same_issuer(methods: Any, variable: str, options: str) -> None:
    server = Server("shop", auth=methods("http://127.0.0.1:9"))
    shown = facts(server.runtimes.definition, host="127.0.0.1", port=8000)
    assert f'--oauth2-bearer "{variable}"' in shown.curl
    assert shown.call.endswith(options)


ISSUERS = ["https://one.example", "https://two.example", "https://three.example"]


class Meeting:
    """Fetches that finish only after all of them have started."""

    def __init__(self, *fails: Exception | None) -> None:
        self.fails = fails
        self.came = 0
        self.done = 0
        self.everybody = asyncio.Event()

    async def fetch(self) -> None:
        """Run one fetch."""
        failure = self.fails[self.came]
        self.came += 1
        if self.came == len(self.fails):
            self.everybody.set()
        if failure is not None:
            raise failure
        await self.everybody.wait()
        self.done += 1


def of_identities() -> Any:
    """Return an authorization server with several identity providers."""
    return Desk(
        MemoryStore(), people=[KnownUsers(), *(auth.identity_provider(each, scopes=()) for each in ISSUERS)]
    ).running


def of_tokens() -> Any:
    """Return a server that accepts tokens of several issuers."""
    return [auth.jwt(issuer=each, audience=AUDIENCE, jwks=f"{each}/keys") for each in ISSUERS]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Meeting]:
    """Return a function that replaces the fetching of keys with a `Meeting`."""

    def start(*fails: Exception | None) -> Meeting:
        meeting = Meeting(*fails)
        monkeypatch.setattr(FetchedKeys, "prefetch", lambda _: meeting.fetch())
        return meeting

    return start


async def test_identity_providers_are_prefetched_concurrently(meet: Callable[..., Meeting]) -> None:
    meeting = meet(None, None, None)
    async with asyncio.timeout(WAIT):
        await of_identities().prefetch()
    assert (meeting.came, meeting.done) == (3, 3)


@for_each("whose", ["identities", "tokens"])
async def test_failing_prefetch_is_reported_and_does_not_stop_others(whose: str, meet: Callable[..., Meeting]) -> None:
    meeting = meet(None, ValueError("odd"), None)
    async with asyncio.timeout(WAIT):
        if whose == "identities":
            with pytest.raises(ExceptionGroup) as told:
                await of_identities().prefetch()
        else:
            async with run_guarded(make_server(of_tokens())) as world:
                assert world.runtime.guard is not None
                with pytest.raises(ExceptionGroup) as told:
                    await world.runtime.guard.prefetch()
    assert told.group_contains(ValueError, match="odd")
    assert (meeting.came, meeting.done) == (3, 2)
