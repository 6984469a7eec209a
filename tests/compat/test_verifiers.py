"""A program's own verifier of tokens, as one of our ways to sign in: what it can't do."""

import logging
from typing import Any

import pytest

from auth_world import ROOT, guarded, make_server
from millstream import auth
from millstream.compat.fastmcp._sign_in import VerifierMethod
from wire import request


class Failing:
    """A verifier whose database is away."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify_token(self, token: str) -> Any:
        self.asked.append(token)
        raise RuntimeError("can't connect to postgres://shop:hunter2@10.0.0.5/tokens")


async def test_what_a_verifier_fails_with_is_for_the_log_and_not_for_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fixed defect: callers without a valid token read the text of its error. Keys of the program don't reach it."""
    verifier = Failing()
    with caplog.at_level(logging.ERROR):
        async with guarded(make_server([VerifierMethod(verifier, None), auth.keys(ROOT)])) as world:
            reply = await world.post("anything", request("ping"))
            assert (await world.post(ROOT, request("ping"))).status == 200
    assert (reply.status, b"postgres" in reply.body, b"10.0.0.5" in reply.body) == (503, False, False)
    assert verifier.asked == ["anything"]
    assert "postgres" in caplog.text
