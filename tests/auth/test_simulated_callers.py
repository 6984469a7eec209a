"""Callers who have signed in, in tests of your own server."""

from typing import Any

import pytest

from cases import for_each
from millstream import Context, Principal, Server
from millstream.client import ServerError
from millstream.testing import connect

mcp = Server("archive")
REVISIONS = ["2025-06-18", "2026-07-28"]


@mcp.tool
async def who(ctx: Context) -> str:
    return "no one" if ctx.principal is None else f"{ctx.principal.subject} {ctx.principal.claims.get('team', '')}"


@mcp.tool(scopes=["write"])
async def write() -> str:
    return "Written."


@for_each("revision", REVISIONS)
async def test_a_simulated_caller_has_its_name_and_only_its_scopes(revision: str) -> None:
    async with connect(mcp, revision=revision, principal="ada") as client:
        assert (await client.call("who")).text == "ada "
        assert [tool.name for tool in await client.tools()] == ["who"]
        with pytest.raises(ServerError, match="scope write"):
            await client.call("write")
    for caller in ({"principal": "ada"}, {}):
        async with connect(mcp, revision=revision, scopes=["write"], **caller) as client:
            assert (await client.call("write")).text == "Written."


async def test_a_whole_principal_keeps_its_claims() -> None:
    async with connect(mcp, principal=Principal("ada", claims={"team": "books"})) as client:
        assert (await client.call("who")).text == "ada books"


async def test_scopes_are_not_checked_without_a_caller() -> None:
    async with connect(mcp) as client:
        assert (await client.call("who")).text == "no one"
        assert (await client.call("write")).text == "Written."


async def test_scopes_must_be_a_list_and_need_a_name() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"scopes": "write"}, r"scopes=\['write'\]"),
        ({"principal": Principal("ada"), "scopes": ["write"]}, "into the principal"),
    ]
    for options, message in wrong:
        with pytest.raises(TypeError, match=message):
            async with connect(mcp, **options):
                pass
