import asyncio
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend_stores import MemoryStore
from issuing_world import BACK, FORM, URL, VERIFIER, Desk, Reply, authorization
from millstream.auth._authorization_server.records import check_redirect, shown_host
from property_settings import examples

NAMES = ["client_id", "redirect_uri", "response_type", "state", "scope", "resource", "code_challenge", "prompt",
"code",
         "code_challenge_method", "grant_type", "code_verifier", "refresh_token", "client_secret", "client_assertion",
         "client_assertion_type", "token", "ticket", "answer", "way", "name", "password", "request"]  # fmt: skip
LIKELY = ["authorization_code", "refresh_token", "client_credentials", "code", "S256", BACK, VERIFIER, "none",
"a.b.c",
          "https://evil.example/", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "mr_AAAA"]  # fmt: skip
VALUES = st.sampled_from([each.encode() for each in LIKELY]) | st.binary(max_size=60)
STARTS = [
    "https://",
    "http://127.0.0.1",
    "http://[::1]",
    "com.example.app:",
    "https://app.example.com",
    "",
    "javascript:",
]
ENDS = ["", "/", "/back", ":80/", "@evil.example/", ".evil.example/"]
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8)
FEW = settings(max_examples=examples(5), deadline=None, suppress_health_check=list(HealthCheck))


def encoded(pairs: Any) -> str:
    """Return pairs as a form."""
    return "&".join(f"{name}={quote_from_bytes(value)}" for name, value in pairs)


class Loop:
    """An authorization server in an event loop that runs only during requests."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.desk = Desk(MemoryStore())
        self.id = self.runner.run(self._begin())

    async def _begin(self) -> str:
        await self.desk.services.store.open()
        return str((await self.desk.register())["client_id"])

    def ask(self, *arguments: Any, **options: Any) -> Reply:
        """Send one request."""
        return self.runner.run(self.desk.ask(*arguments, **options))


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.runner.close()


@FEW
@given(pairs=PAIRS, noise=st.binary(max_size=40))
def test_every_authorization_query_gets_a_page_or_a_redirect(loop: Loop, pairs: Any, noise: bytes) -> None:
    for query in (encoded(pairs), f"{authorization(loop.id)}&{encoded(pairs)}", noise.decode("latin-1")):
        reply = loop.ask("GET", "/authorize", query=query)
        assert reply.status in (200, 303, 400)
        assert reply.status != 303 or reply.location.startswith(f"{BACK}?")


@FEW
@given(pairs=PAIRS, noise=st.binary(max_size=60), header=st.binary(max_size=40))
def test_any_form_gets_a_reply(loop: Loop, pairs: Any, noise: bytes, header: bytes) -> None:
    more = {"authorization": f"Basic {b64encode(header).decode()}"} if header else {}
    for path in ("/token", "/revoke", "/introspect", "/authorize", "/register"):
        for body in (encoded(pairs).encode(), f"client_id={loop.id}&{encoded(pairs)}".encode(), noise):
            kind = "application/json" if path == "/register" else FORM
            reply = loop.ask("POST", path, body=body, content_type=kind, origin=URL, **more)
            assert reply.status in (200, 201, 400, 401, 403, 413, 415, 429), reply.text


@FEW
@given(
    st.builds(
        "{}{}{}".format, st.sampled_from(STARTS), st.text("[]@:.;,' \"a1%?#*é\\", max_size=12), st.sampled_from(ENDS)
    )
)
def test_any_redirect_uri_is_rejected_or_safely_embedded_in_policy_and_page(uri: str) -> None:
    try:
        check_redirect(uri)
    except ValueError:
        return
    if uri.startswith("http"):
        assert shown_host(uri) == urlsplit(uri).netloc
        assert "@" not in shown_host(uri)
