import logging
from typing import Any
from urllib.parse import urlencode

import pytest

from auth_world import ROOT, make_server, run_guarded
from cases import for_each
from millstream import Settings, auth
from millstream._http.message import HttpRequest, Response
from millstream._server.calls.services import ChangeFeed, Services
from millstream.compat.fastmcp._auth import (
    AccessToken,
    AuthSettings,
    OAuthClientInformationFull,
    RefreshToken,
    RevocationOptions,
    VerifierMethod,
)
from millstream.compat.fastmcp._authorization_server import ServedProvider
from redis_parts import until
from shared_store import SharedStore
from wire import request


class Failing:
    """A verifier whose database is unavailable."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify_token(self, token: str) -> Any:
        self.asked.append(token)
        raise RuntimeError("can't connect to postgres://shop:hunter2@10.0.0.5/tokens")


async def test_verifier_errors_are_logged_and_not_returned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = Failing()
    with caplog.at_level(logging.ERROR):
        async with run_guarded(
            make_server([VerifierMethod(verifier, AuthSettings(issuer_url="https://shop.example")), auth.keys(ROOT)])
        ) as world:
            reply = await world.post("anything", request("ping"))
            assert (await world.post(ROOT, request("ping"))).status == 200
    assert (reply.status, b"postgres" in reply.body, b"10.0.0.5" in reply.body) == (503, False, False)
    assert verifier.asked == ["anything"]
    assert "postgres" in caplog.text


class Issuing:
    """An in-memory provider with one public client."""

    def __init__(self) -> None:
        self.access = {"a": AccessToken(token="a", client_id="desk", scopes=[], subject="ada")}
        self.refresh = {"r": RefreshToken(token="r", client_id="desk", scopes=[])}

    async def get_client(self, client_id: str) -> Any:
        about = {"client_id": "desk", "redirect_uris": ["https://desk.example/back"]}
        return OAuthClientInformationFull.model_validate({**about, "token_endpoint_auth_method": "none"})

    async def load_access_token(self, token: str) -> Any:
        return self.access.get(token)

    async def load_refresh_token(self, client: Any, token: str) -> Any:
        return self.refresh.get(token)

    async def revoke_token(self, token: Any) -> None:
        self.access.clear()


@for_each("token", ["a", "r"])
async def test_provider_revocation_ends_streams_on_every_worker(token: str) -> None:
    settings = AuthSettings(
        issuer_url="https://shop.example", resource_server_url="https://shop.example/mcp",
        revocation_options=RevocationOptions(enabled=True),
    )  # fmt: skip
    shared, provider = SharedStore(), Issuing()
    stores: Any = [shared.worker(), shared.worker()]
    for each in stores:
        await each.open()
    many = [Services(Settings(), each, ChangeFeed()) for each in stores]
    workers = [ServedProvider(provider, settings).bind(each, "shop", frozenset) for each in many]
    for worker in workers:
        assert await worker.identify("a") is not None
        worker.epoch()
    body = urlencode({"token": token, "client_id": "desk"}).encode()
    raw = [(b"content-type", b"application/x-www-form-urlencoded")]
    reply = await workers[0].paths()["/revoke"]["POST"](HttpRequest("POST", "/revoke", raw, dict(raw), body))
    assert isinstance(reply, Response)
    assert reply.status == 200
    for worker in workers:
        before = worker._changes
        await until(lambda worker=worker, before=before: worker.epoch() > before)  # type: ignore[misc]
        assert not worker.holds("ada")
        worker.epoch()
        assert worker.holds("ada")
        worker.close()
    for each in stores:
        await each.close()
