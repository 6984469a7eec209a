"""What a server says about itself is made once, and again when there is more to say."""

import json

import pytest

from millstream import Server
from millstream.protocol.revisions import HANDSHAKE, NEWEST, NEWEST_HANDSHAKE, Revision
from millstream.server.features.announcement import Announcement


def announcement(server: Server) -> Announcement:
    """That of a server which does not run."""
    return Announcement(server.registry, server.definition.describe(), "Be kind.", discover_ttl_ms=5)


@pytest.mark.parametrize("revision", HANDSHAKE.values(), ids=HANDSHAKE)
def test_the_answer_to_initialize_is_made_once_for_each_revision(revision: Revision) -> None:
    """Seed 001: cache frequently requested server info."""
    said = announcement(Server("shop", version="2"))
    first = said.initialize(revision)
    assert said.initialize(revision) is first
    told = json.loads(first)
    assert (told["protocolVersion"], told["serverInfo"]["version"], told["instructions"]) == (
        revision.date, "2", "Be kind.",
    )  # fmt: skip


def test_an_answer_without_streams_promises_no_changes() -> None:
    """Nobody could be told of them."""
    server = Server("shop")
    server.tool(nothing)
    said = announcement(server)
    with_streams, without = (json.loads(said.initialize(NEWEST_HANDSHAKE, streams=each)) for each in (True, False))
    assert with_streams["capabilities"]["tools"] == {"listChanged": True}
    assert without["capabilities"]["tools"] == {}


def test_a_first_tool_or_prompt_while_the_server_runs_is_announced_to_whoever_asks_next() -> None:
    """What is kept must not be old."""
    server = Server("shop")
    said = announcement(server)
    assert "tools" not in json.loads(said.initialize(NEWEST_HANDSHAKE))["capabilities"]
    assert b'"tools"' not in said.discover(NEWEST)
    server.tool(nothing)
    assert "tools" in json.loads(said.initialize(NEWEST_HANDSHAKE))["capabilities"]
    kept = said.discover(NEWEST)
    assert b'"tools"' in kept
    assert said.discover(NEWEST) is kept
    server.prompt(greeting)
    assert b'"prompts"' in said.discover(NEWEST)


def nothing() -> None:
    """Do nothing."""


def greeting() -> str:
    """Say hello."""
    return "Hello"
